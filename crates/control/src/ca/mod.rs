//! Istio's certificate service (reference mtls 5.2 to 5.4, CA-1 to CA-15).

mod impersonation;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use maille_core::{Clock, Identity};
use maille_pki::{
    Authority, CertificateRequest, DEFAULT_WORKLOAD_TTL, Issued, MAX_WORKLOAD_TTL, default_ttl, requested_ttl,
};
use maille_proto::ca::istio_certificate_service_server::IstioCertificateService;
use maille_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Response, Status};

use crate::attest::{Peer, Shown, TokenReviewer, attest};
use crate::audit::{AuditLog, Refusal};
use crate::connection::{PeerCertificate, PeerInfo};
use crate::hub::Hub;
use crate::judge::Judge;
use crate::metrics::Metrics;
use crate::proxies::Proxies;
use crate::rate::{Rate, RateLimit};
use crate::server::ControlPlane;

pub use impersonation::{AccountError, TrustedNodeAccounts};

/// Largest request: a CSR with an RSA-8192 key has about 4 KiB.
pub(crate) const MAX_CSR_REQUEST_BYTES: usize = 64 << 10;

/// The name of the one cluster there is, beside the empty one (CA-10; Istio's default cluster id).
const CLUSTER_ID: &str = "Kubernetes";

/// How long a Pod that a node's proxy acts for may be unknown: it can be faster than the watch.
const POD_PATIENCE: Duration = Duration::from_secs(2);

/// What callers are told whose proof does not hold (CA-2), and who may not act for others (CA-8).
const UNKNOWN_CALLER: &str = "request authenticate failure";
const MAY_NOT_ACT: &str = "request impersonation authentication failure";

/// How certificates are issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssueRules {
    /// Lifetime when none is asked for (`DEFAULT_WORKLOAD_CERT_TTL`).
    pub default_ttl: Duration,
    /// Longest lifetime that may be asked for (`MAX_WORKLOAD_CERT_TTL`).
    pub max_ttl: Duration,
    /// Who may act for the workloads of its node (`CA_TRUSTED_NODE_ACCOUNTS`).
    pub node_accounts: TrustedNodeAccounts,
}

impl IssueRules {
    /// The longest that a certificate may live.
    pub(crate) fn longest_ttl(&self) -> Duration {
        self.max_ttl.max(self.default_ttl)
    }
}

impl Default for IssueRules {
    fn default() -> Self {
        Self {
            default_ttl: DEFAULT_WORKLOAD_TTL,
            max_ttl: MAX_WORKLOAD_TTL,
            node_accounts: TrustedNodeAccounts::default(),
        }
    }
}

pub(crate) struct CertificateService {
    hub: Arc<Hub>,
    reviewer: Arc<dyn TokenReviewer>,
    authority: Arc<ArcSwapOption<Authority>>,
    rules: IssueRules,
    clock: Arc<dyn Clock>,
    limits: Limits,
    metrics: Arc<Metrics>,
    audit: Arc<AuditLog>,
    proxies: Arc<Proxies>,
    judge: Arc<Judge>,
}

/// How often may be asked. Most of the cost is the review of tokens, which the API server bears.
struct Limits {
    /// Of one Pod, known by its address: it asks once in hours, a crash-looping one every few seconds.
    pod: RateLimit,
    /// Of a Pod that asks for another identity, where node accounts are trusted at all: a node has some hundred Pods.
    node: RateLimit,
    /// Of all: a mesh whose proxies all renew at once is served within seconds.
    all: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pod: RateLimit::new(10, 0.5), node: RateLimit::new(250, 10.0), all: Rate::new(2000, 500.0) }
    }
}

impl CertificateService {
    pub(crate) fn new(control: &ControlPlane) -> Self {
        Self {
            hub: Arc::clone(&control.hub),
            reviewer: Arc::clone(&control.reviewer),
            authority: Arc::clone(&control.authority),
            rules: control.rules.clone(),
            clock: Arc::clone(&control.clock),
            limits: Limits::default(),
            metrics: Arc::clone(&control.metrics),
            audit: Arc::clone(&control.audit),
            proxies: Arc::clone(&control.proxies),
            judge: Arc::clone(&control.judge),
        }
    }

    /// Refuses what is too much. Tokens are not looked at before.
    fn admit(&self, address: IpAddr, request: &IstioCertificateRequest) -> Result<(), Status> {
        let now = Instant::now();
        let acts = !self.rules.node_accounts.is_empty() && impersonation::is_asked(request);
        let own = if acts { &self.limits.node } else { &self.limits.pod };
        let (who, rate) = if !own.admits(address, now) {
            ("this pod", own.to_string())
        } else if !self.limits.all.admits(now) {
            ("all pods", self.limits.all.to_string())
        } else {
            return Ok(());
        };
        self.metrics.rate_limited.inc();
        tracing::debug!(%address, who, "too many certificate requests");
        let text = format!("too many certificate requests of {who}: {rate} are answered; wait and try again");
        Err(Status::resource_exhausted(text))
    }

    async fn caller(
        &self,
        request: &Request<IstioCertificateRequest>,
        info: &PeerInfo,
    ) -> Result<Peer, Status> {
        let metadata = request.metadata();
        let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        if let Some(cluster) = text("clusterid").filter(|id| !id.is_empty() && *id != CLUSTER_ID) {
            return Err(self.refuse(
                info.address,
                None,
                None,
                &format!("cluster {cluster:?} is not known"),
                UNKNOWN_CALLER,
            ));
        }
        let authorization = text("authorization");
        let token = authorization.and_then(|value| {
            value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")).map(str::trim)
        });
        let now = self.clock.now();
        // A connection may outlive the certificate it was opened with. One that is believed no more proves nothing, but a
        // token may get another.
        let world = &self.hub.snapshot().world;
        let holds = |c: &&PeerCertificate| {
            c.not_after > now && c.revoked(world).is_none() && self.judge.refusal(c, now).is_none()
        };
        let certificate = info.certificate.as_ref().filter(holds);
        let shown = Shown { certificate: certificate.map(|c| &c.identity), token };
        attest(&self.hub, self.reviewer.as_ref(), info.address, shown).await.map_err(|error| {
            if error.is_temporary() {
                tracing::warn!(address = %info.address, %error, "certificate request cannot be judged");
                return Status::unavailable("the token cannot be reviewed now; try again");
            }
            self.refuse(info.address, None, None, &error.to_string(), UNKNOWN_CALLER)
        })
    }

    /// Whose certificate is asked for: the caller's own, or that of a workload of its node (CA-8).
    async fn subject(&self, peer: &Peer, request: &IstioCertificateRequest) -> Result<Identity, Status> {
        let accounts = &self.rules.node_accounts;
        let judge = |world: &_| impersonation::identity_for(accounts, world, peer, request);
        let mut judged = judge(&self.hub.snapshot().world);
        if judged.is_err() && accounts.has(peer.identity()) {
            let deadline = tokio::time::Instant::now() + POD_PATIENCE;
            let known = self.hub.wait_for(deadline, |world| judge(world).ok()).await;
            judged = known.map_or(judged, Ok);
        }
        let identity = judged
            .map_err(|reason| self.refuse(peer.address(), Some(peer), None, &reason, MAY_NOT_ACT))?
            .unwrap_or_else(|| peer.identity().clone());
        let snapshot = self.hub.snapshot();
        let config = snapshot.world.config();
        let is_own = |domain: &maille_core::TrustDomain| config.is_own(domain);
        // Neither who is revoked, nor through whom is.
        for of in [&identity, peer.identity()] {
            if let Some(reason) = snapshot.world.revocations().bars(of, is_own, self.clock.now()) {
                let address = peer.address();
                self.metrics.authentication_failures.inc();
                self.audit.refused(
                    Refusal { address, peer: Some(peer), identity: Some(&identity), reason: &reason },
                    self.clock.now(),
                );
                return Err(Status::permission_denied("this identity is revoked; nothing is issued to it"));
            }
        }
        Ok(identity)
    }

    /// The caller learns the kind of failure only, the audit log why (CA-2).
    fn refuse(
        &self,
        address: IpAddr,
        peer: Option<&Peer>,
        identity: Option<&Identity>,
        reason: &str,
        message: &'static str,
    ) -> Status {
        self.metrics.authentication_failures.inc();
        self.audit.refused(Refusal { address, peer, identity, reason }, self.clock.now());
        Status::unauthenticated(message)
    }

    fn issue(
        &self,
        peer: &Peer,
        identity: &Identity,
        request: &IstioCertificateRequest,
        now: SystemTime,
    ) -> Result<Issued, Status> {
        let refused = |status: Status| {
            let reason = status.message();
            let address = peer.address();
            self.audit.refused(Refusal { address, peer: Some(peer), identity: Some(identity), reason }, now);
            status
        };
        let csr = CertificateRequest::parse_pem(&request.csr).map_err(|error| {
            self.metrics.csr_errors.inc();
            refused(Status::invalid_argument(format!("CSR refused: {error}")))
        })?;
        let sign_error = |reason: &str| {
            self.metrics.sign_errors.inc();
            tracing::error!(%identity, reason, "certificate could not be signed");
            refused(Status::internal(format!("certificate could not be signed: {reason}")))
        };
        let authority = self.authority.load_full().ok_or_else(|| sign_error("the authority is not ready"))?;
        let default = default_ttl(self.rules.default_ttl, authority.chain_end(), now);
        let ttl = requested_ttl(request.validity_duration, default, self.rules.max_ttl)
            .map_err(|error| refused(Status::invalid_argument(error.to_string())))?;
        authority.issue(&csr, identity, ttl, now).map_err(|error| sign_error(&error.to_string()))
    }
}

impl CertificateService {
    async fn create(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csrs.inc();
        let info = request
            .extensions()
            .get::<PeerInfo>()
            .cloned()
            .ok_or_else(|| Status::internal("no peer address"))?;
        self.admit(info.address, request.get_ref())?;
        let peer = self.caller(&request, &info).await?;
        let identity = self.subject(&peer, request.get_ref()).await?;
        let now = self.clock.now();
        let issued = self.issue(&peer, &identity, request.get_ref(), now)?;
        self.audit.issued(&peer, &identity, &issued, now).map_err(|problem| {
            tracing::error!(%identity, problem, "certificate not handed out, since the audit log is required");
            Status::unavailable("the audit log cannot be written, and nothing is issued without it")
        })?;
        // Before anybody can use it: a rotation waits for whoever has one.
        self.proxies.certified(&peer, issued.not_after, now);
        self.metrics.issued.inc();
        Ok(Response::new(IstioCertificateResponse { cert_chain: issued.into_response() }))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let mut answer = self.create(request).await;
        // Proxies measure their clocks by it. The server's own is kept until the time that it says has come by again, which
        // is long after the clock was set back.
        if let Some(date) = date(self.clock.now()) {
            match &mut answer {
                Ok(response) => response.metadata_mut().insert("date", date),
                Err(status) => status.metadata_mut().insert("date", date),
            };
        }
        answer
    }
}

/// A time as in the header `date` (RFC 9110 section 5.6.7).
fn date(now: SystemTime) -> Option<MetadataValue<Ascii>> {
    let now = jiff::Timestamp::try_from(now).ok()?;
    let text = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now).ok()?;
    text.parse().ok()
}
