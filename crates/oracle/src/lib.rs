//! Slow literal reference implementations for differential tests.
//!
//! [`authorization`] reads the reference's rules word by word: no index, no compilation, no sharing of code with
//! what it checks. Where both could be wrong in the same way, tables in the checked crate hold the examples.

#![forbid(unsafe_code)]

pub mod authorization;
mod glob;
mod text;
mod tokens;
mod values;
