//! The data path of two sidecars, with real sockets, curl and openssl around them.

mod change;
mod external;
mod external_tls;
mod hostile;
mod http;
mod lab;
mod mode;
mod outside;
mod tcp;
mod unknown;
