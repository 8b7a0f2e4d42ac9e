use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use maille_core::Clock;
use maille_proto::flows::flows_server::Flows;
use maille_proto::flows::{Flow, FlowReport, FlowReportSummary, Peer as FlowPeer, Reporter};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::RefusalLog;
use super::store::{FlowStore, bounded};
use crate::attest::{Peer, TokenReviewer};
use crate::discovery::attest_stream;
use crate::hub::Hub;
use crate::judge::{Judge, StreamEnd};
use crate::metrics::Metrics;
use crate::proxies::{Proxies, millis};
use crate::world::{Pod, World};

/// Largest report.
pub(crate) const MAX_REPORT_BYTES: usize = 1 << 20;
/// Flows taken of one report; a proxy sends what changed in a few seconds.
const MAX_FLOWS_PER_REPORT: usize = 2048;

pub(crate) struct FlowService {
    pub(crate) hub: Arc<Hub>,
    pub(crate) reviewer: Arc<dyn TokenReviewer>,
    pub(crate) store: Arc<Mutex<FlowStore>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) refusals: Arc<RefusalLog>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) judge: Arc<Judge>,
}

#[tonic::async_trait]
impl Flows for FlowService {
    async fn report(
        &self,
        request: Request<Streaming<FlowReport>>,
    ) -> Result<Response<FlowReportSummary>, Status> {
        let (reviewer, clock) = (self.reviewer.as_ref(), self.clock.as_ref());
        let (peer, certificate, expires) =
            attest_stream(&request, &self.hub, reviewer, clock, &self.judge).await?;
        let mut reports = request.into_inner();
        let (stopping, clock) = (self.stopping.clone(), Arc::clone(&self.clock));
        let mut end = StreamEnd::new(certificate, expires, stopping, &self.judge, clock);
        let mut received = 0;
        loop {
            let report = tokio::select! {
                report = reports.message() => report?,
                status = end.wait() => return Err(status),
            };
            let Some(report) = report else { break };
            let snapshot = self.hub.snapshot();
            if !peer.still_holds(&snapshot.world) {
                return Err(Status::permission_denied("the pod of this proxy is gone"));
            }
            if let Some(reason) = peer.revoked(&snapshot.world) {
                end.revoke(&reason);
            }
            self.metrics.flow_reports.inc();
            let now = self.clock.now();
            let now_ms = millis(now);
            if let Some(state) = report.state {
                self.proxies.note(&peer, state, now, &snapshot.world);
            }
            let flows = report.flows.into_iter().take(MAX_FLOWS_PER_REPORT);
            let flows: Vec<Flow> =
                flows.filter_map(|flow| complete(flow, &peer, &snapshot.world)).map(bounded).collect();
            self.log_refusals(&flows);
            let mut store = self.store.lock();
            for flow in flows {
                store.record(flow, now_ms);
                received += 1;
            }
        }
        Ok(Response::new(FlowReportSummary { received }))
    }
}

impl FlowService {
    /// Lines for people, since a refused caller is seen by the refusing proxy only.
    fn log_refusals(&self, flows: &[Flow]) {
        let now = Instant::now();
        for flow in flows {
            let (count, line) = self.refusals.note(flow, now);
            self.metrics.tls_refusals.add(count);
            if let Some(line) = line {
                tracing::warn!(target: "maille::tls", "{line}");
            }
        }
    }
}

/// Puts who reported where it belongs, whatever the report says of itself, and fills in what the world knows of
/// the other end. A report from neither end is none.
fn complete(mut flow: Flow, reporter: &Peer, world: &World) -> Option<Flow> {
    let own = FlowPeer {
        uid: reporter.pod().name.to_string(),
        namespace: reporter.pod().name.namespace.clone(),
        workload_name: reporter.pod().workload_name.clone(),
        principal: reporter.identity().to_string(),
        address: reporter.address().to_string(),
        service: String::new(),
    };
    let source = flow.source.take().unwrap_or_default();
    let destination = flow.destination.take().unwrap_or_default();
    let (source, destination) = match flow.reporter() {
        Reporter::Source => (own, known(destination, world)),
        Reporter::Destination => (known(source, world), FlowPeer { service: destination.service, ..own }),
        Reporter::Unspecified => return None,
    };
    flow.source = Some(source);
    flow.destination = Some(destination);
    Some(flow)
}

fn known(peer: FlowPeer, world: &World) -> FlowPeer {
    if !peer.workload_name.is_empty() {
        return peer;
    }
    let pod = || world.pod_at(peer.address.parse::<IpAddr>().ok()?.to_canonical()).map(AsRef::as_ref);
    match pod() {
        Some(Pod { name, workload_name, .. }) => FlowPeer {
            uid: name.to_string(),
            namespace: name.namespace.clone(),
            workload_name: workload_name.clone(),
            ..peer
        },
        None => peer,
    }
}
