//! What is known of the mesh: asked for when somebody looks, once for all who look, kept when nobody answers.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use maille_core::{ROOT_NAMESPACE, ports};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::flows::{self, Flow};
use crate::objects::Inventory;
use crate::text::{REASON, clean};

/// An answer is new for so long.
const FRESH: Duration = Duration::from_secs(1);
/// What there is changes less often than who talks.
const INVENTORY_FRESH: Duration = Duration::from_secs(5);
/// How long one round of questions may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The window of which rates are told, and what of it the control plane answers: it keeps slots of ten seconds.
pub(crate) const RECENT_S: f64 = 65.0;
const RECENT: &str = "since=60s";

/// Largest answer that an [`Upstream`] need read.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The Kubernetes API, as far as this page asks it.
pub trait Upstream: Send + Sync + 'static {
    /// The body of a successful GET of `path`; otherwise what went wrong, in a sentence for people.
    fn get(&self, path: String) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// What was known at one moment.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) flows: Vec<Flow>,
    /// The same flows with their counts of the last [`RECENT_S`] seconds.
    pub(crate) recent: Vec<Flow>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) at_ms: u64,
}

/// What is shown: the last that was known, and what stands in the way of knowing more.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) known: Option<Arc<Known>>,
    pub(crate) problem: Option<String>,
    pub(crate) now_ms: u64,
    /// Counts the rounds of questions: the same number is the same view.
    pub(crate) round: u64,
}

/// One poll for all viewers.
pub(crate) struct Feed {
    upstream: Arc<dyn Upstream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: Option<Arc<Known>>,
    problem: Option<String>,
    asked: Option<Instant>,
    /// When the last answer was shown first.
    shown_ms: u64,
    round: u64,
    inventory: Arc<Inventory>,
    inventory_asked: Option<Instant>,
}

impl Feed {
    pub(crate) fn new(upstream: Arc<dyn Upstream>) -> Self {
        Self { upstream, state: Mutex::default() }
    }

    /// What is known, not older than a second if the API answers.
    pub(crate) async fn view(&self) -> View {
        // Whoever comes while another asks waits for that answer.
        let mut state = self.state.lock().await;
        if state.asked.is_none_or(|at| at.elapsed() >= FRESH) {
            let answer = tokio::time::timeout(PATIENCE, self.ask(&mut state)).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
            state.asked = Some(Instant::now());
            state.shown_ms = now_ms();
            state.round += 1;
            match answer {
                Ok(known) => {
                    state.known = Some(Arc::new(known));
                    state.problem = None;
                }
                Err(problem) => {
                    tracing::debug!(problem, "no news of the mesh");
                    state.problem = Some(clean(&problem, REASON));
                }
            }
        }
        View {
            known: state.known.clone(),
            problem: state.problem.clone(),
            now_ms: state.shown_ms,
            round: state.round,
        }
    }

    async fn ask(&self, state: &mut State) -> Result<Known, String> {
        if state.inventory_asked.is_none_or(|at| at.elapsed() >= INVENTORY_FRESH) {
            let get = |path: &str| self.upstream.get(path.to_owned());
            let (pods, deployments, services) = futures::try_join!(
                get("/api/v1/pods"),
                get("/apis/apps/v1/deployments"),
                get("/api/v1/services")
            )?;
            state.inventory = Arc::new(Inventory::read(&pods, &deployments, &services)?);
            state.inventory_asked = Some(Instant::now());
        }
        let (all, recent) =
            futures::try_join!(self.upstream.get(flows_path("")), self.upstream.get(flows_path(RECENT)))?;
        Ok(Known {
            flows: flows::read(&all)?,
            recent: flows::read(&recent)?,
            inventory: Arc::clone(&state.inventory),
            at_ms: now_ms(),
        })
    }
}

/// Through the API's proxy of Services, as everyone without a way into the mesh asks the control plane.
fn flows_path(query: &str) -> String {
    let question = if query.is_empty() { "" } else { "?" };
    let port = ports::CONTROL_MONITORING;
    format!("/api/v1/namespaces/{ROOT_NAMESPACE}/services/istiod:{port}/proxy/flows{question}{query}")
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
