//! Checked policies in, compiled structure out; decisions that carry their reasons.

#![forbid(unsafe_code)]
