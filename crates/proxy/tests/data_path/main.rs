//! The data path of two sidecars, with real sockets, curl and openssl around them.

mod change;
mod hostile;
mod http;
mod lab;
mod mode;
mod tcp;
mod unknown;
