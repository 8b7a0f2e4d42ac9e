//! The web page over the control plane's public API.

#![forbid(unsafe_code)]
