//! Fetching key sets from servers that answer well, badly or not at all.

mod fetching;
mod keeping;
mod server;
