//! Reports to the control plane, on the connection that facts come by: what the proxy saw, every few seconds, and what it
//! has in use, at once when that changes.
//!
//! While the control plane is away nothing is taken from telemetry, so that its bounded aggregates go on growing there
//! and the first report after an outage covers it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::stream;
use maille_proto::flows::flows_client::FlowsClient;
use maille_proto::flows::{Flow, FlowReport, ProxyState};
use maille_telemetry::Registry;
use maille_xds::Backoff;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::discovery::ChannelWatch;
use super::in_use::{InUse, News, unix_ms};

/// How often a report is made.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked whether a file has changed that nobody tells of.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Flows per message, to stay far below the 4 MB that gRPC receivers take.
const FLOWS_PER_REPORT: usize = 1000;

/// Reports for ever.
pub(crate) async fn run(
    telemetry: Arc<Registry>,
    mut in_use: InUse,
    news: Arc<News>,
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
            let mut feed = Feed { sender, in_use: &mut in_use, sent: None };
            tokio::select! {
                outcome = service.report(reports) => match outcome {
                    Ok(_) => debug!("the control plane ended the flow reports"),
                    Err(status) => debug!(code = ?status.code(), error = status.message(), "flow reports ended"),
                },
                () = feed.run(&telemetry, &news, &mut unsent) => {}
                // The facts' stream is gone, and this one's connection with it; the next one is waited for above.
                _ = connected.wait_for(|is_up| !*is_up) => {
                    backoff.reset();
                    continue;
                }
            }
        }
        tokio::time::sleep(backoff.next_wait(rand::random())).await;
    }
}

/// What goes into one stream of reports.
struct Feed<'a> {
    sender: mpsc::Sender<FlowReport>,
    in_use: &'a mut InUse,
    /// The state that this stream was told last.
    sent: Option<ProxyState>,
}

impl Feed<'_> {
    /// Ends only when nobody takes reports any more.
    async fn run(&mut self, telemetry: &Registry, news: &News, unsent: &mut Vec<Flow>) {
        let mut news = news.subscribe();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = look.tick() => {}
                Ok(()) = news.changed() => {}
            }
            let is_due = reported.is_none_or(|last| last.elapsed() + LOOK_EVERY / 2 >= REPORT_EVERY);
            let state = self.in_use.state().await;
            if let Some(state) = state
                && (is_due || self.sent.as_ref() != Some(&state))
                && self.tell(state).await.is_none()
            {
                return;
            }
            if !is_due {
                continue;
            }
            reported = Some(Instant::now());
            if unsent.is_empty() {
                *unsent = telemetry.take_flows();
            }
            while !unsent.is_empty() {
                let Ok(permit) = self.sender.reserve().await else { return };
                let rest = unsent.split_off(unsent.len().min(FLOWS_PER_REPORT));
                permit.send(FlowReport { flows: std::mem::replace(unsent, rest), state: None });
            }
        }
    }

    /// `None` if nobody takes it any more.
    async fn tell(&mut self, state: ProxyState) -> Option<()> {
        let permit = self.sender.reserve().await.ok()?;
        let now = unix_ms(SystemTime::now());
        permit.send(FlowReport {
            flows: Vec::new(),
            state: Some(ProxyState { clock_ms: now, ..state.clone() }),
        });
        self.sent = Some(state);
        Some(())
    }
}
