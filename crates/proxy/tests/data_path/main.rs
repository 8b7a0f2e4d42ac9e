//! The data path of two sidecars, with real sockets, curl and openssl around them.

mod authorizer;
mod change;
mod external;
mod external_tls;
mod hostile;
mod http;
mod issuer;
mod lab;
mod log;
mod mode;
mod outside;
mod tcp;
mod tokens;
mod unknown;
