//! What is known of the mesh: asked for when somebody looks, once for all who look, kept when nobody answers.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use maille_core::{ROOT_NAMESPACE, ports};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::time::Instant;

use crate::flows::{self, Flow};
use crate::objects::Inventory;
use crate::text::{REASON, clean};

/// An answer is new for so long.
const FRESH: Duration = Duration::from_secs(1);
/// What there is changes less often than who talks.
const INVENTORY_FRESH: Duration = Duration::from_secs(5);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a viewer waits for a new answer when there is an old one to show.
const GRACE: Duration = Duration::from_millis(1500);
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
    /// Why the inventory is old or empty.
    pub(crate) no_inventory: Option<String>,
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
    asking: Arc<Mutex<Asking>>,
    view: watch::Sender<View>,
}

/// Who asks, and when it was asked last.
struct Asking {
    upstream: Arc<dyn Upstream>,
    asked: Option<Instant>,
    inventory: Arc<Inventory>,
    no_inventory: Option<String>,
    inventory_asked: Option<Instant>,
}

impl Feed {
    pub(crate) fn new(upstream: Arc<dyn Upstream>) -> Self {
        let asking = Asking {
            upstream,
            asked: None,
            inventory: Arc::default(),
            no_inventory: None,
            inventory_asked: None,
        };
        Self { asking: Arc::new(Mutex::new(asking)), view: watch::Sender::default() }
    }

    /// What is known, not older than a second if the API answers. One that hangs costs a viewer a moment, and what
    /// it says late is for the next.
    pub(crate) async fn view(&self) -> View {
        let mut views = self.view.subscribe();
        let has_old = views.borrow().known.is_some();
        // Held until the answer is there: nobody asks beside it.
        let is_asked = match Arc::clone(&self.asking).try_lock_owned() {
            Ok(asking) if asking.asked.is_some_and(|at| at.elapsed() < FRESH) => false,
            Ok(asking) => {
                tokio::spawn(round(asking, self.view.clone()));
                true
            }
            Err(_) => true,
        };
        if is_asked {
            let patience = if has_old { GRACE } else { 2 * PATIENCE };
            let _ = tokio::time::timeout(patience, views.changed()).await;
        }
        views.borrow().clone()
    }
}

async fn round(mut asking: OwnedMutexGuard<Asking>, view: watch::Sender<View>) {
    let answer = asking.ask().await;
    asking.asked = Some(Instant::now());
    view.send_modify(|view| {
        view.round += 1;
        view.now_ms = now_ms();
        match answer {
            Ok(known) => {
                view.known = Some(Arc::new(known));
                view.problem = None;
            }
            Err(problem) => {
                tracing::debug!(problem, "no news of the mesh");
                view.problem = Some(clean(&problem, REASON));
            }
        }
    });
}

impl Asking {
    async fn ask(&mut self) -> Result<Known, String> {
        if self.inventory_asked.is_none_or(|at| at.elapsed() >= INVENTORY_FRESH) {
            match self.list().await {
                Ok(inventory) => {
                    self.inventory = Arc::new(inventory);
                    self.no_inventory = None;
                }
                // Who talks to whom can be told without.
                Err(problem) => self.no_inventory = Some(clean(&problem, REASON)),
            }
            self.inventory_asked = Some(Instant::now());
        }
        let both = async {
            futures::try_join!(self.upstream.get(flows_path("")), self.upstream.get(flows_path(RECENT)))
        };
        let (all, recent) = within("the control plane", both).await?;
        Ok(Known {
            flows: flows::read(&all)?,
            recent: flows::read(&recent)?,
            inventory: Arc::clone(&self.inventory),
            no_inventory: self.no_inventory.clone(),
            at_ms: now_ms(),
        })
    }

    async fn list(&self) -> Result<Inventory, String> {
        let get = |path: &str| self.upstream.get(path.to_owned());
        let lists = async {
            futures::try_join!(get("/api/v1/pods"), get("/apis/apps/v1/deployments"), get("/api/v1/services"))
        };
        let (pods, deployments, services) = within("the API", lists).await?;
        Inventory::read(&pods, &deployments, &services)
    }
}

async fn within<T>(who: &str, answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = |_| Err(format!("{who} did not answer within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(late)
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
