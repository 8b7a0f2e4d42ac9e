//! The discovery service: one delta stream per proxy.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use maille_core::Clock;
use maille_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use maille_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use maille_xds::serve_stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use crate::attest::{Peer, Shown, TokenReviewer, attest};
use crate::connection::PeerInfo;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::proxies::Proxies;
use crate::view::PeerView;

/// How a stream begins to say that the certificate is revoked by which it was opened: the proxy then asks for another at
/// once.
pub(crate) const REVOKED: &str = "certificate revoked";

pub(crate) struct DiscoveryService {
    pub(crate) hub: Arc<Hub>,
    pub(crate) reviewer: Arc<dyn TokenReviewer>,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Waits until a stream has to end whatever happens on it: its certificate ends, or the control plane stops.
#[derive(Debug)]
pub(crate) struct StreamEnd {
    /// When the proof ends with which the stream was opened.
    pub(crate) expires: Instant,
    pub(crate) stopping: watch::Receiver<bool>,
    /// Why the certificate was revoked, if it was.
    pub(crate) revoked: Option<String>,
}

/// How long a proxy whose certificate is revoked hears of that on its stream: it then knows that it needs another.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl StreamEnd {
    /// The stream has to end, since the certificate is revoked that it stands on.
    pub(crate) fn revoke(&mut self, reason: String) {
        if self.revoked.is_none() {
            self.expires = self.expires.min(Instant::now() + LAST_WORDS);
            self.revoked = Some(reason);
        }
    }

    /// The status to end with. Cancel safe.
    pub(crate) async fn wait(&mut self) -> Status {
        tokio::select! {
            () = tokio::time::sleep_until(self.expires) => {
                match &self.revoked {
                    Some(reason) => Status::unauthenticated(format!("{REVOKED}: {reason}")),
                    None => Status::unauthenticated("certificate has expired; dial again with the renewed one"),
                }
            }
            // An error is a control plane that is gone.
            _ = self.stopping.wait_for(|stop| *stop) => Status::unavailable("the control plane is stopping"),
        }
    }
}

/// Attests the caller of a stream, by its certificate alone: a token is for getting a certificate. Gives the
/// moment at which the certificate ends, too.
pub(crate) async fn attest_stream<T>(
    request: &Request<T>,
    hub: &Hub,
    reviewer: &dyn TokenReviewer,
    clock: &dyn Clock,
) -> Result<(Peer, Instant), Status> {
    let info = request.extensions().get::<PeerInfo>().ok_or_else(|| Status::internal("no peer address"))?;
    let now = clock.now();
    let Some(certificate) = info.certificate.as_ref().filter(|c| c.not_after > now) else {
        return Err(Status::unauthenticated("show the certificate that IstioCertificateService issues"));
    };
    if let Some(reason) = certificate.revoked(&hub.snapshot().world) {
        tracing::warn!(target: "maille::audit", address = %info.address, reason, "stream refused");
        return Err(Status::unauthenticated(format!("{REVOKED}: {reason}")));
    }
    let shown = Shown { certificate: Some(&certificate.identity), token: None };
    let peer = attest(hub, reviewer, info.address, shown).await.map_err(|error| {
        tracing::warn!(target: "maille::audit", address = %info.address, %error, "stream refused");
        Status::unauthenticated("request authenticate failure")
    })?;
    let left = certificate.not_after.duration_since(now).unwrap_or_default();
    Ok((peer.on(certificate.clone()), Instant::now() + left))
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (peer, expires) =
            attest_stream(&request, &self.hub, self.reviewer.as_ref(), self.clock.as_ref()).await?;
        let Some(record) = self.proxies.enter(&peer, Arc::clone(&self.clock)) else {
            return Err(Status::resource_exhausted("this pod has too many discovery streams"));
        };
        tracing::debug!(pod = %peer.pod().name, identity = %peer.identity(), "proxy connected");
        let end = StreamEnd { expires, stopping: self.stopping.clone(), revoked: None };
        let view = PeerView::new(&self.hub, peer, end, record, Arc::clone(&self.metrics));
        // From here on the view is told when its pod ends; it may have ended just before.
        view.check()?;
        Ok(Response::new(Box::pin(serve_stream(request.into_inner(), view))))
    }
}
