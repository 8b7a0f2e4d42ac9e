//! Bundles, fetched and kept fresh.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use maille_pki::{BundleDocument, Reading};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::believed::{Told, believed, problem};
use super::fetch::BundleFetcher;
use super::source::Source;
use super::store::{BundleStore, Stored};
use super::succession::{Succession, succession};
use crate::hub::Hub;
use crate::world::{Event, Federated, Key, MeshConfig};

/// Endpoints at once; and of those that are not asked any more, how many are remembered.
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
    followed: BTreeMap<Source, Followed>,
    /// The last good bundles by [`Source::key`], also of sources that the configuration names no more: should it name one
    /// again, nothing older is taken of it, and nothing at all before it has told what is good now.
    good: BTreeMap<String, Good>,
    /// Keys of those that it names no more, the one that was left first first.
    left: VecDeque<String>,
    told: Option<BTreeMap<String, Federated>>,
}

/// A source that is followed; dropping it ends that.
struct Followed {
    task: AbortHandle,
    /// It was left and is named again: what is remembered of it may be what it was left for.
    is_doubtful: bool,
}

#[derive(Clone)]
struct Good {
    document: Arc<BundleDocument>,
    text: String,
}

impl Drop for Followed {
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
        let (followed, good) = (BTreeMap::new(), BTreeMap::new());
        Self { hub, fetcher, pace, store, events, followed, good, left: VecDeque::new(), told: None }
    }

    /// Runs until there is no world any more.
    pub async fn run(mut self) {
        self.hub.complete().await;
        for (key, text) in self.load().await {
            if let Ok(document) = BundleDocument::decode(text.as_bytes(), Reading::Strict) {
                self.left.push_back(key.clone());
                self.good.insert(key, Good { document: Arc::new(document), text });
            }
        }
        let mut settings = self.hub.subscribe();
        settings.watch(Key::Settings);
        let (sender, mut news) = mpsc::channel::<News>(16);
        let mut config: Option<MeshConfig> = None;
        loop {
            let now = self.hub.snapshot().world.config().clone();
            if config.as_ref() != Some(&now) {
                self.follow(&now, &sender);
            }
            let current = believed(&now, |source| match self.followed.get(source) {
                Some(followed) if followed.is_doubtful => Told::Doubtful,
                Some(_) => match self.good.get(&source.key()) {
                    Some(good) => Told::Bundle(&good.document),
                    None => Told::Nothing,
                },
                None => Told::Nothing,
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
                    if let Some(followed) = self.followed.get_mut(&source) {
                        followed.is_doubtful = false;
                        self.good.insert(source.key(), good);
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

    /// Follows what is configured, and nothing else. What a control plane before had followed at its end it may have followed
    /// to the end.
    fn follow(&mut self, config: &MeshConfig, news: &mpsc::Sender<News>) {
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
        let is_first = self.told.is_none();
        let left = &mut self.left;
        self.followed.retain(|source, _| {
            let stays = wanted.contains(source);
            if !stays {
                left.push_back(source.key());
            }
            stays
        });
        for source in wanted {
            if self.followed.contains_key(&source) {
                continue;
            }
            let key = source.key();
            let count = self.left.len();
            self.left.retain(|left| *left != key);
            let is_doubtful = !is_first && self.left.len() < count && self.good.contains_key(&key);
            let follower = Follower {
                source: source.clone(),
                fetcher: self.fetcher.clone(),
                pace: self.pace,
                good: self.good.get(&key).cloned(),
                is_doubtful,
                news: news.clone(),
            };
            let task = tokio::spawn(follower.run()).abort_handle();
            self.followed.insert(source, Followed { task, is_doubtful });
        }
        self.forget();
    }

    /// Of what is not configured any more, as much as there is room for is remembered.
    fn forget(&mut self) {
        let size =
            |good: &BTreeMap<String, Good>| good.values().map(|good| good.text.len() + 100).sum::<usize>();
        while self.left.len() > MAX_SOURCES || !self.left.is_empty() && size(&self.good) > MAX_STORED {
            if let Some(key) = self.left.pop_front() {
                self.good.remove(&key);
            }
        }
    }

    async fn save(&mut self) {
        self.forget();
        let good = self.good.iter();
        let stored: Stored = good.map(|(key, good)| (key.clone(), good.text.clone())).collect();
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
    /// What is remembered is not believed before the source has told the same, or more.
    is_doubtful: bool,
    news: mpsc::Sender<News>,
}

impl Follower {
    async fn run(mut self) {
        let Pace { refresh, refresh_at_least, refresh_at_most, retry, retry_at_most, timeout } = self.pace;
        let mut wait = retry;
        let mut problem_before = String::new();
        loop {
            let known = self.good.as_ref().map(|good| good.document.as_ref());
            let fetched = self.fetcher.fetch(&self.source, known, timeout).await;
            let judged = fetched.and_then(|(document, text)| match succession(known, &document) {
                Succession::Older { known, found } => Err(format!(
                    "{} tells a bundle with spiffe_sequence {found}, which is older than the last one, with {known}; if \
                     that trust domain has begun anew, name its endpoint by another spiffeBundleUrl or give it another pem",
                    self.source.url
                )),
                Succession::Same if self.is_doubtful => Ok((Arc::new(document), Some(text))),
                Succession::Same => Ok((Arc::new(document), None)),
                Succession::New => Ok((Arc::new(document), Some(text))),
            });
            let pause = match judged {
                Ok((document, news)) => {
                    if !problem_before.is_empty() {
                        tracing::info!("the trust bundle that could not be had has been: {problem_before}");
                        problem_before.clear();
                    }
                    wait = retry;
                    let pause = document.refresh_hint.unwrap_or(refresh);
                    if let Some(text) = news {
                        let good = Good { document, text };
                        self.good = Some(good.clone());
                        self.is_doubtful = false;
                        if self.news.send((self.source.clone(), good)).await.is_err() {
                            return;
                        }
                    } else if let Some(good) = &mut self.good
                        && document.sequence > good.document.sequence
                    {
                        // What lies between is older, too.
                        good.document = document;
                    }
                    pause.clamp(refresh_at_least, refresh_at_most)
                }
                Err(problem) => {
                    if problem != problem_before {
                        let meanwhile = match &self.good {
                            Some(_) if self.is_doubtful => "and none is believed before",
                            Some(_) => "the last one stays in force",
                            None => "there was none yet",
                        };
                        tracing::warn!("a trust bundle cannot be had, {meanwhile}: {problem}");
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
