//! The `maille` binary: arguments, wiring, commands, tables, exit codes.

#![forbid(unsafe_code)]

fn main() {}
