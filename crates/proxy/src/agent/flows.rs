//! Reports what the proxy saw to the control plane, every few seconds, on the connection that facts come by.
//!
//! While the control plane is away nothing is taken from telemetry, so that its bounded aggregates go on growing there
//! and the first report after an outage covers it.

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use maille_proto::flows::flows_client::FlowsClient;
use maille_proto::flows::{Flow, FlowReport};
use maille_telemetry::Registry;
use maille_xds::Backoff;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::discovery::ChannelWatch;

/// How often a report is made.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// Flows per message, to stay far below the 4 MB that gRPC receivers take.
const FLOWS_PER_REPORT: usize = 1000;

/// Reports for ever.
pub(crate) async fn run(
    telemetry: Arc<Registry>,
    channel: ChannelWatch,
    mut connected: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    let mut unsent: Vec<Flow> = Vec::new();
    loop {
        if connected.wait_for(|is_up| *is_up).await.is_err() {
            return;
        }
        let current = channel.borrow().clone();
        if let Some(current) = current {
            let (sender, receiver) = mpsc::channel::<FlowReport>(4);
            let reports = stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.map(|report| (report, receiver))
            });
            let mut service = FlowsClient::new(current);
            tokio::select! {
                outcome = service.report(reports) => match outcome {
                    Ok(_) => debug!("the control plane ended the flow reports"),
                    Err(status) => debug!(code = ?status.code(), error = status.message(), "flow reports ended"),
                },
                () = feed(&telemetry, &sender, &mut unsent) => {}
                // The facts' stream is gone, and this one's connection with it.
                _ = connected.wait_for(|is_up| !*is_up) => backoff.reset(),
            }
        }
        tokio::time::sleep(backoff.next_wait(rand::random())).await;
    }
}

/// Ends only when nobody takes reports any more.
async fn feed(telemetry: &Registry, sender: &mpsc::Sender<FlowReport>, unsent: &mut Vec<Flow>) {
    let mut tick = interval(REPORT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if unsent.is_empty() {
            *unsent = telemetry.take_flows();
        }
        while !unsent.is_empty() {
            let Ok(permit) = sender.reserve().await else { return };
            let rest = unsent.split_off(unsent.len().min(FLOWS_PER_REPORT));
            permit.send(FlowReport { flows: std::mem::replace(unsent, rest), state: None });
        }
    }
}
