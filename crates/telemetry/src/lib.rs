//! Metrics, access log, flows, traces: recorded once, read by many.

#![forbid(unsafe_code)]
