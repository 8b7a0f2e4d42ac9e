//! Read, verify, sign: CSRs, X.509-SVIDs, bundles, roots, rotation arithmetic; bytes in, bytes out.

#![forbid(unsafe_code)]
