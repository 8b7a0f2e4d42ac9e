//! Where a cluster begins: watches, token review, trust bundles, status.

#![forbid(unsafe_code)]
