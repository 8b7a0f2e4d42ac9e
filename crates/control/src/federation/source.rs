//! Where a bundle is fetched, as the mesh configuration says it.

use maille_config::mesh::CaCertificate;
use maille_core::TrustDomain;

use super::endpoint::ENDPOINT_ACCOUNT;

/// One endpoint, and for whom it speaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub(super) url: String,
    /// PEM; what the endpoint is verified by before the first bundle. `None`: by its host name.
    pub(super) bootstrap: Option<String>,
    /// The identity that the endpoint proves where it is verified by a bundle.
    pub(super) endpoint_id: String,
}

impl Source {
    /// `None`: the entry names no URL. `own` is the mesh's trust domain, and `namespace` where control planes are.
    pub(super) fn of(entry: &CaCertificate, own: &TrustDomain, namespace: &str) -> Option<Self> {
        let url = entry.spiffe_bundle_url.clone()?;
        let domain = entry.trust_domains.first().unwrap_or(own);
        let id = || format!("spiffe://{domain}/ns/{namespace}/sa/{ENDPOINT_ACCOUNT}");
        let endpoint_id = entry.endpoint_spiffe_id.clone().unwrap_or_else(id);
        Some(Self { url, bootstrap: entry.pem.clone(), endpoint_id })
    }

    /// Its name in the store: another one when it would have to be verified anew.
    pub(super) fn key(&self) -> String {
        let said =
            format!("{}\n{}\n{}", self.url, self.endpoint_id, self.bootstrap.as_deref().unwrap_or_default());
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, said.as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
