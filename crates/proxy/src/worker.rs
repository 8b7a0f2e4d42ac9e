//! One worker: a thread that accepts, decides, forwards and records, alone.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use maille_policy::authentication::{Authentication, TokenCache};
use maille_telemetry::WorkerRecorder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::authorizer::Authorizers;
use crate::connect::Upstream;
use crate::departure::{Departure, Stage};
use crate::destinations::Destinations;
use crate::open::OpenConnections;
use crate::pool::Pools;
use crate::server_proof::Servers;
use crate::snapshot::{DataPathConfig, Direction, ListenerSpec, Shared, Snapshot};
use crate::tunnel::{Callers, Windows};
use crate::workers::{Load, Phase};
use crate::{inbound, outbound};

/// How often unused connections, expired certificates and forgotten destinations are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// What one thread has to itself.
pub(crate) struct Worker {
    pub(crate) config: Arc<DataPathConfig>,
    pub(crate) shared: Shared,
    pub(crate) recorder: WorkerRecorder,
    pub(crate) open: Rc<OpenConnections>,
    pub(crate) pools: Pools,
    /// Connections to other proxies whose streams are bytes.
    pub(crate) callers: Callers,
    /// What peers of shared connections may send ahead.
    pub(crate) windows: Windows,
    /// What the servers of open upstream connections have proved.
    pub(crate) servers: Servers,
    pub(crate) destinations: Destinations,
    pub(crate) undetected: Undetected,
    /// Tokens that were verified lately.
    pub(crate) tokens: RefCell<TokenCache>,
    pub(crate) authorizers: Authorizers,
    snapshot: RefCell<Arc<Snapshot>>,
    inbound: Departure,
    outbound: Departure,
    load: Arc<Load>,
    random: Cell<u64>,
    /// Connections that are about to end with the certificate of their peer.
    ending: Cell<u64>,
}

impl Worker {
    pub(crate) fn new(shared: Shared, config: Arc<DataPathConfig>, load: Arc<Load>, seed: u64) -> Rc<Self> {
        Rc::new(Self {
            recorder: shared.telemetry.worker(),
            destinations: Destinations::new(shared.destinations.clone()),
            open: Rc::default(),
            pools: Pools::default(),
            callers: Callers::default(),
            windows: Windows::default(),
            servers: Servers::default(),
            undetected: Undetected::new(config.limits.undetected),
            tokens: RefCell::new(TokenCache::new()),
            authorizers: Authorizers::default(),
            snapshot: RefCell::new(shared.snapshot.load()),
            inbound: Departure::default(),
            outbound: Departure::default(),
            load,
            random: Cell::new(seed | 1),
            ending: Cell::default(),
            shared,
            config,
        })
    }

    /// The facts in force. A request takes them once.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// How paths are canonicalised now.
    pub(crate) fn path_normalization(&self) -> maille_policy::path::Normalization {
        self.snapshot.borrow().settings.path_normalization
    }

    /// How the own workload is reached that was dialled at `destination`.
    pub(crate) fn delivery(&self, destination: std::net::SocketAddr) -> Upstream {
        self.snapshot.borrow().delivery(destination)
    }

    /// The rules about tokens, if there are any.
    pub(crate) fn authentication(&self) -> Option<Arc<Authentication>> {
        let snapshot = self.snapshot.borrow();
        (!snapshot.authentication.is_empty()).then(|| snapshot.authentication.clone())
    }

    /// Whether refusals are explained to callers.
    pub(crate) fn explains(&self) -> bool {
        self.snapshot.borrow().settings.explain_in_response
    }

    /// How connections of one direction leave, once they are to.
    pub(crate) fn departure(&self, direction: Direction) -> &Departure {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// A number below `bound`, for choosing among endpoints (xorshift64).
    pub(crate) fn random_below(&self, bound: usize) -> usize {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        usize::try_from(x >> 33).unwrap_or_default() % bound.max(1)
    }

    /// Runs until told to stop.
    pub(crate) async fn run(
        self: Rc<Self>,
        listeners: Vec<(TcpListener, ListenerSpec)>,
        mut phase: watch::Receiver<Phase>,
    ) {
        let mut accepting: Vec<(Direction, JoinHandle<()>)> = Vec::new();
        for (listener, spec) in listeners {
            let direction = spec.direction;
            accepting
                .push((direction, tokio::task::spawn_local(self.clone().accept(listener, Rc::new(spec)))));
        }
        let mut changes = self.shared.snapshot.watch();
        let mut tick = tokio::time::interval(HOUSEKEEPING);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut next_end = pin!(tokio::time::sleep(HOUSEKEEPING));
        // What was swapped in between the first load and the watch.
        self.take_snapshot();
        loop {
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_snapshot();
                }
                _ = tick.tick() => {
                    self.keep_house();
                    next_end.as_mut().reset(self.next_end());
                }
                () = &mut next_end => {
                    self.open.expire(SystemTime::now(), self.keeps_expired_tcp());
                    next_end.as_mut().reset(self.next_end());
                }
                changed = phase.changed() => {
                    let now = *phase.borrow_and_update();
                    if changed.is_err() || now == Phase::Stop {
                        return;
                    }
                    self.leave(now, &accepting);
                }
            }
        }
    }

    /// Connections go the way that the phase demands. LC-3: without a successor only inbound ones do, so that the
    /// application can call others to its end.
    fn leave(&self, phase: Phase, accepting: &[(Direction, JoinHandle<()>)]) {
        match phase {
            Phase::Serve | Phase::Stop => {}
            Phase::Drain => self.inbound.advance(Stage::Leaves),
            Phase::Refuse => self.inbound.advance(Stage::Ends),
            Phase::HandOver => {
                // What waits in the listeners is the successor's, who has them too.
                accepting.iter().for_each(|(_, task)| task.abort());
                self.inbound.advance(Stage::Leaves);
                self.outbound.advance(Stage::Leaves);
            }
            Phase::Finish => {
                accepting.iter().for_each(|(_, task)| task.abort());
                self.inbound.advance(Stage::Ends);
                self.outbound.advance(Stage::Ends);
            }
        }
        if self.inbound.stage() == Stage::Ends {
            self.open.drain();
        }
    }

    fn take_snapshot(self: &Rc<Self>) {
        let next = self.shared.snapshot.load();
        self.recorder.cover(next.settings.access_log);
        self.snapshot.replace(next);
        self.open.judge(self);
        // Trust is swapped before the snapshot that comes with it, so that whoever is revoked is gone at once.
        self.judge_peers();
    }

    /// Ends what stands on certificates that are trusted no more.
    fn judge_peers(&self) {
        self.open.recheck(&self.shared.tls, self.keeps_expired_tcp());
        self.servers.judge(&self.shared.tls, self.keeps_expired_tcp());
    }

    fn keeps_expired_tcp(&self) -> bool {
        self.snapshot.borrow().settings.keeps_expired_tcp
    }

    fn keep_house(&self) {
        let now = SystemTime::now();
        self.open.expire(now, self.keeps_expired_tcp());
        let ending = self.open.count_ending(now);
        self.shared.telemetry.gauges().expiring_connections(self.ending.replace(ending), ending);
        self.judge_peers();
        self.pools.sweep(self.config.limits.idle, self.shared.tls.generation());
        self.callers.sweep(self.config.limits.idle, &self.shared.tls);
        self.destinations.sweep();
        // Last, with what has just been dropped.
        (self.config.memory.give_back)();
    }

    /// When the next connection ends with the certificate of its peer, or the next round of housekeeping would find it.
    fn next_end(&self) -> tokio::time::Instant {
        let now = SystemTime::now();
        let end = self.open.next_end(now, self.keeps_expired_tcp());
        let left = end.and_then(|end| end.duration_since(now).ok()).unwrap_or(HOUSEKEEPING);
        tokio::time::Instant::now() + left.min(HOUSEKEEPING)
    }

    /// Room for one more inbound stream that is a connection of its own, if there is any.
    pub(crate) fn admit_stream(self: &Rc<Self>) -> Option<Counted> {
        (self.load.total() < self.config.limits.connections)
            .then(|| Counted::new(self.clone(), Direction::Inbound))
    }

    async fn accept(self: Rc<Self>, listener: TcpListener, spec: Rc<ListenerSpec>) {
        loop {
            if self.load.total() >= self.config.limits.connections {
                // The backlog holds them; the peer waits instead of the proxy's memory growing.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let accepted = tokio::select! {
                // First, so that a listener is closed only when nobody waits in it: the kernel would reset them.
                biased;
                accepted = listener.accept() => accepted,
                () = self.departure(spec.direction).reached(Stage::Ends) => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely; at once again would only burn time.
                    tracing::warn!(address = %spec.address, %error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let counted = Counted::new(self.clone(), spec.direction);
            let spec = spec.clone();
            tokio::task::spawn_local(async move {
                counted.worker.serve(stream, &spec).await;
                drop(counted);
            });
        }
    }

    async fn serve(self: &Rc<Self>, stream: TcpStream, spec: &ListenerSpec) {
        if stream.set_nodelay(true).is_err() {
            return;
        }
        match spec.direction {
            Direction::Inbound => inbound::serve(self, stream, spec).await,
            Direction::Outbound => outbound::serve(self, stream, spec).await,
        }
    }
}

/// Counts one connection while it lives.
pub(crate) struct Counted {
    worker: Rc<Worker>,
    direction: Direction,
}

impl Counted {
    fn new(worker: Rc<Worker>, direction: Direction) -> Self {
        worker.load.add(direction);
        Self { worker, direction }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.worker.load.remove(self.direction);
    }
}

/// Connections whose protocol is not known yet. They may wait for ever (reference mtls PA-13), but not
/// all of them: beyond the budget the oldest is shed.
pub(crate) struct Undetected {
    budget: usize,
    waiting: RefCell<VecDeque<Rc<tokio::sync::Notify>>>,
}

impl Undetected {
    fn new(budget: usize) -> Self {
        Self { budget: budget.max(1), waiting: RefCell::default() }
    }

    /// Runs `detection`; `None` if it was shed.
    pub(crate) async fn wait<T>(&self, detection: impl Future<Output = T>) -> Option<T> {
        let mut detection = std::pin::pin!(detection);
        // Most peers have spoken already: no bookkeeping for them.
        if let Some(done) = futures::FutureExt::now_or_never(detection.as_mut()) {
            return Some(done);
        }
        let shed = Rc::new(tokio::sync::Notify::new());
        let guard = Waiting { all: self, own: shed.clone() };
        let oldest = {
            let mut waiting = self.waiting.borrow_mut();
            waiting.push_back(shed.clone());
            if waiting.len() > self.budget { waiting.pop_front() } else { None }
        };
        if let Some(oldest) = oldest {
            oldest.notify_one();
        }
        let done = tokio::select! {
            biased;
            () = shed.notified() => None,
            done = detection => Some(done),
        };
        drop(guard);
        done
    }
}

struct Waiting<'a> {
    all: &'a Undetected,
    own: Rc<tokio::sync::Notify>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.own));
    }
}

/// Runs hyper's own tasks on the worker's thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        // As it is: an `async` block around it would hold it twice, before it is polled and while.
        tokio::task::spawn_local(future);
    }
}

/// Seconds since the process began to count, the clock of [`crate::snapshot::DestinationCell::touch`].
pub(crate) fn coarse_now_s() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    // From 1, since 0 means never.
    START.get_or_init(Instant::now).elapsed().as_secs() + 1
}
