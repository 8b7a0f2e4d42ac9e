//! Slow literal reference implementations for differential tests.

#![forbid(unsafe_code)]
