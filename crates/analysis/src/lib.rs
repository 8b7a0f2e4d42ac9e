//! The analyzers: objects in, findings with codes and positions out; pure.

#![forbid(unsafe_code)]
