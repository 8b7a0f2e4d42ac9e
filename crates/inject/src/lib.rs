//! Pod in, Pod with sidecar out; pure.

#![forbid(unsafe_code)]
