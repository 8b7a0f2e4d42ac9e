//! The data plane: intercepts, authenticates, authorizes, forwards, measures.

#![forbid(unsafe_code)]
