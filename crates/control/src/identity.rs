//! What proxies ask the authority for beside certificates: JWT-SVIDs (SPIFFE JWT-SVID standard).

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwapOption;
use maille_core::{Clock, Identity};
use maille_pki::{Error, JWT_TTL, JwtKeys};
use maille_proto::identity::identity_server::Identity as IdentityRpc;
use maille_proto::identity::{MintJwtSvidRequest, MintJwtSvidResponse};
use tonic::{Request, Response, Status};

use crate::attest::TokenReviewer;
use crate::connection::PeerInfo;
use crate::discovery::attest_stream;
use crate::hub::Hub;
use crate::judge::Judge;
use crate::metrics::Metrics;
use crate::rate::RateLimit;
use crate::server::ControlPlane;

/// Largest request: 16 audiences of 2048 bytes.
pub(crate) const MAX_MINT_REQUEST_BYTES: usize = 64 << 10;

pub(crate) struct IdentityService {
    hub: Arc<Hub>,
    reviewer: Arc<dyn TokenReviewer>,
    keys: Arc<ArcSwapOption<JwtKeys>>,
    clock: Arc<dyn Clock>,
    limit: RateLimit,
    metrics: Arc<Metrics>,
    judge: Arc<Judge>,
}

impl IdentityService {
    pub(crate) fn new(control: &ControlPlane) -> Self {
        Self {
            hub: Arc::clone(&control.hub),
            reviewer: Arc::clone(&control.reviewer),
            keys: Arc::clone(&control.jwt_keys),
            clock: Arc::clone(&control.clock),
            // A proxy keeps tokens for as long as they hold; each audience of its workload is asked for anew.
            limit: RateLimit::new(50, 10.0),
            metrics: Arc::clone(&control.metrics),
            judge: Arc::clone(&control.judge),
        }
    }

    fn mint(
        &self,
        identity: &Identity,
        audiences: &[String],
        now: SystemTime,
    ) -> Result<(String, SystemTime), Status> {
        let unavailable = || Status::unavailable("there is no key for JWT-SVIDs yet; try again");
        let keys = self.keys.load_full().ok_or_else(unavailable)?;
        let key = keys.signing(now).ok_or_else(unavailable)?;
        key.mint(identity, audiences, now, JWT_TTL).map_err(|error| match error {
            Error::Audience(_) => Status::invalid_argument(error.to_string()),
            error => {
                tracing::error!(%identity, %error, "JWT-SVID could not be signed");
                Status::internal("the JWT-SVID could not be signed")
            }
        })
    }
}

#[tonic::async_trait]
impl IdentityRpc for IdentityService {
    async fn mint_jwt_svid(
        &self,
        request: Request<MintJwtSvidRequest>,
    ) -> Result<Response<MintJwtSvidResponse>, Status> {
        if let Some(info) = request.extensions().get::<PeerInfo>()
            && !self.limit.admits(info.address, Instant::now())
        {
            self.metrics.rate_limited.inc();
            let text =
                format!("too many JWT-SVIDs for this pod: {} are made; wait and try again", self.limit);
            return Err(Status::resource_exhausted(text));
        }
        let (reviewer, clock) = (self.reviewer.as_ref(), self.clock.as_ref());
        let (peer, ..) = attest_stream(&request, &self.hub, reviewer, clock, &self.judge).await?;
        let identity = peer.identity();
        let now = self.clock.now();
        let snapshot = self.hub.snapshot();
        let is_own = |domain: &maille_core::TrustDomain| snapshot.world.config().is_own(domain);
        if let Some(reason) = snapshot.world.revocations().bars(identity, is_own, now) {
            tracing::warn!(target: "maille::audit", %identity, address = %peer.address(), reason, "JWT-SVID refused");
            return Err(Status::permission_denied("this identity is revoked; nothing is issued to it"));
        }
        let audiences = request.into_inner().audience;
        let (token, expires) = self.mint(identity, &audiences, now)?;
        self.metrics.jwt_svids.inc();
        // Whose and for whom, never the token.
        tracing::info!(
            target: "maille::audit", %identity, pod = %peer.pod().name, address = %peer.address(), ?audiences, "JWT-SVID issued"
        );
        let expires_s = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(Response::new(MintJwtSvidResponse { token, expires_s }))
    }
}
