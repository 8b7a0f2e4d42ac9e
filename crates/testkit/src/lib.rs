//! Test authority, echo servers, scripted control plane, namespace lab.

#![forbid(unsafe_code)]
