//! The data path of two sidecars, with real sockets, curl and openssl around them.

mod authorizer;
mod chains;
mod change;
mod envoy;
mod external;
mod external_tls;
mod frames;
mod hostile;
mod hostile_heads;
mod http;
mod issuer;
mod lab;
mod limits;
mod log;
mod marks;
mod mode;
mod outside;
mod settings;
mod smuggling;
mod static_doc;
mod streams;
mod strict;
mod tcp;
mod tokens;
mod tunnel;
mod unknown;
