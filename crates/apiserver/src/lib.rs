//! The embedded Kubernetes-style API over a store on disk.

#![forbid(unsafe_code)]
