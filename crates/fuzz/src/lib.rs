//! What the fuzz targets do with their input.
//!
//! `fuzz/` runs these functions under a coverage-guided fuzzer; `tests/bounded.rs` here runs them over the same corpus
//! and some random bytes, with any compiler. A target finds a fault by panicking: on its own assertions, or
//! because the code under it does.

#![forbid(unsafe_code)]

mod bytes;
mod decide;
mod documents;
mod paths;
#[path = "../../oracle/tests/authorization/policies.rs"]
#[allow(dead_code, reason = "shared with the differential tests")]
mod policies;
mod random;
#[path = "../../oracle/tests/authorization/requests.rs"]
#[allow(dead_code, reason = "shared with the differential tests")]
mod requests;
mod tokens;

/// A target: its name, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, by name.
pub const TARGETS: [Target; 7] = [
    ("jwks", tokens::jwks),
    ("jwt", tokens::jwt),
    ("mesh", documents::mesh),
    ("normalize", paths::normalize),
    ("path_template", paths::template),
    ("policy", decide::generated),
    ("yaml", documents::yaml),
];

/// Runs the target of that name.
///
/// # Panics
///
/// If there is none, or if the input shows a fault.
pub fn run(target: &str, input: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, body) = found.unwrap_or_else(|| panic!("there is no target '{target}'"));
    body(input);
}
