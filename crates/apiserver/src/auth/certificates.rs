//! The API's own authority, its serving certificate and the kubeconfig's user.
//!
//! The authority lives in the store and signs for this API alone: it has nothing to do with the
//! mesh's identities.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_core::TrustDomain;
use maille_pki::{Authority, generate_key};
use maille_tls::control::{Credential, https_server};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};

use crate::ServeError;
use crate::store::Store;

const DAY: Duration = Duration::from_secs(86_400);
/// Life of the root, as kubeadm gives it.
const ROOT_TTL: Duration = Duration::from_secs(3650 * 86_400);
/// The serving certificate is made at each start, and anew in good time by a server that runs on.
const SERVING_TTL: Duration = Duration::from_secs(365 * 86_400);
/// The kubeconfig is written anew at each start.
const CLIENT_TTL: Duration = Duration::from_secs(365 * 86_400);

/// The user of the kubeconfig.
pub(crate) const ADMIN: &str = "kubernetes-admin";
/// The group that may do everything.
pub(crate) const MASTERS: &str = "system:masters";

#[derive(Serialize, Deserialize)]
struct Kept {
    certificate: String,
    key: String,
}

/// Loads the authority of this store, or makes it.
pub(crate) fn authority(store: &Store) -> Result<Authority, ServeError> {
    let bytes = store.setting("authority", || -> Result<Vec<u8>, ServeError> {
        let domain = TrustDomain::parse("maille-api").map_err(|e| ServeError::Setup(e.to_string()))?;
        let authority = Authority::self_signed(&domain, SystemTime::now(), ROOT_TTL)?;
        let kept = Kept { certificate: authority.cert_pem(), key: authority.key_pem().to_string() };
        serde_json::to_vec(&kept).map_err(|e| ServeError::Setup(e.to_string()))
    })?;
    let kept: Kept = serde_json::from_slice(&bytes)
        .map_err(|e| ServeError::Setup(format!("the API's authority in the store cannot be read: {e}")))?;
    Ok(Authority::from_pem(&kept.certificate, &kept.key, "", &kept.certificate)?)
}

/// TLS for all names under which the API is reached, and when its certificate is good: from its beginning until it should be
/// made anew.
pub(crate) fn server_config(
    authority: &Authority,
    addresses: &[IpAddr],
) -> Result<(Arc<ServerConfig>, Range<SystemTime>), ServeError> {
    let key = generate_key()?;
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let issued =
        authority.issue_server(&key.public_key()?, &names, addresses, SERVING_TTL, SystemTime::now())?;
    let own = Credential::from_pem(&issued.chain_text(), &key.to_pem())?;
    let config = https_server(&own, Some(&authority.roots_pem()))?;
    Ok((config, issued.not_before..issued.not_after - SERVING_MARGIN))
}

/// How long before its end the serving certificate is made anew.
const SERVING_MARGIN: Duration = Duration::from_secs(30 * DAY.as_secs());

/// A client certificate for the administrator: chain and key as PEM.
pub(crate) fn admin_credential(authority: &Authority) -> Result<(String, String), ServeError> {
    let key = generate_key()?;
    let issued =
        authority.issue_client(&key.public_key()?, ADMIN, Some(MASTERS), CLIENT_TTL, SystemTime::now())?;
    Ok((issued.chain_text(), key.to_pem().to_string()))
}
