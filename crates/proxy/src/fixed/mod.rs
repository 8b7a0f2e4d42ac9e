//! A sidecar from a file: `maille proxy --static FILE`.
//!
//! For tests, benchmarks and bug reports: the facts that the control plane would send come from a YAML file,
//! certificates from PEM files, and listeners stand for addresses in place of interception. The data path is the same.
//! SIGHUP reads the file again; listeners stay as they are.

/// Names in YAML and the numbers of the messages.
macro_rules! names {
    ($(#[$meta:meta])* $name:ident { $($(#[$mark:meta])* $variant:ident = $text:literal => $value:expr),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Deserialize)]
        pub(super) enum $name { $($(#[$mark])* #[serde(rename = $text)] $variant),+ }
        impl $name {
            pub(super) fn proto(self) -> i32 {
                match self { $(Self::$variant => $value as i32),+ }
            }
        }
    };
}

mod destination;
mod file;
mod request;
mod resolver;
mod traffic;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use maille_policy::authentication::Authentication;
use maille_policy::{PolicySet, TrustContext};
use maille_telemetry::access_log::Format;
use maille_telemetry::{AccessLog, OwnWorkload, Registry};
use maille_tls::TlsContext;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::memory::Memory;
use crate::snapshot::{DataPathConfig, Shared, Snapshot, SnapshotCell};
use crate::upkeep::Upkeep;
use crate::workers::{Workers, start_workers};
use file::File;
use resolver::FixedResolver;

pub use file::FileError;

/// How long connections may take to finish after SIGTERM (reference mtls 7.7).
const DRAIN: Duration = Duration::from_secs(5);
const STOP: Duration = Duration::from_secs(2);

/// One sidecar that lives by a file.
pub struct StaticProxy {
    path: PathBuf,
    snapshot: Arc<SnapshotCell>,
    resolver: Arc<FixedResolver>,
    tls: Arc<TlsContext>,
    telemetry: Arc<Registry>,
    workers: Workers,
    /// For what an agent does beside the workers.
    _beside: Beside,
}

/// Looks after names and files.
struct Beside(Option<Runtime>);

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A look-up or a read under way must not hold up the end.
            runtime.shutdown_background();
        }
    }
}

impl StaticProxy {
    /// Reads the file and starts to serve.
    pub fn start(path: &Path) -> anyhow::Result<Self> {
        Self::start_with(path, Memory::default())
    }

    fn start_with(path: &Path, memory: Memory) -> anyhow::Result<Self> {
        let file = File::read(path)?;
        let (svid, trust) = file.credentials()?;
        let tls = Arc::new(TlsContext::new(svid, trust)?);
        tls.replace_parameters(file.settings()?.tls)?;
        let snapshot = Arc::new(SnapshotCell::new(snapshot(&file)?));
        let beside = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(2)
            .thread_name("beside")
            .enable_all()
            .build()?;
        let upkeep = Upkeep::new(file.dns_servers());
        beside.spawn(upkeep.clone().run());
        let resolver = Arc::new(FixedResolver::new(beside.handle().clone(), upkeep, file.destinations()?));
        let own =
            OwnWorkload { cluster: "Kubernetes".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let access_log = match (&file.access_log_file, file.access_log) {
            (Some(path), _) => {
                let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
                let log = log.with_context(|| format!("cannot log to {}", path.display()))?;
                AccessLog::to(log, Format::Text, "static")?
            }
            (None, true) => AccessLog::to_stdout(Format::Text, "static")?,
            (None, false) => AccessLog::disabled(),
        };
        let telemetry = Registry::new(own, access_log);
        let shared = Shared {
            snapshot: snapshot.clone(),
            destinations: resolver.clone(),
            tls: tls.clone(),
            telemetry: telemetry.clone(),
        };
        let config = DataPathConfig {
            workers: file.workers,
            listeners: file.listeners()?,
            deliver_from: file.deliver_from,
            limits: file.limits(),
            memory,
        };
        let workers = start_workers(shared, config)?;
        Ok(Self {
            path: path.to_owned(),
            snapshot,
            resolver,
            tls,
            telemetry,
            workers,
            _beside: Beside(Some(beside)),
        })
    }

    /// Reads the file again: facts and certificates are replaced, or nothing is if anything in it is wrong.
    pub fn reload(&self) -> anyhow::Result<()> {
        let file = File::read(&self.path)?;
        let (svid, trust) = file.credentials()?;
        let next = snapshot(&file)?;
        let destinations = file.destinations()?;
        let current = self.tls.current();
        if current.trust() != &trust {
            self.tls.replace_trust(trust)?;
        }
        if current.parameters() != &next.settings.tls {
            self.tls.replace_parameters(next.settings.tls.clone())?;
        }
        if current.svid().serial() != svid.serial() {
            self.tls.replace_svid(svid)?;
        }
        self.resolver.replace(destinations);
        self.snapshot.replace(next);
        Ok(())
    }

    /// The workers, with the addresses they listen on in the file's order.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// What was seen, as Prometheus reads it.
    pub fn metrics(&self) -> String {
        self.telemetry.render_prometheus()
    }

    /// What was seen since the last call, as the control plane would hear of it.
    pub fn take_flows(&self) -> Vec<maille_proto::flows::Flow> {
        self.telemetry.take_flows()
    }

    /// Lets inbound connections finish for as long as `drain`, then ends.
    pub fn stop(self, drain: Duration) {
        self.workers.drain();
        std::thread::sleep(drain / 2);
        self.workers.refuse_inbound();
        std::thread::sleep(drain / 2);
        self.workers.stop(STOP);
    }
}

/// Runs one sidecar from a file until SIGTERM or SIGINT. Prints one line per listener once it serves.
pub fn run_static(path: &Path, memory: Memory) -> anyhow::Result<()> {
    let proxy = StaticProxy::start_with(path, memory)?;
    for address in proxy.workers().addresses() {
        println!("listening on {address}");
    }
    (memory.once_serving)();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended_by_signal = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = terminate.recv() => return anyhow::Ok(true),
                _ = interrupt.recv() => return Ok(false),
                _ = hangup.recv() => match proxy.reload() {
                    Ok(()) => tracing::info!("facts were read again"),
                    Err(error) => tracing::error!(%error, "the old facts stay in force"),
                },
                _ = look.tick() => anyhow::ensure!(!proxy.workers().has_failed(), "a worker has ended by itself"),
            }
        }
    })?;
    proxy.stop(if ended_by_signal { DRAIN } else { Duration::ZERO });
    Ok(())
}

fn snapshot(file: &File) -> anyhow::Result<Snapshot> {
    let settings = file.settings()?;
    let context = TrustContext {
        trust_domain: settings.trust_domain.clone(),
        aliases: settings.trust_domain_aliases.clone(),
        root_namespace: settings.root_namespace.clone(),
    };
    let (policy, problems) = PolicySet::compile(&file.authorizations(), &context);
    if let Some(problem) = problems.first() {
        anyhow::bail!("{problem}");
    }
    let (authentication, problems) = Authentication::compile(&file.request_authentications());
    for problem in problems {
        // As in a mesh: the rule is in force, and refuses.
        tracing::warn!(%problem, "tokens cannot be verified in full");
    }
    Ok(Snapshot {
        settings,
        inbound: Arc::new(file.inbound()?),
        policy: Arc::new(policy),
        authentication: Arc::new(authentication),
        generation: 0,
    })
}
