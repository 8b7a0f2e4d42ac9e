//! The place where everything recorded comes together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use maille_proto::flows;
use parking_lot::Mutex;

use crate::access_log::AccessLog;
use crate::naming::{Names, Naming};
use crate::prometheus;
use crate::recorder::WorkerRecorder;
use crate::tables::{Losses, Tables};

/// Who reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnWorkload {
    /// Value of the `…_cluster` labels of workloads of this cluster, e.g. `Kubernetes`.
    pub cluster: String,
    /// Value of `tag` in `istio_build`.
    pub version: String,
}

/// What the proxy says of itself; set by whoever knows, read at scrape time.
#[derive(Debug, Default)]
pub struct ProxyGauges {
    identity: OnceLock<String>,
    certificate_expiry: AtomicI64,
    root_expiry: AtomicI64,
    certificate_rotations: AtomicU64,
    certificate_failures: AtomicU64,
    certificate_renewed_at: AtomicI64,
    clock_skew_ms: AtomicI64,
    clock_skew_is_known: AtomicBool,
    expiring_connections: AtomicU64,
    xds_connected: AtomicBool,
    xds_last_update: AtomicI64,
    xds_rejections: AtomicU64,
    config_generation: AtomicU64,
    destinations: AtomicU64,
    dns: DnsCounters,
}

/// Questions of the application, as Istio's agent counts them.
#[derive(Debug, Default)]
struct DnsCounters {
    answered_here: AtomicBool,
    requests: AtomicU64,
    upstream_requests: AtomicU64,
    upstream_failures: AtomicU64,
}

impl ProxyGauges {
    /// A certificate was obtained at `now` that is valid until `not_after`.
    pub fn certificate_renewed(&self, not_after: SystemTime, now: SystemTime) {
        self.certificate_loaded(not_after);
        self.certificate_renewed_at.store(unix_seconds(now), Ordering::Relaxed);
        self.certificate_rotations.fetch_add(1, Ordering::Relaxed);
    }

    /// A certificate valid until `not_after` is in use that was not just obtained.
    pub fn certificate_loaded(&self, not_after: SystemTime) {
        self.certificate_expiry.store(unix_seconds(not_after), Ordering::Relaxed);
    }

    /// Whose certificate it is. Only the first call counts.
    pub fn identity(&self, identity: String) {
        let _ = self.identity.set(identity);
    }

    /// The roots that came with the certificate; the first of them ends at `not_after`.
    pub fn roots_loaded(&self, not_after: SystemTime) {
        self.root_expiry.store(unix_seconds(not_after), Ordering::Relaxed);
    }

    /// An attempt to obtain a certificate failed.
    pub fn certificate_failed(&self) {
        self.certificate_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The own clock is ahead of the authority's by so many seconds; negative if it is behind.
    pub fn clock_skew(&self, seconds: f64) {
        self.clock_skew_ms.store((seconds * 1000.0) as i64, Ordering::Relaxed);
        self.clock_skew_is_known.store(true, Ordering::Release);
    }

    /// The count of open TCP connections on certificates that end soon, and with them, has changed.
    pub fn expiring_connections(&self, before: u64, now: u64) {
        // Differences of several workers add up; each adds what it has taken away.
        self.expiring_connections.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// The stream to the control plane is up or down.
    pub fn xds_connected(&self, connected: bool) {
        self.xds_connected.store(connected, Ordering::Relaxed);
    }

    /// An update of the control plane arrived.
    pub fn xds_updated(&self, now: SystemTime) {
        self.xds_last_update.store(unix_seconds(now), Ordering::Relaxed);
    }

    /// A resource was rejected.
    pub fn xds_rejected(&self, resources: u64) {
        self.xds_rejections.fetch_add(resources, Ordering::Relaxed);
    }

    /// Snapshot number `generation` is in force.
    pub fn config_generation(&self, generation: u64) {
        self.config_generation.store(generation, Ordering::Relaxed);
    }

    /// This many destinations are held.
    pub fn destinations(&self, count: u64) {
        self.destinations.store(count, Ordering::Relaxed);
    }

    /// The application's DNS questions are answered here from now on.
    pub fn dns_starts(&self) {
        self.dns.answered_here.store(true, Ordering::Relaxed);
    }

    /// The application asked for a name.
    pub fn dns_received(&self) {
        self.dns.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A resolver was asked.
    pub fn dns_asked(&self) {
        self.dns.upstream_requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A resolver did not answer.
    pub fn dns_failed(&self) {
        self.dns.upstream_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn reading(&self) -> GaugeReading {
        GaugeReading {
            identity: self.identity.get().cloned().unwrap_or_default(),
            now: unix_seconds(SystemTime::now()),
            root_expiry: self.root_expiry.load(Ordering::Relaxed),
            certificate_expiry: self.certificate_expiry.load(Ordering::Relaxed),
            certificate_rotations: self.certificate_rotations.load(Ordering::Relaxed),
            certificate_failures: self.certificate_failures.load(Ordering::Relaxed),
            certificate_renewed_at: self.certificate_renewed_at.load(Ordering::Relaxed),
            clock_skew: self
                .clock_skew_is_known
                .load(Ordering::Acquire)
                .then(|| self.clock_skew_ms.load(Ordering::Relaxed) as f64 / 1000.0),
            expiring_connections: self.expiring_connections.load(Ordering::Relaxed),
            xds_connected: self.xds_connected.load(Ordering::Relaxed),
            xds_last_update: self.xds_last_update.load(Ordering::Relaxed),
            xds_rejections: self.xds_rejections.load(Ordering::Relaxed),
            config_generation: self.config_generation.load(Ordering::Relaxed),
            destinations: self.destinations.load(Ordering::Relaxed),
            dns: self.dns.answered_here.load(Ordering::Relaxed).then(|| {
                let DnsCounters { requests, upstream_requests, upstream_failures, .. } = &self.dns;
                [requests, upstream_requests, upstream_failures].map(|count| count.load(Ordering::Relaxed))
            }),
        }
    }
}

/// The gauges at one moment; times in Unix seconds, 0 if there is none yet.
#[derive(Debug, Clone)]
pub(crate) struct GaugeReading {
    pub(crate) identity: String,
    pub(crate) now: i64,
    pub(crate) root_expiry: i64,
    pub(crate) certificate_expiry: i64,
    pub(crate) certificate_rotations: u64,
    pub(crate) certificate_failures: u64,
    /// 0: none was obtained in this life.
    pub(crate) certificate_renewed_at: i64,
    pub(crate) clock_skew: Option<f64>,
    pub(crate) expiring_connections: u64,
    pub(crate) xds_connected: bool,
    pub(crate) xds_last_update: i64,
    pub(crate) xds_rejections: u64,
    pub(crate) config_generation: u64,
    pub(crate) destinations: u64,
    /// Questions, questions passed on, and those that failed; `None` where DNS is not captured.
    pub(crate) dns: Option<[u64; 3]>,
}

fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Everything recorded in one process.
pub struct Registry {
    own: OwnWorkload,
    gauges: ProxyGauges,
    access_log: AccessLog,
    losses: Arc<Losses>,
    names: OnceLock<Arc<dyn Names>>,
    workers: Mutex<Vec<Arc<Mutex<Tables>>>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Registry {
    /// An empty registry.
    pub fn new(own: OwnWorkload, access_log: AccessLog) -> Arc<Self> {
        Arc::new(Self {
            own,
            gauges: ProxyGauges::default(),
            access_log,
            losses: Arc::default(),
            names: OnceLock::new(),
            workers: Mutex::default(),
        })
    }

    /// A recorder for one more worker. What it records stays readable after it is gone.
    pub fn worker(&self) -> WorkerRecorder {
        let tables = Arc::<Mutex<Tables>>::default();
        self.workers.lock().push(tables.clone());
        WorkerRecorder::new(tables, self.losses.clone(), self.access_log.clone())
    }

    /// Asks `names` who is behind an address that was counted without a name. Only the first call counts.
    pub fn set_names(&self, names: Arc<dyn Names>) {
        let _ = self.names.set(names);
    }

    fn name_callers(&self) {
        let Some(names) = self.names.get() else { return };
        for worker in self.workers() {
            let waiting = worker.lock().waiting();
            let found = waiting.into_iter().filter_map(|caller| match names.name(caller.0, &caller.1) {
                Naming::Named(workload) => Some((caller, workload)),
                Naming::Pending => None,
            });
            let found = found.collect();
            worker.lock().give_names(&found);
        }
    }

    /// What the proxy says of itself.
    pub fn gauges(&self) -> &ProxyGauges {
        &self.gauges
    }

    /// Handshakes of mutual TLS so far: side, key exchange, version, and how many; sorted.
    pub fn handshakes(&self) -> Vec<(&'static str, &'static str, &'static str, u64)> {
        let mut sums = BTreeMap::<_, u64>::new();
        for worker in self.workers() {
            for (key, count) in &worker.lock().handshakes {
                *sums.entry(*key).or_default() += count;
            }
        }
        sums.into_iter().map(|((side, key_exchange, version), n)| (side, key_exchange, version, n)).collect()
    }

    /// The page for Prometheus, in text format 0.0.4.
    pub fn render_prometheus(&self) -> String {
        self.name_callers();
        let mut page = prometheus::Page::default();
        for worker in self.workers() {
            // Handles are copied and summed afterwards: the worker may wait for this lock.
            let (series, refusals, rejections, decisions, handshakes) = {
                let tables = worker.lock();
                let all = tables.series.iter().chain(tables.unnamed.iter());
                let series: Vec<_> = all.map(|(k, s)| (k.clone(), s.clone())).collect();
                (
                    series,
                    tables.refusals.clone(),
                    tables.rejections.clone(),
                    tables.decisions.clone(),
                    tables.handshakes.clone(),
                )
            };
            page.add_worker(&series, refusals, rejections);
            page.add_decisions(decisions);
            page.add_handshakes(handshakes);
        }
        page.render(&self.own, &self.gauges.reading(), &self.losses, self.access_log.dropped())
    }

    /// The flows that moved since the last call. Only one reader may exist: what it took is gone.
    pub fn take_flows(&self) -> Vec<flows::Flow> {
        // Metrics are not read as often as this, and an address may have another workload by then.
        self.name_callers();
        let now = SystemTime::now();
        let mut moved = Vec::new();
        for worker in self.workers() {
            worker.lock().take_flows(now, &mut moved);
        }
        moved.into_iter().map(|flow| flow.message(now)).collect()
    }

    fn workers(&self) -> Vec<Arc<Mutex<Tables>>> {
        self.workers.lock().clone()
    }
}
