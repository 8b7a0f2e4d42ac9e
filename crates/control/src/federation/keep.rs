//! Bundles, fetched and kept fresh.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use maille_pki::{BundleDocument, Reading};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::believed::{believed, problem};
use super::fetch::BundleFetcher;
use super::source::Source;
use super::store::{BundleStore, Stored};
use crate::hub::Hub;
use crate::world::{Event, Federated, Key, MeshConfig};

/// Endpoints at once.
const MAX_SOURCES: usize = 128;
/// All that is stored; an object of the Kubernetes API holds no more than a mebibyte.
const MAX_STORED: usize = 900 << 10;

/// When bundles are fetched.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// After a fetch that succeeded, where the bundle does not say (`spiffe_refresh_hint`).
    pub refresh: Duration,
    /// But no sooner than this, whatever the bundle says.
    pub refresh_at_least: Duration,
    /// And no later than this.
    pub refresh_at_most: Duration,
    /// After the first fetch that failed; twice as long after each further one.
    pub retry: Duration,
    /// But no longer than this.
    pub retry_at_most: Duration,
    /// For one fetch.
    pub timeout: Duration,
}

impl Default for Pace {
    /// Istio's (reference mtls 5.6, 6.4); it gives up after some retries until the next turn, which is the bound here.
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(30 * 60),
            refresh_at_least: Duration::from_secs(10),
            refresh_at_most: Duration::from_secs(24 * 3600),
            retry: Duration::from_millis(50),
            retry_at_most: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Tells the world whom the mesh believes beside its own authority.
pub struct Federation {
    hub: Arc<Hub>,
    fetcher: BundleFetcher,
    pace: Pace,
    store: Arc<dyn BundleStore>,
    events: mpsc::Sender<Event>,
    kept: BTreeMap<Source, Kept>,
    told: Option<BTreeMap<String, Federated>>,
}

/// A source that is followed; dropping it ends that.
struct Kept {
    task: AbortHandle,
    /// The last good bundle.
    good: Option<Good>,
}

#[derive(Clone)]
struct Good {
    document: Arc<BundleDocument>,
    text: String,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type News = (Source, Good);

impl Federation {
    /// Of the world's configuration.
    pub fn new(
        hub: Arc<Hub>,
        fetcher: BundleFetcher,
        pace: Pace,
        store: Arc<dyn BundleStore>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self { hub, fetcher, pace, store, events, kept: BTreeMap::new(), told: None }
    }

    /// Runs until there is no world any more.
    pub async fn run(mut self) {
        self.hub.complete().await;
        let stored = self.load().await;
        let mut settings = self.hub.subscribe();
        settings.watch(Key::Settings);
        let (sender, mut news) = mpsc::channel::<News>(16);
        let mut config: Option<MeshConfig> = None;
        loop {
            let now = self.hub.snapshot().world.config().clone();
            if config.as_ref() != Some(&now) {
                self.follow(&now, &stored, &sender);
            }
            let current = believed(&now, |source| {
                self.kept.get(source)?.good.as_ref().map(|good| good.document.as_ref())
            });
            config = Some(now);
            if self.told.as_ref() != Some(&current) {
                let domains: Vec<&String> = current.keys().collect();
                if !domains.is_empty() || self.told.is_some() {
                    tracing::info!(?domains, "roots beside the own authority's");
                }
                if self.events.send(Event::Federation(current.clone())).await.is_err() {
                    return;
                }
                self.told = Some(current);
            }
            tokio::select! {
                _ = settings.changed() => {}
                // `sender` is here, so that it does not end.
                Some((source, good)) = news.recv() => {
                    if let Some(kept) = self.kept.get_mut(&source) {
                        kept.good = Some(good);
                        self.save().await;
                    }
                }
            }
        }
    }

    async fn load(&self) -> Stored {
        let mut wait = Duration::from_millis(200);
        // Trust that was there must not go because the store is away for a moment; the world is complete, so that it
        // soon comes back.
        loop {
            match self.store.load().await {
                Ok(stored) => return stored,
                Err(error) => tracing::warn!(%error, "stored trust bundles cannot be read; trying again"),
            }
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
    }

    /// Follows what is configured, and nothing else.
    fn follow(&mut self, config: &MeshConfig, stored: &Stored, news: &mpsc::Sender<News>) {
        let mut wanted = Vec::new();
        for (index, entry) in config.ca_certificates.iter().enumerate() {
            if let Some(problem) = problem(entry, &config.trust_domain) {
                tracing::error!("meshConfig.caCertificates[{index}].pem is not used in full: {problem}");
            }
            wanted.extend(Source::of(entry, &config.trust_domain, &config.system_namespace));
        }
        if wanted.len() > MAX_SOURCES {
            tracing::error!(
                "meshConfig.caCertificates names more than {MAX_SOURCES} endpoints; the others are not asked"
            );
            wanted.truncate(MAX_SOURCES);
        }
        self.kept.retain(|source, _| wanted.contains(source));
        for source in wanted {
            if self.kept.contains_key(&source) {
                continue;
            }
            let good = stored.get(&source.key()).and_then(|text| {
                let document = BundleDocument::decode(text.as_bytes(), Reading::Strict).ok()?;
                Some(Good { document: Arc::new(document), text: text.clone() })
            });
            let follower = Follower {
                source: source.clone(),
                fetcher: self.fetcher.clone(),
                pace: self.pace,
                good: good.clone(),
                news: news.clone(),
            };
            let task = tokio::spawn(follower.run()).abort_handle();
            self.kept.insert(source, Kept { task, good });
        }
    }

    async fn save(&self) {
        let good = |(source, kept): (&Source, &Kept)| Some((source.key(), kept.good.as_ref()?.text.clone()));
        let stored: Stored = self.kept.iter().filter_map(good).collect();
        if stored.values().map(|text| text.len() + 100).sum::<usize>() > MAX_STORED {
            tracing::warn!("the trust bundles are too large to be kept for a restart");
            return;
        }
        if let Err(error) = self.store.save(stored).await {
            tracing::warn!(%error, "the trust bundles are not kept for a restart");
        }
    }
}

/// Fetches one source for as long as it is wanted.
struct Follower {
    source: Source,
    fetcher: BundleFetcher,
    pace: Pace,
    good: Option<Good>,
    news: mpsc::Sender<News>,
}

impl Follower {
    async fn run(mut self) {
        let Pace { refresh, refresh_at_least, refresh_at_most, retry, retry_at_most, timeout } = self.pace;
        let mut wait = retry;
        let mut problem_before = String::new();
        loop {
            let known = self.good.as_ref().map(|good| good.document.as_ref());
            let pause = match self.fetcher.fetch(&self.source, known, timeout).await {
                Ok((document, text)) => {
                    if !problem_before.is_empty() {
                        tracing::info!(
                            "the trust bundle that could not be fetched has been: {problem_before}"
                        );
                        problem_before.clear();
                    }
                    wait = retry;
                    let pause = document.refresh_hint.unwrap_or(refresh);
                    if known != Some(&document) {
                        let good = Good { document: Arc::new(document), text };
                        self.good = Some(good.clone());
                        if self.news.send((self.source.clone(), good)).await.is_err() {
                            return;
                        }
                    }
                    pause.clamp(refresh_at_least, refresh_at_most)
                }
                Err(problem) => {
                    if problem != problem_before {
                        let meanwhile = if self.good.is_some() {
                            "the last one stays in force"
                        } else {
                            "there was none yet"
                        };
                        tracing::warn!("a trust bundle cannot be fetched, {meanwhile}: {problem}");
                        problem_before = problem;
                    }
                    let pause = wait;
                    wait = wait.saturating_mul(2).min(retry_at_most);
                    pause
                }
            };
            sleep(pause).await;
        }
    }
}
