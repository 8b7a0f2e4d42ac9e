//! The control plane as its callers meet it: real sockets, real TLS, real streams, a scripted world.

mod audit;
mod certificates;
mod external;
mod facts;
mod flows;
mod lab;
mod mesh;
mod monitoring;
mod nodes;
mod registry;
mod revocation;
mod rotation;
mod standing;
mod tokens;
