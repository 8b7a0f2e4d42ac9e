//! Acting for others: a node's proxy (Istio's ztunnel) gets certificates for the workloads of its node (reference mtls
//! 5.3, CA-8, CA-13 to CA-15).

use std::str::FromStr;

use maille_core::Identity;
use maille_proto::ca::IstioCertificateRequest;
use prost_types::value::Kind;

use crate::attest::Peer;
use crate::world::World;

/// The key of a request's metadata with the identity wanted (reference mtls 5.2).
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Accounts of node proxies: `CA_TRUSTED_NODE_ACCOUNTS="istio-system/ztunnel,…"`. Nobody, unless named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedNodeAccounts(Vec<(String, String)>);

/// A list of accounts that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no account; write namespace/account, several with commas between")]
pub struct AccountError(String);

impl FromStr for TrustedNodeAccounts {
    type Err = AccountError;

    fn from_str(text: &str) -> Result<Self, AccountError> {
        let accounts = text.split(',').map(str::trim).filter(|account| !account.is_empty());
        let accounts = accounts.map(|account| match account.split_once('/') {
            Some((namespace, name))
                if maille_core::is_dns_label(namespace) && !name.is_empty() && !name.contains('/') =>
            {
                Ok((namespace.to_owned(), name.to_owned()))
            }
            _ => Err(AccountError(account.to_owned())),
        });
        accounts.collect::<Result<_, _>>().map(Self)
    }
}

impl TrustedNodeAccounts {
    /// Whether nobody is trusted so.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, identity: &Identity) -> bool {
        let account = (identity.namespace(), identity.service_account());
        self.0.iter().any(|(namespace, name)| (namespace.as_str(), name.as_str()) == account)
    }
}

/// Whether a request asks for another identity than the caller's. Istio goes by the text being empty or not.
pub(crate) fn is_asked(request: &IstioCertificateRequest) -> bool {
    wanted(request).is_some()
}

/// What is asked for; a value of another kind than text is refused, not ignored.
fn wanted(request: &IstioCertificateRequest) -> Option<Result<&str, String>> {
    let value = request.metadata.as_ref()?.fields.get(IMPERSONATED)?;
    match &value.kind {
        Some(Kind::StringValue(text)) if text.is_empty() => None,
        Some(Kind::StringValue(text)) => Some(Ok(text)),
        None | Some(Kind::NullValue(_)) => None,
        Some(_) => Some(Err(format!("{IMPERSONATED} is no text"))),
    }
}

/// The identity that a node's proxy may have a certificate for, if the request asks for one; why not, for the log only.
///
/// The caller's own Pod is known by attestation: it lives, has the uid of the token if that is bound, and runs as the
/// account. Beyond Istio, the trust domain asked for must be the mesh's own, or another name of it, and the Pod acted for
/// must not be on its way out of being: only Pods that may still run count, as in Istio (phase other than Failed).
pub(crate) fn identity_for(
    accounts: &TrustedNodeAccounts,
    world: &World,
    caller: &Peer,
    request: &IstioCertificateRequest,
) -> Result<Option<Identity>, String> {
    let Some(wanted) = wanted(request) else { return Ok(None) };
    let wanted = wanted.map_err(|reason| format!("{}: {reason}", caller.identity()))?;
    let refused = |reason: &str| format!("{} asked for {}: {reason}", caller.identity(), brief(wanted));
    if !accounts.has(caller.identity()) {
        return Err(refused("it is no trusted node account (CA_TRUSTED_NODE_ACCOUNTS)"));
    }
    let identity = Identity::parse_uri(wanted).map_err(|e| refused(&format!("that is no identity: {e}")))?;
    let config = world.config();
    if !config.is_own(identity.trust_domain()) {
        return Err(refused("that is of another trust domain"));
    }
    let node = caller.pod().node.as_str();
    if node.is_empty() {
        return Err(refused("the caller's pod is on no node"));
    }
    let runs = world
        .pods_in(identity.namespace())
        .any(|pod| pod.node == node && pod.service_account == identity.service_account());
    if !runs {
        return Err(refused(&format!("no pod of that account is on node {node}")));
    }
    // What is issued is of the own domain, by whatever name it was asked for.
    let own = Identity::new(config.trust_domain.clone(), identity.namespace(), identity.service_account());
    own.map(Some).map_err(|e| refused(&e.to_string()))
}

/// What a caller wrote, fit for a log.
fn brief(text: &str) -> String {
    text.chars().take(256).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_or_refused_by_name() {
        let read = |text: &str| text.parse::<TrustedNodeAccounts>();
        assert!(read("").expect("nobody").is_empty());
        let two = read(" istio-system/ztunnel, kube-system/node-proxy ,").expect("two");
        let identity = |namespace: &str, account: &str| {
            let domain = maille_core::TrustDomain::parse("cluster.local").expect("valid");
            Identity::new(domain, namespace, account).expect("valid")
        };
        assert!(two.has(&identity("istio-system", "ztunnel")));
        assert!(two.has(&identity("kube-system", "node-proxy")));
        assert!(!two.has(&identity("kube-system", "ztunnel")));
        for wrong in ["ztunnel", "a/b/c", "/b", "a/", "A B/c"] {
            let error = read(wrong).expect_err("refused").to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
