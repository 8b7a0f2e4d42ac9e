//! All key sets that are wanted, kept fresh.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::fetch::Fetcher;
use crate::world::{Event, KeySource};

/// Sources at once. Those that are there keep their places.
const MAX_SOURCES: usize = 512;

/// Fetches at once.
const MAX_FETCHES: usize = 32;

/// When key sets are fetched.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// After a fetch that succeeded.
    pub refresh: Duration,
    /// After the first that failed; twice as long after each further one.
    pub retry: Duration,
    /// But no longer than this.
    pub retry_at_most: Duration,
    /// How long a set stays in force while it cannot be fetched anew.
    pub keep: Duration,
}

impl Default for Pace {
    /// Istio's refresh and end; retries begin sooner, since a provider that starts with the mesh is soon there.
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(20 * 60),
            retry: Duration::from_secs(2),
            retry_at_most: Duration::from_secs(5 * 60),
            keep: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// Fetches the key sets that are wanted, each source once for all, and tells the world. A set that cannot be fetched
/// anew stays in force. Dropping it ends all fetches.
#[derive(Debug)]
pub struct KeyStore {
    wanted: watch::Sender<BTreeMap<KeySource, Duration>>,
    task: AbortHandle,
}

impl KeyStore {
    /// Starts with nothing wanted. Must be called within a tokio runtime.
    pub fn spawn(fetcher: Fetcher, pace: Pace, events: mpsc::Sender<Event>) -> Self {
        let (wanted, sources) = watch::channel(BTreeMap::new());
        let shared = Arc::new(Shared { fetcher, pace, events, places: Semaphore::new(MAX_FETCHES) });
        Self { wanted, task: tokio::spawn(run(shared, sources)).abort_handle() }
    }

    /// Says which sources are wanted from now on, and how long each fetch of one may take.
    pub fn wanted(&self, sources: BTreeMap<KeySource, Duration>) {
        self.wanted.send_if_modified(|known| {
            let changes = *known != sources;
            *known = sources;
            changes
        });
    }

    /// Wants what the world's policies name, until there is no world any more.
    pub async fn follow(&self, mut sources: watch::Receiver<BTreeMap<KeySource, Duration>>) {
        loop {
            let now = sources.borrow_and_update().clone();
            self.wanted(now);
            if sources.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for KeyStore {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shared {
    fetcher: Fetcher,
    pace: Pace,
    events: mpsc::Sender<Event>,
    places: Semaphore,
}

/// A source that is kept; dropping it ends that.
struct Kept {
    task: AbortHandle,
    limit: watch::Sender<Duration>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(shared: Arc<Shared>, mut sources: watch::Receiver<BTreeMap<KeySource, Duration>>) {
    let mut kept: BTreeMap<KeySource, Kept> = BTreeMap::new();
    loop {
        let wanted = sources.borrow_and_update().clone();
        kept.retain(|source, _| wanted.contains_key(source));
        let mut refused = Vec::new();
        for (source, limit) in wanted {
            if let Some(known) = kept.get(&source) {
                known.limit.send_if_modified(|known| std::mem::replace(known, limit) != limit);
            } else if kept.len() < MAX_SOURCES {
                let (sender, receiver) = watch::channel(limit);
                let task = tokio::spawn(keep(shared.clone(), source.clone(), receiver)).abort_handle();
                kept.insert(source, Kept { task, limit: sender });
            } else {
                refused.push(source);
            }
        }
        for source in refused {
            let problem = format!(
                "the mesh names more than {MAX_SOURCES} sources of keys, and only those that came first are fetched"
            );
            if shared.events.send(Event::Keys(source, Err(problem))).await.is_err() {
                return;
            }
        }
        if sources.changed().await.is_err() {
            return;
        }
    }
}

/// Fetches one source for as long as it is wanted.
async fn keep(shared: Arc<Shared>, source: KeySource, limit: watch::Receiver<Duration>) {
    let Pace { refresh, retry, retry_at_most, keep } = shared.pace;
    let mut last_good: Option<Instant> = None;
    let mut told_problem = None;
    let mut wait = retry;
    let mut problem_before = String::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = shared.places.acquire().await else { return };
        let time = *limit.borrow();
        let fetched = shared.fetcher.keys(&source, time).await;
        drop(place);
        let (news, pause) = match fetched {
            Ok(keys) => {
                if !problem_before.is_empty() {
                    tracing::info!("the keys that could not be fetched have been: {problem_before}");
                    problem_before.clear();
                }
                last_good = Some(Instant::now());
                wait = retry;
                (Some(Ok(keys)), refresh)
            }
            Err(problem) => {
                let is_kept = last_good.is_some_and(|since| since.elapsed() < keep);
                if problem != problem_before {
                    let meanwhile =
                        if is_kept { "those from before stay in force" } else { "there are none" };
                    tracing::warn!("keys of tokens cannot be fetched, {meanwhile}: {problem}");
                    problem_before.clone_from(&problem);
                }
                let pause = wait;
                wait = wait.saturating_mul(2).min(retry_at_most);
                ((!is_kept).then_some(Err(problem)), pause)
            }
        };
        // Keys are told each time: to a world that has forgotten them they are news, to any other they cost nothing.
        let problem = news.as_ref().and_then(|news| news.as_ref().err()).cloned();
        let is_old = problem.is_some() && problem == told_problem;
        if let Some(news) = news.filter(|_| !is_old) {
            told_problem = problem;
            if shared.events.send(Event::Keys(source.clone(), news)).await.is_err() {
                return;
            }
        }
        sleep(pause).await;
    }
}
