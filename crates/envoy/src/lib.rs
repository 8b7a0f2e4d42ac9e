//! Facts shown in Envoy's shapes.

#![forbid(unsafe_code)]
