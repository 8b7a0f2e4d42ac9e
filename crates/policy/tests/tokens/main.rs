//! Tokens of requests: the table of reference authorization 19 and the JWT rows of 16, with tokens made by other
//! programs (`make.py`), and compared with a real Envoy; vectors of RFC 7515 and 7520.

mod cases;
mod envoy;
mod hostile;
mod rfc;
mod support;
mod time;
