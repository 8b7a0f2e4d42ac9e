//! rustls configurations and verifiers made of identities and bundles, rotated while in use.

#![forbid(unsafe_code)]
