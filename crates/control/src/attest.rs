//! Who is calling: proof of an account, and a live Pod of that account at the caller's address.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use maille_core::{Identity, NamespacedName, TrustDomain};
use tokio::time::Instant;

use crate::connection::PeerCertificate;
use crate::hub::Hub;
use crate::world::{Pod, World};

/// A token's audience (reference mtls 5.3).
pub const TOKEN_AUDIENCE: &str = "istio-ca";

/// How long a caller's Pod may be unknown: a proxy can be faster than the watch that tells of its address.
const POD_PATIENCE: Duration = Duration::from_secs(2);

/// Asks whoever issued a ServiceAccount token whether it holds.
pub trait TokenReviewer: Send + Sync + 'static {
    /// Reviews a token for an audience.
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'a str,
    ) -> BoxFuture<'a, Result<Reviewed, ReviewError>>;
}

/// A token that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    /// The account's namespace.
    pub namespace: String,
    /// The account.
    pub service_account: String,
    /// Name and uid of the Pod it is bound to, if it is.
    pub pod: Option<(String, String)>,
}

/// Why a token could not be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// It does not hold.
    #[error("token does not hold: {0}")]
    Rejected(String),
    /// Nobody could be asked; the caller may try again.
    #[error("token could not be reviewed: {0}")]
    Unavailable(String),
}

/// What a caller proved its account with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A certificate of this mesh.
    Certificate,
    /// A ServiceAccount token.
    Token,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Token => "token",
        })
    }
}

/// A caller who is known. Only attestation makes one.
#[derive(Debug, Clone)]
pub struct Peer {
    identity: Identity,
    /// The trust domain of the certificate it showed.
    domain: Option<TrustDomain>,
    pod: Arc<Pod>,
    address: IpAddr,
    proof: Proof,
    /// What its connection stands on.
    certificate: Option<PeerCertificate>,
}

impl Peer {
    /// The same, on a connection that stands on this certificate.
    pub(crate) fn on(self, certificate: PeerCertificate) -> Self {
        Self { certificate: Some(certificate), ..self }
    }

    /// Why the certificate is revoked that its connection stands on, if it is.
    pub(crate) fn revoked(&self, world: &World) -> Option<String> {
        self.certificate.as_ref()?.revoked(world)
    }

    /// When the certificate ends that its connection stands on.
    pub(crate) fn certificate_ends(&self) -> Option<SystemTime> {
        Some(self.certificate.as_ref()?.not_after)
    }

    /// The identity proved.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The Pod it runs in, as it was when it called.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The address it calls from.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// What it showed.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Whether its right still holds: the same Pod, of the same account, at the same address, and its trust domain
    /// still the mesh's.
    pub fn still_holds(&self, world: &World) -> bool {
        let is_own = self.domain.as_ref().is_none_or(|domain| world.config().is_own(domain));
        is_own
            && world.pod_at(self.address).is_some_and(|pod| {
                pod.name == self.pod.name
                    && pod.uid == self.pod.uid
                    && pod.service_account == self.identity.service_account()
            })
    }
}

/// Why a caller is not known. The caller is told little of it (reference mtls CA-2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// Neither certificate nor token.
    #[error("neither a certificate nor a token was shown")]
    Nothing,
    /// The token does not hold, or could not be reviewed.
    #[error(transparent)]
    Token(#[from] ReviewError),
    /// The account cannot be an identity.
    #[error("account {0} cannot be an identity")]
    Account(String),
    /// The identity is of another trust domain.
    #[error("{0} is of another trust domain")]
    Domain(Identity),
    /// No Pod has the address.
    #[error("no live pod has the address {address}, from which {identity} was claimed")]
    NoPod {
        /// Where the call came from.
        address: IpAddr,
        /// Whose proof was shown.
        identity: Identity,
    },
    /// The Pod at the address is another's.
    #[error("{address} is the address of pod {pod}, which does not run as {identity}")]
    OtherAccount {
        /// Where the call came from.
        address: IpAddr,
        /// Whose address it is.
        pod: NamespacedName,
        /// Whose proof was shown.
        identity: Identity,
    },
    /// The token is bound to another Pod of the same account.
    #[error("the token is bound to pod {bound}, but {address} is the address of pod {pod}")]
    OtherPod {
        /// Where the call came from.
        address: IpAddr,
        /// Whose address it is.
        pod: NamespacedName,
        /// Whose token it is.
        bound: String,
    },
}

impl AttestError {
    /// Whether trying again may help without anything changing at the caller.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Token(ReviewError::Unavailable(_)))
    }
}

/// What a caller shows.
#[derive(Debug, Clone, Default)]
pub struct Shown<'a> {
    /// The identity of the verified client certificate of its connection.
    pub certificate: Option<&'a Identity>,
    /// Its bearer token.
    pub token: Option<&'a str>,
}

/// Attests a caller. The first proof shown counts, certificate before token (reference mtls 5.3); each also needs a
/// live Pod of the account at the caller's address, so that a stolen proof is of no use elsewhere.
pub async fn attest(
    hub: &Hub,
    reviewer: &dyn TokenReviewer,
    address: IpAddr,
    shown: Shown<'_>,
) -> Result<Peer, AttestError> {
    let snapshot = hub.snapshot();
    let config = snapshot.world.config();
    let trust_domain = config.trust_domain.clone();
    let domain = shown.certificate.map(|identity| identity.trust_domain().clone());
    let (identity, bound, proof) = match shown {
        Shown { certificate: Some(identity), .. } => {
            // A certificate of an alias is accepted as the same account; what is issued is of the own domain.
            if !config.is_own(identity.trust_domain()) {
                return Err(AttestError::Domain(identity.clone()));
            }
            (own(&trust_domain, identity.namespace(), identity.service_account())?, None, Proof::Certificate)
        }
        Shown { token: Some(token), .. } => {
            let reviewed = reviewer.review(token, TOKEN_AUDIENCE).await?;
            let identity = own(&trust_domain, &reviewed.namespace, &reviewed.service_account)?;
            (identity, reviewed.pod, Proof::Token)
        }
        _ => return Err(AttestError::Nothing),
    };
    let deadline = Instant::now() + POD_PATIENCE;
    let pod = hub.wait_for(deadline, |world| world.pod_at(address).cloned()).await;
    let Some(pod) = pod else { return Err(AttestError::NoPod { address, identity }) };
    if pod.name.namespace != identity.namespace() || pod.service_account != identity.service_account() {
        return Err(AttestError::OtherAccount { address, pod: pod.name.clone(), identity });
    }
    if let Some((name, uid)) = bound
        && (name != pod.name.name || uid != pod.uid)
    {
        return Err(AttestError::OtherPod { address, pod: pod.name.clone(), bound: name });
    }
    Ok(Peer { identity, domain, pod, address, proof, certificate: None })
}

fn own(domain: &maille_core::TrustDomain, namespace: &str, account: &str) -> Result<Identity, AttestError> {
    Identity::new(domain.clone(), namespace, account)
        .map_err(|_| AttestError::Account(format!("{namespace}/{account}")))
}
