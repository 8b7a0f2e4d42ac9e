//! Istio's certificate service (reference mtls 5.2 to 5.4, CA-1 to CA-10).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use maille_core::Clock;
use maille_pki::{
    Authority, CertificateRequest, DEFAULT_WORKLOAD_TTL, Issued, MAX_WORKLOAD_TTL, requested_ttl,
};
use maille_proto::ca::istio_certificate_service_server::IstioCertificateService;
use maille_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::{Code, Request, Response, Status};

use crate::attest::{Peer, Shown, TokenReviewer, attest};
use crate::connection::PeerInfo;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::rate::RateLimit;

/// Largest request: a CSR with an RSA-8192 key has about 4 KiB.
pub(crate) const MAX_CSR_REQUEST_BYTES: usize = 64 << 10;

/// The name of the one cluster there is, beside the empty one (CA-10; Istio's default cluster id).
const CLUSTER_ID: &str = "Kubernetes";

/// How certificates are issued.
#[derive(Debug, Clone, Copy)]
pub struct IssueRules {
    /// Lifetime when none is asked for.
    pub default_ttl: Duration,
    /// Longest lifetime that may be asked for.
    pub max_ttl: Duration,
}

impl Default for IssueRules {
    fn default() -> Self {
        Self { default_ttl: DEFAULT_WORKLOAD_TTL, max_ttl: MAX_WORKLOAD_TTL }
    }
}

pub(crate) struct CertificateService {
    pub(crate) hub: Arc<Hub>,
    pub(crate) reviewer: Arc<dyn TokenReviewer>,
    pub(crate) authority: Arc<ArcSwapOption<Authority>>,
    pub(crate) rules: IssueRules,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limit: RateLimit,
    pub(crate) metrics: Arc<Metrics>,
}

impl CertificateService {
    /// Requests at once and per second from one address: a proxy asks once in hours, a
    /// crash-looping one every few seconds.
    pub(crate) fn rate_limit() -> RateLimit {
        RateLimit::new(10, 0.5)
    }

    async fn caller(&self, request: &Request<IstioCertificateRequest>) -> Result<Peer, Status> {
        let info =
            request.extensions().get::<PeerInfo>().ok_or_else(|| Status::internal("no peer address"))?;
        let metadata = request.metadata();
        let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        if let Some(cluster) = text("clusterid").filter(|id| !id.is_empty() && *id != CLUSTER_ID) {
            let reason = format!("cluster {cluster:?} is not known");
            return Err(self.refuse(info.address, &reason, "request authenticate failure"));
        }
        let authorization = text("authorization");
        let token = authorization.and_then(|value| {
            value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")).map(str::trim)
        });
        let now = self.clock.now();
        // A connection may outlive the certificate it was opened with.
        let certificate = info.certificate.as_ref().filter(|c| c.not_after > now);
        let shown = Shown { certificate: certificate.map(|c| &c.identity), token };
        let peer = match attest(&self.hub, self.reviewer.as_ref(), info.address, shown).await {
            Ok(peer) => peer,
            Err(error) if error.is_temporary() => {
                tracing::warn!(address = %info.address, %error, "certificate request cannot be judged");
                return Err(Status::unavailable("the token cannot be reviewed now; try again"));
            }
            Err(error) => {
                return Err(self.refuse(info.address, &error.to_string(), "request authenticate failure"));
            }
        };
        // Nobody acts for other workloads' identities here (CA-8).
        let metadata = request.get_ref().metadata.as_ref();
        if metadata.is_some_and(|m| m.fields.contains_key("ImpersonatedIdentity")) {
            let reason = format!("{} asked for another identity", peer.identity());
            return Err(self.refuse(info.address, &reason, "request impersonation authentication failure"));
        }
        Ok(peer)
    }

    /// The caller learns the kind of failure only, the audit log why (CA-2).
    fn refuse(&self, address: IpAddr, reason: &str, message: &'static str) -> Status {
        self.metrics.authentication_failures.inc();
        tracing::warn!(target: "maille::audit", %address, reason, "certificate refused");
        Status::unauthenticated(message)
    }

    fn issue(&self, peer: &Peer, request: &IstioCertificateRequest) -> Result<Issued, Status> {
        let csr = CertificateRequest::parse_pem(&request.csr).map_err(|error| {
            self.metrics.csr_errors.inc();
            Status::invalid_argument(format!("CSR refused: {error}"))
        })?;
        let ttl = requested_ttl(request.validity_duration, self.rules.default_ttl, self.rules.max_ttl)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let sign_error = |reason: &str| {
            self.metrics.sign_errors.inc();
            tracing::error!(identity = %peer.identity(), reason, "certificate could not be signed");
            Status::internal(format!("certificate could not be signed: {reason}"))
        };
        let authority = self.authority.load_full().ok_or_else(|| sign_error("the authority is not ready"))?;
        authority
            .issue(&csr, peer.identity(), ttl, self.clock.now())
            .map_err(|error| sign_error(&error.to_string()))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csrs.inc();
        if let Some(info) = request.extensions().get::<PeerInfo>()
            && !self.limit.admits(info.address, Instant::now())
        {
            self.metrics.rate_limited.inc();
            return Err(Status::new(
                Code::ResourceExhausted,
                "too many certificate requests; wait and try again",
            ));
        }
        let peer = self.caller(&request).await?;
        let issued = self.issue(&peer, request.get_ref())?;
        self.metrics.issued.inc();
        tracing::info!(
            target: "maille::audit",
            identity = %peer.identity(),
            pod = %peer.pod().name,
            serial = %issued.serial,
            not_after_ms = crate::proxies::millis(issued.not_after),
            address = %peer.address(),
            proof = %peer.proof(),
            "certificate issued"
        );
        Ok(Response::new(IstioCertificateResponse { cert_chain: issued.into_response() }))
    }
}
