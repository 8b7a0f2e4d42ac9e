//! Feeds the machine with what is stored, who is there and what time it is, and puts into force what it decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_pki::{Authority, CertificateDer, ROOT_TTL, certificate_pem};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::machine::{self, Before, Move, Step, in_force};
use super::show::Shown;
use super::sightings::Sheet;
use super::state::{Home, LiveProxy, Seen, Source, State, View};
use super::store::{Entries, Material, Record, Store, StoreError, Stored, home, offered};
use super::wire::{Answer, Offer, Outcome, Phase, Request};
use super::{REQUEST_ANNOTATION, SECRET};
use crate::proxies::millis;
use crate::server::ControlPlane;

/// How often it looks who has confirmed, and without a rotation, whether the root is near its end.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const IDLE_EVERY: Duration = Duration::from_secs(5);
/// Waits after failures to read or write.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_secs(5);
/// What is stored is read again after this time even if nobody tells of a change.
const READ_EVERY: Duration = Duration::from_secs(60);
/// How often control planes tell each other of their proxies: while a rotation is under way, and else, only to be known.
const SHARE_EVERY: Duration = Duration::from_secs(2);
const SHOW_UP_EVERY: Duration = Duration::from_secs(10);
/// Longest request.
const MAX_REQUEST: usize = 64 << 10;
/// Longest id of a request.
const MAX_ID: usize = 64;

/// Why there is no authority; a person must look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A Secret of an authority holds nothing that can be used (CA-20).
    #[error("Secret {secret} holds no usable authority: {reason}")]
    Unusable {
        /// Its name.
        secret: &'static str,
        /// Why.
        reason: String,
    },
    /// A new root cannot be made.
    #[error("cannot make a root: {0}")]
    Make(String),
}

/// Keeps the authority of a control plane what it should be.
pub struct Keeper {
    control: ControlPlane,
    store: Arc<dyn Store>,
    record: Record,
    stored: Stored,
    /// What is stored may be other than `stored`.
    stale: bool,
    /// What keeps the stored rotation from being read or written.
    problem: Option<String>,
    roots: watch::Sender<String>,
    /// This control plane's name among those of the mesh; another after each start.
    replica: String,
    /// When it last told the others something.
    shared_at: Option<Instant>,
    /// The others, and when each wrote what was last read of it.
    others: BTreeMap<String, u64>,
    /// When the last of the others was found gone, Unix milliseconds: what it has issued nobody knows.
    gone_at_ms: u64,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("phase", &self.record.state.phase).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Loads the authority, or makes one if there is none, and puts it into force. Waits for as long as nothing can be
    /// read. Control planes that start together agree: whoever comes second loads what the first has stored.
    pub async fn start(control: ControlPlane, store: Arc<dyn Store>) -> Result<Self, StartError> {
        let mut wait = FIRST_WAIT;
        let (stored, record) = loop {
            let tried = match store.read().await {
                Ok(stored) => first(&control, store.as_ref(), &stored).await?.map(|record| (stored, record)),
                Err(error) => Err(error),
            };
            match tried {
                Ok(found) => break found,
                Err(StoreError::Conflict(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, "no authority yet; trying again");
                    sleep(wait).await;
                    wait = (wait * 2).min(LAST_WAIT);
                }
            }
        };
        let roots = watch::Sender::new(String::new());
        let keeper = Self {
            control,
            store,
            record,
            stored,
            stale: true,
            problem: None,
            roots,
            replica: name_of_replica(),
            shared_at: None,
            others: BTreeMap::new(),
            gone_at_ms: 0,
        };
        keeper.apply();
        keeper.show();
        Ok(keeper)
    }

    /// What is distributed as roots, as PEM; never empty.
    pub fn roots(&self) -> watch::Receiver<String> {
        self.roots.subscribe()
    }

    /// Keeps it, for ever.
    pub async fn run(mut self) {
        let mut wait = FIRST_WAIT;
        let store = Arc::clone(&self.store);
        let mut read_again = tokio::time::interval(READ_EVERY);
        loop {
            let pause = match self.turn().await {
                Ok(true) => {
                    wait = FIRST_WAIT;
                    continue;
                }
                Ok(false) => {
                    wait = FIRST_WAIT;
                    if self.record.state.phase == Phase::Idle { IDLE_EVERY } else { LOOK_EVERY }
                }
                Err(StoreError::Conflict(what)) => {
                    tracing::debug!(what, "another control plane was faster");
                    self.stale = true;
                    FIRST_WAIT
                }
                Err(StoreError::Failed(reason)) => {
                    tracing::warn!(reason, "the authority's Secrets cannot be read or written; trying again");
                    self.problem = Some(reason);
                    self.stale = true;
                    wait = (wait * 2).min(LAST_WAIT);
                    wait
                }
            };
            self.show();
            tokio::select! {
                () = store.changed() => self.stale = true,
                _ = read_again.tick() => self.stale = true,
                () = sleep(pause) => {}
            }
        }
    }

    /// Looks once; whether something was done, so that there may be more to do.
    async fn turn(&mut self) -> Result<bool, StoreError> {
        self.control.audit.count_omitted(self.control.clock.now());
        if self.stale {
            self.stored = self.store.read().await?;
            self.stale = false;
            self.problem = None;
            if !self.follow() {
                return Ok(false);
            }
        }
        let stored = self.stored.rotation.as_ref();
        if let Some(request) = stored.and_then(|object| object.request.clone()) {
            let (step, offered) = self.ask(&request);
            self.take(step, offered).await?;
            return Ok(true);
        }
        if !stored.is_some_and(Record::is_in) {
            // Not stored yet, or somebody took it away.
            let state = self.record.state.clone();
            self.take(Step { before: Vec::new(), state, material: Move::Nothing }, None).await?;
            return Ok(true);
        }
        match self.share().await {
            Ok(()) | Err(StoreError::Conflict(_)) => {}
            // Phases wait, if there is another; all else goes on.
            Err(StoreError::Failed(reason)) => self.problem = Some(reason),
        }
        // Another control plane may know of a live proxy what is not known here: then nobody may be taken for gone.
        let proxies = self.proxies().filter(|_| self.have_others_spoken());
        let homes = self.homes();
        let view = self.view(&homes, proxies.as_deref());
        if let Some(step) = machine::next(&view) {
            self.take(step, None).await?;
            return Ok(true);
        }
        if machine::is_renewal_due(&view) {
            let renewed = self.prepare(Offer::Renewed);
            let begun = renewed.and_then(|renewed| {
                let id = format!("renewal-{}", view.now_ms);
                let cause = "less than a fifth of the root's life is left".to_owned();
                match machine::begin(&view, &renewed.ca, Source::SelfSigned, &id, cause) {
                    Ok(step) => Ok((step, renewed)),
                    Err(refusal) => Err(format!("{refusal:?}")),
                }
            });
            match begun {
                Ok((step, renewed)) => {
                    self.take(step, Some(renewed)).await?;
                    return Ok(true);
                }
                Err(reason) => self.problem = Some(format!("the root cannot be renewed: {reason}")),
            }
        }
        Ok(false)
    }

    /// Tells the other control planes what proxies have said here, and hears what they have said there.
    async fn share(&mut self) -> Result<(), StoreError> {
        let is_under_way = self.record.state.phase != Phase::Idle;
        let every = if is_under_way { SHARE_EVERY } else { SHOW_UP_EVERY };
        if self.shared_at.is_some_and(|at| at.elapsed() < every) {
            return Ok(());
        }
        let all = self.store.shared().await?;
        let now_ms = millis(self.control.clock.now());
        let mut news = BTreeMap::new();
        let mut heard = BTreeMap::<String, Seen>::new();
        let mut issued = BTreeMap::<String, u64>::new();
        let mut dark_until_ms = 0;
        let before = std::mem::take(&mut self.others);
        for (name, text) in all.into_iter().filter(|(name, _)| *name != self.replica) {
            match Sheet::read(&text).filter(|sheet| !sheet.is_gone(now_ms)) {
                Some(sheet) => {
                    self.others.insert(name, sheet.at_ms());
                    dark_until_ms = dark_until_ms.max(sheet.dark_until_ms(now_ms));
                    for (uid, ends) in sheet.ends() {
                        let known = issued.entry(uid.clone()).or_insert(ends);
                        *known = ends.max(*known);
                    }
                    for (uid, seen) in sheet.seen(now_ms) {
                        let known = heard.entry(uid).or_insert_with(|| seen.clone());
                        if seen.at_ms > known.at_ms {
                            *known = seen;
                        }
                    }
                }
                None => _ = news.insert(name, None),
            }
        }
        if before.keys().any(|name| !self.others.contains_key(name)) {
            self.gone_at_ms = now_ms;
        }
        let dark_until_ms = dark_until_ms.max(self.gone_at_ms);
        self.control.proxies.heard_elsewhere(heard, issued, dark_until_ms);
        // One that is alone only shows that it is there.
        let here = match is_under_way && !self.others.is_empty() {
            true => self.control.proxies.sheet(self.gone_at_ms, now_ms),
            false => Sheet::empty(now_ms, is_under_way),
        };
        let sheet = serde_json::to_string(&here);
        news.insert(
            self.replica.clone(),
            Some(sheet.map_err(|error| StoreError::Failed(error.to_string()))?),
        );
        self.store.share(news).await?;
        self.shared_at = Some(Instant::now());
        Ok(())
    }

    /// Whether every other control plane has told of its proxies since this phase began.
    fn have_others_spoken(&self) -> bool {
        let state = &self.record.state;
        let since = state.since_ms.saturating_add(millis_of(SHARE_EVERY));
        state.phase == Phase::Idle || self.others.values().all(|at_ms| *at_ms > since)
    }

    /// Takes over what is stored; whether it can be read.
    fn follow(&mut self) -> bool {
        let Some(object) = self.stored.rotation.as_ref().filter(|object| Record::is_in(object)) else {
            return true;
        };
        match Record::read(object) {
            Ok(read) => {
                let differs = read.state != self.record.state
                    || read.current.ca != self.record.current.ca
                    || read.target.as_ref().map(|t| &t.ca) != self.record.target.as_ref().map(|t| &t.ca);
                if differs {
                    self.record = read;
                    self.apply();
                }
                true
            }
            Err(reason) => {
                let problem = format!(
                    "Secret {SECRET} cannot be read, and what was in force stays so (delete it to have it written \
                     anew): {reason}"
                );
                tracing::error!(problem);
                self.problem = Some(problem);
                false
            }
        }
    }

    fn homes(&self) -> (Home, Home) {
        (home(self.stored.self_signed.as_ref()), home(self.stored.plugged_in.as_ref()))
    }

    fn proxies(&self) -> Option<Vec<LiveProxy>> {
        live(&self.control)
    }

    fn view<'a>(&'a self, homes: &'a (Home, Home), proxies: Option<&'a [LiveProxy]>) -> View<'a> {
        View {
            state: &self.record.state,
            current: &self.record.current.ca,
            target: self.record.target.as_ref().map(|target| &target.ca),
            self_signed: &homes.0,
            plugged_in: &homes.1,
            proxies,
            bundle_is_read: self.control.bundle_is_read(),
            now_ms: millis(self.control.clock.now()),
        }
    }

    /// Answers a request. What it offers comes along, for the step to take it.
    fn ask(&self, text: &str) -> (Step, Option<Material>) {
        let (homes, proxies) = (self.homes(), self.proxies());
        let view = self.view(&homes, proxies.as_deref());
        let request = match read_request(text) {
            Ok(request) => request,
            Err((id, reason)) => {
                let message = format!("annotation {REQUEST_ANNOTATION} is no request: {reason}");
                let answer = Answer { id, outcome: Outcome::Refused, message, plan: None };
                let state = State { answer: Some(answer), ..self.record.state.clone() };
                return (Step { before: Vec::new(), state, material: Move::Nothing }, None);
            }
        };
        if self.record.state.answer.as_ref().is_some_and(|answer| answer.id == request.id) {
            // Asked twice, done once.
            let state = self.record.state.clone();
            return (Step { before: Vec::new(), state, material: Move::Nothing }, None);
        }
        let offered = self.prepare(request.to);
        let offer = offered.as_ref().map(|offered| &offered.ca).map_err(Clone::clone);
        let step = machine::ask(&view, &request, offer);
        if let Some(answer) = &step.state.answer {
            let (id, outcome, message) = (&answer.id, &answer.outcome, &answer.message);
            tracing::info!(
                target: "maille::audit", id, action = ?request.action, dry_run = request.dry_run, ?outcome, message,
                "asked for a rotation"
            );
        }
        (step, offered.ok())
    }

    fn prepare(&self, offer: Offer) -> Result<Material, String> {
        let now = self.control.clock.now();
        let current = &self.record.current.authority;
        match offer {
            Offer::Stored => match &self.stored.rotation {
                Some(object) => offered(object),
                None => Err(format!("there is no Secret {SECRET}")),
            },
            Offer::Generated => made(Authority::self_signed(&self.trust_domain(), now, ROOT_TTL)),
            Offer::Renewed => {
                let life =
                    |ca: &super::state::Ca| ca.signer.not_after_ms.saturating_sub(ca.signer.not_before_ms);
                // As long as the old one was to live, which is not always what a new one would.
                let ttl =
                    Duration::from_millis(life(&self.record.current.ca)).saturating_sub(maille_pki::BACKDATE);
                made(current.renew_root(now, ttl))
            }
        }
    }

    fn trust_domain(&self) -> maille_core::TrustDomain {
        self.control.hub.snapshot().world.config().trust_domain.clone()
    }

    /// Stores a step and puts it into force.
    async fn take(&mut self, step: Step, offered: Option<Material>) -> Result<(), StoreError> {
        // Whatever happens from here on, what was read is out of date.
        self.stale = true;
        for before in &step.before {
            self.prepare_homes(*before).await?;
        }
        let was = self.record.state.phase;
        let next = self.moved(&step, offered).map_err(StoreError::Failed)?;
        let entries = next.entries().map_err(StoreError::Failed)?;
        let object = self.stored.rotation.as_ref();
        let unchanged = object.is_some_and(|o| o.request.is_none() && o.entries == entries);
        if !unchanged {
            let replaces = object.map(|object| object.version.as_str());
            self.store.write_rotation(&entries, replaces).await?;
        }
        self.record = next;
        self.apply();
        let state = &self.record.state;
        if state.phase != was {
            let id = state.rotation.as_ref().map(|r| r.id.as_str());
            let id = id.or(state.last.as_ref().map(|last| last.id.as_str())).unwrap_or_default();
            tracing::info!(
                target: "maille::audit", id, from = was.name(), to = state.phase.name(),
                signer = self.signer().signer(), "rotation of the authority"
            );
        }
        Ok(())
    }

    async fn prepare_homes(&self, before: Before) -> Result<(), StoreError> {
        let record = &self.record;
        let write = async |source: Source, entries: Entries| {
            let replaces = self.stored.home(source).map(|object| object.version.as_str());
            self.store.write_home(source, &entries, replaces).await
        };
        match before {
            Before::WriteCurrent => {
                let source = record.state.source;
                write(source, record.current.home_entries(source)).await
            }
            Before::WriteTarget => match (&record.target, &record.state.rotation) {
                (Some(target), Some(rotation)) => {
                    write(rotation.source, target.home_entries(rotation.source)).await
                }
                _ => Ok(()),
            },
            Before::Delete(source) => match self.stored.home(source) {
                Some(object) => self.store.delete_home(source, &object.version).await,
                None => Ok(()),
            },
        }
    }

    /// The record after a step.
    fn moved(&self, step: &Step, offered: Option<Material>) -> Result<Record, String> {
        let state = step.state.clone();
        let Record { current, target, .. } = &self.record;
        let from_home = |source: Source| match self.stored.home(source) {
            Some(object) => Material::read(&object.entries, ""),
            None => Err(format!("Secret {} is gone", source.secret())),
        };
        let missing = || "there is nothing to rotate to".to_owned();
        let (current, target) = match step.material {
            Move::Nothing => (current.clone(), target.clone()),
            Move::Begin => (current.clone(), Some(offered.ok_or_else(missing)?)),
            Move::BeginFrom(source) => (current.clone(), Some(from_home(source)?)),
            Move::Exchange => (target.clone().ok_or_else(missing)?, Some(current.clone())),
            Move::Adopt => (target.clone().ok_or_else(missing)?, None),
            Move::Refresh(source) => (from_home(source)?, None),
        };
        Ok(Record { state, current, target })
    }

    fn signer(&self) -> &Authority {
        let Record { state, current, target } = &self.record;
        match target {
            Some(target) if in_force(state.phase).target_signs => &target.authority,
            _ => &current.authority,
        }
    }

    /// Puts into force what is stored.
    fn apply(&self) {
        let Record { state, current, target } = &self.record;
        let others = match target {
            Some(target) if in_force(state.phase).trusts_both => {
                [current.authority.own_roots(), target.authority.own_roots()].concat()
            }
            _ => Vec::new(),
        };
        let authority = match self.signer().with_trust(others) {
            Ok(authority) => authority,
            Err(error) => {
                // Both were read as authorities, so their roots are; if not, what is in force stays.
                tracing::error!(%error, "roots cannot be distributed");
                return;
            }
        };
        // Two roots of one key cannot be told apart by what they signed, and need not be (CA-16).
        let has_one_key = target.as_ref().is_some_and(|target| target.ca.key == current.ca.key);
        let signer = if has_one_key { String::new() } else { authority.signer().to_owned() };
        let roots = roots_pem(&authority);
        self.control.set_authority_as(authority, signer);
        self.roots.send_if_modified(|known| {
            *known != roots && {
                *known = roots;
                true
            }
        });
    }

    fn show(&self) {
        let homes = self.homes();
        self.control.rotation.store(Some(Arc::new(Shown {
            state: self.record.state.clone(),
            current: self.record.current.ca.clone(),
            target: self.record.target.as_ref().map(|target| target.ca.clone()),
            self_signed: homes.0,
            plugged_in: homes.1,
            problem: self.problem.clone(),
            files_problem: self.stored.rotation.as_ref().and_then(|object| object.files_problem.clone()),
        })));
    }
}

fn millis_of(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whoever starts anew knows nothing of before, and is another.
fn name_of_replica() -> String {
    let mut bytes = [0; 8];
    // Without randomness no key could be made, either; the time tells two of them apart as well.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        bytes = millis(SystemTime::now()).to_be_bytes();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The Pods with sidecars and what they last said; `None` while the world is not complete.
pub(crate) fn live(control: &ControlPlane) -> Option<Vec<LiveProxy>> {
    let snapshot = control.hub.snapshot();
    let world = &snapshot.world;
    if !world.is_complete() {
        return None;
    }
    let meshed = world.pods().filter(|pod| pod.meshed);
    let meshed = meshed.map(|pod| (pod.name.to_string(), pod.uid.clone()));
    Some(control.proxies.live(meshed, control.clock.now(), control.rules.longest_ttl()))
}

/// In one order, whoever signs, so that a change of the signer alone changes no ConfigMap.
fn roots_pem(authority: &Authority) -> String {
    let mut roots: Vec<&CertificateDer<'static>> = authority.roots().iter().collect();
    roots.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
    roots.into_iter().map(certificate_pem).collect()
}

fn made(authority: Result<Authority, maille_pki::Error>) -> Result<Material, String> {
    authority.map_err(|error| error.to_string()).and_then(Material::made)
}

/// Reads a request, or says whose it is, as far as it says, and what is wrong with it.
fn read_request(text: &str) -> Result<Request, (String, String)> {
    if text.len() > MAX_REQUEST {
        return Err((String::new(), format!("it is longer than {MAX_REQUEST} bytes")));
    }
    let value: Value = serde_json::from_str(text).map_err(|error| (String::new(), error.to_string()))?;
    let id = value["id"].as_str().unwrap_or_default();
    if id.is_empty() || id.len() > MAX_ID {
        return Err((String::new(), format!("its id must have 1 to {MAX_ID} bytes")));
    }
    let id = id.to_owned();
    serde_json::from_value(value).map_err(|error| (id, error.to_string()))
}

/// The first record: the stored one, else the authority of the first Secret that there is, else a new one.
async fn first(
    control: &ControlPlane,
    store: &dyn Store,
    stored: &Stored,
) -> Result<Result<Record, StoreError>, StartError> {
    if let Some(object) = stored.rotation.as_ref().filter(|object| Record::is_in(object)) {
        return match Record::read(object) {
            Ok(record) => Ok(Ok(record)),
            Err(reason) => Err(StartError::Unusable { secret: SECRET, reason }),
        };
    }
    let idle = |source: Source, current: Material, now: SystemTime| {
        let state = State { since_ms: millis(now), source, ..State::default() };
        Record { state, current, target: None }
    };
    let now = control.clock.now();
    for source in [Source::PluggedIn, Source::SelfSigned] {
        if let Some(object) = stored.home(source) {
            let unusable = |reason| StartError::Unusable { secret: source.secret(), reason };
            let material = Material::read(&object.entries, "").map_err(unusable)?;
            return Ok(Ok(idle(source, material, now)));
        }
    }
    let domain = control.hub.snapshot().world.config().trust_domain.clone();
    let root = made(Authority::self_signed(&domain, now, ROOT_TTL)).map_err(StartError::Make)?;
    let source = Source::SelfSigned;
    // Whoever is second finds the first one's when it reads again.
    if let Err(error) = store.write_home(source, &root.home_entries(source), None).await {
        return Ok(Err(error));
    }
    tracing::info!(secret = source.secret(), "made a new root");
    Ok(Ok(idle(source, root, now)))
}
