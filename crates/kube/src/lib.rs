//! Where a cluster begins: the only place with a Kubernetes client.
//!
//! Watches turn into events of the control plane's world; tokens are reviewed by the API server; the authority's root is
//! kept in a Secret, and its bundle in a ConfigMap of every namespace. The embedded API server and
//! a real cluster are served by the same code.

#![forbid(unsafe_code)]

mod addresses;
mod bearer;
mod ca_files;
mod credentials;
mod federated_bundles;
mod in_force;
mod jwt;
mod mesh_config;
mod objects;
mod policies;
mod published;
mod revocations;
mod root;
mod run;
mod status;
#[cfg(test)]
mod tests;
mod token_review;
mod watch;

pub use ca_files::{CaFiles, CaFolder, News, Tell, check_ca_folder};
pub use maille_control::world::MeshConfig;
pub use maille_control::{AuditOptions, IssueRules, TrustedNodeAccounts};
pub use run::{ControlPlaneOptions, run_control_plane};

/// What went wrong, in a line: the client prints an API server's answer in full.
fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message, status.code, status.reason),
        other => other.to_string(),
    }
}
