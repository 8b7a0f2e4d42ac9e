//! The delta streams' state machines for both ends, with no I/O; thin gRPC adapters beside them.

#![forbid(unsafe_code)]
