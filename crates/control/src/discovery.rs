//! The discovery service: one delta stream per proxy.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use maille_core::Clock;
use maille_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use maille_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use maille_xds::serve_stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use crate::attest::{Peer, Shown, TokenReviewer, attest};
use crate::connection::{PeerCertificate, PeerInfo};
use crate::hub::Hub;
use crate::judge::{Judge, REVOKED, StreamEnd};
use crate::metrics::Metrics;
use crate::proxies::Proxies;
use crate::view::PeerView;

pub(crate) struct DiscoveryService {
    pub(crate) hub: Arc<Hub>,
    pub(crate) reviewer: Arc<dyn TokenReviewer>,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) judge: Arc<Judge>,
}

/// Attests the caller of a stream, by its certificate alone: a token is for getting a certificate. Gives the
/// certificate and the moment at which it ends, too.
pub(crate) async fn attest_stream<T>(
    request: &Request<T>,
    hub: &Hub,
    reviewer: &dyn TokenReviewer,
    clock: &dyn Clock,
    judge: &Judge,
) -> Result<(Peer, PeerCertificate, Instant), Status> {
    let info = request.extensions().get::<PeerInfo>().ok_or_else(|| Status::internal("no peer address"))?;
    let now = clock.now();
    let Some(certificate) = info.certificate.as_ref().filter(|c| c.not_after > now) else {
        return Err(Status::unauthenticated("show the certificate that IstioCertificateService issues"));
    };
    let revoked = certificate.revoked(&hub.snapshot().world).map(|reason| format!("{REVOKED}: {reason}"));
    if let Some(reason) = revoked.or_else(|| judge.refusal(certificate, now)) {
        tracing::warn!(target: "maille::audit", address = %info.address, reason, "stream refused");
        return Err(Status::unauthenticated(reason));
    }
    let shown = Shown { certificate: Some(&certificate.identity), token: None };
    let peer = attest(hub, reviewer, info.address, shown).await.map_err(|error| {
        tracing::warn!(target: "maille::audit", address = %info.address, %error, "stream refused");
        Status::unauthenticated("request authenticate failure")
    })?;
    let left = certificate.not_after.duration_since(now).unwrap_or_default();
    Ok((peer.on(certificate.clone()), certificate.clone(), Instant::now() + left))
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (reviewer, clock) = (self.reviewer.as_ref(), self.clock.as_ref());
        let (peer, certificate, expires) =
            attest_stream(&request, &self.hub, reviewer, clock, &self.judge).await?;
        let Some(record) = self.proxies.enter(&peer, Arc::clone(&self.clock)) else {
            return Err(Status::resource_exhausted("this pod has too many discovery streams"));
        };
        tracing::debug!(pod = %peer.pod().name, identity = %peer.identity(), "proxy connected");
        let (stopping, clock) = (self.stopping.clone(), Arc::clone(&self.clock));
        let end = StreamEnd::new(certificate, expires, stopping, &self.judge, clock);
        let view = PeerView::new(&self.hub, peer, end, record, Arc::clone(&self.metrics));
        // From here on the view is told when its pod ends; it may have ended just before.
        view.check()?;
        Ok(Response::new(Box::pin(serve_stream(request.into_inner(), view))))
    }
}
