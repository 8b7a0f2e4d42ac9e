//! The life of a sidecar's process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use maille_core::ports::INBOUND_SOURCE_V4;
use maille_telemetry::{AccessLog, OwnWorkload, Registry};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{debug, info, warn};

use super::options::{DrainOptions, ProxyOptions};
use super::start::Agent;
use super::status::Need;
use super::status_pages::Order;
use super::succession::{self, Heir, Predecessor, Sockets};
use crate::snapshot::{DataPathConfig, Direction, Limits, ListenerSpec, Shared, Target};
use crate::workers::{Workers, start_workers_on};

/// How long workers may take to let go at the very end.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// How long a process whose place was taken lives on for its connections (Envoy's `--parent-shutdown-time-s`).
const FINISH_LIMIT: Duration = Duration::from_secs(900);
/// How often connections are counted by who waits for the last to close.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the workers are looked after.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Runs a sidecar until it is told to end: SIGTERM or SIGINT drain first (a second one ends at once), `/quitquitquit`
/// ends at once (reference mtls 7.7).
///
/// The calling thread becomes the agent's; it must not be inside a runtime.
pub fn run(options: ProxyOptions) -> anyhow::Result<()> {
    keep_memory_private();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Name look-ups and file reads only.
        .max_blocking_threads(2)
        .thread_stack_size(512 << 10)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_name("agent-io")
        .build()
        .context("cannot start the agent's runtime")?;
    let outcome = runtime.block_on(live(Arc::new(options)));
    // A name look-up that hangs must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Neither a core dump nor another process of the same user may read the key (design, rule 3).
fn keep_memory_private() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "other processes of this user may read this process's memory");
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        warn!(%error, "core dumps cannot be turned off");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn live(options: Arc<ProxyOptions>) -> anyhow::Result<()> {
    let mut signals =
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let access_log =
        AccessLog::to_stdout(options.access_log, &options.uid()).context("cannot start the access log")?;
    let own = OwnWorkload { cluster: options.cluster.clone(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let telemetry = Registry::new(own, access_log);
    info!(workload = options.uid(), identity = %options.identity, "starting");
    let mut agent = Agent::prepare(options.clone(), telemetry)?;
    let mut predecessor = Predecessor::find(&agent);
    if !predecessor.is_there() {
        agent.listen(&mut Vec::new())?;
    }
    let Some(shared) = become_able(&mut agent, &mut signals, &mut predecessor).await? else { return Ok(()) };
    let mut inherited = predecessor.take().await?;
    let listeners = succession::take_listeners(&mut inherited);
    let workers = start_workers_on(shared, data_path(&options), listeners)?;
    // Before the servers answer in the place of a process that was ready: who hears of this one may start the next.
    agent.readiness.met(Need::Listeners);
    let heir = Heir::expect(&agent);
    agent.listen(&mut inherited)?;
    let at = agent.servers.listening;
    debug!(readiness = %at.readiness, status = %at.status, metrics = %at.metrics, admin = %at.admin, "status servers listen");
    predecessor.dismiss().await;
    info!(workers = options.workers, "serving");
    (options.memory.once_serving)();

    let sockets = succession::sockets(&mut agent, &workers);
    let end = serve(&mut agent, &mut signals, &workers, &sockets, heir, &options).await?;
    match end {
        End::AtOnce => {}
        End::AfterDraining => drain(&mut agent, &mut signals, &workers, &sockets, &options.drain).await,
        End::Drained => hand_on(&mut agent, &mut signals, &workers, &options.drain).await,
        End::Succeeded => finish(&mut agent, &mut signals, &workers, &options.drain).await,
    }
    if !workers.stop(STOP_LIMIT) {
        warn!("workers did not end in time");
    }
    Ok(())
}

/// Waits until there is all that the data path needs; `None` if the process is told to end before.
async fn become_able(
    agent: &mut Agent,
    signals: &mut Signals,
    predecessor: &mut Predecessor,
) -> anyhow::Result<Option<Shared>> {
    let mut everything = agent.shared.clone();
    loop {
        tokio::select! {
            shared = everything.wait_for(Option::is_some) => {
                let shared = shared.context("the agent ended")?.clone().context("the agent has nothing to share")?;
                return Ok(Some(shared));
            }
            () = signals.next() => return Ok(None),
            Some(end) = agent.tasks.join_next() => return Err(fault(end)),
            end = agent.servers.fault() => return Err(fault(end)),
            () = predecessor.gone() => agent.listen(&mut Vec::new())?,
            order = agent.orders.recv() => match order {
                Some(Order::Quit) => return Ok(None),
                // Nothing is accepted yet.
                Some(Order::Drain) => agent.readiness.drain(),
                None => anyhow::bail!("the status server ended"),
            },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    AfterDraining,
    /// The application has ended; what it said last may still be on its way.
    Drained,
    AtOnce,
    /// Another process serves now.
    Succeeded,
}

/// Until somebody says that it is enough.
async fn serve(
    agent: &mut Agent,
    signals: &mut Signals,
    workers: &Workers,
    sockets: &Sockets,
    mut heir: Heir,
    options: &ProxyOptions,
) -> anyhow::Result<End> {
    let mut check = tokio::time::interval(CHECK_EVERY);
    let mut is_draining = false;
    let mut welcome = pin!(futures::future::OptionFuture::default());
    loop {
        tokio::select! {
            // Drained already, by the hook that a native sidecar has for it: the application has ended.
            () = signals.next() => return Ok(if is_draining { End::Drained } else { End::AfterDraining }),
            order = agent.orders.recv() => match order {
                Some(Order::Quit) => return Ok(End::AtOnce),
                Some(Order::Drain) if is_draining => {}
                Some(Order::Drain) => {
                    is_draining = true;
                    begin_drain(agent, workers, sockets);
                    // Nobody has said yet when the end is, and the application may wait for callers of its own.
                    welcome.set(Some(tokio::time::sleep(options.drain.window)).into());
                }
                None => anyhow::bail!("the status server ended"),
            },
            Some(()) = welcome.as_mut() => {
                welcome.set(None.into());
                workers.refuse_inbound();
            }
            successor = heir.serves(sockets) => {
                workers.hand_over();
                sockets.lock().clear();
                agent.servers.release().await;
                if let Some(store) = &agent.store {
                    store.release();
                }
                heir.close();
                successor.released().await;
                return Ok(End::Succeeded);
            }
            end = agent.servers.fault() => return Err(fault(end)),
            // Without one of its parts it would go on, and its certificate or its facts would not.
            Some(end) = agent.tasks.join_next() => return Err(fault(end)),
            // A proxy with a dead worker would serve half of its connections; the restart serves all.
            _ = check.tick() => {
                anyhow::ensure!(!workers.has_failed(), "a worker has ended by a fault");
                (options.memory.give_back)();
            }
        }
    }
}

fn begin_drain(agent: &Agent, workers: &Workers, sockets: &Sockets) {
    info!(connections = workers.open_connections(), "draining");
    // Nobody takes over from a process that is about to end.
    sockets.lock().clear();
    agent.readiness.drain();
    workers.drain();
}

/// From SIGTERM to the end (reference mtls 7.7). A second signal or `/quitquitquit` cuts it short.
async fn drain(
    agent: &mut Agent,
    signals: &mut Signals,
    workers: &Workers,
    sockets: &Sockets,
    options: &DrainOptions,
) {
    begin_drain(agent, workers, sockets);
    let finish = async {
        tokio::time::sleep(options.welcome()).await;
        workers.refuse_inbound();
        if options.until_unused {
            tokio::time::sleep(options.minimum.saturating_sub(options.welcome())).await;
            // Whoever wants an end to this ends the process: the Pod's grace period.
            until_unused(workers).await;
        } else {
            // To the last second: the application may have calls to make until its own end, which nobody tells here.
            tokio::time::sleep(options.termination.saturating_sub(options.welcome())).await;
        }
    };
    tokio::select! {
        () = finish => {}
        () = signals.next() => {}
        () = quit(agent) => {}
    }
}

/// From the end of an application that has drained to the end of what it said: answers that its callers have not read yet,
/// and what it sent to others. Where Istio ends at once, an application that ends with its last answer may lose it. A second
/// signal or `/quitquitquit` cuts it short.
async fn hand_on(agent: &mut Agent, signals: &mut Signals, workers: &Workers, options: &DrainOptions) {
    workers.refuse_inbound();
    tokio::select! {
        () = until_unused(workers) => {}
        // Else whoever wants an end to this ends the process: the Pod's grace period.
        () = tokio::time::sleep(options.termination), if !options.until_unused => {
            warn!(connections = workers.open_connections(), "cutting connections that did not end");
        }
        () = signals.next() => {}
        () = quit(agent) => {}
    }
}

/// After another process has taken over: serves what is open to its end. Facts and certificate stay current meanwhile, so
/// that policy holds for these connections too.
async fn finish(agent: &mut Agent, signals: &mut Signals, workers: &Workers, options: &DrainOptions) {
    info!(connections = workers.open_connections(), "another process serves now; finishing");
    let to_the_end = async {
        tokio::select! {
            () = until_unused(workers) => return,
            () = tokio::time::sleep(options.window) => workers.finish(),
        }
        if tokio::time::timeout(FINISH_LIMIT, until_unused(workers)).await.is_err() {
            warn!(connections = workers.open_connections(), "cutting connections that did not end");
        }
    };
    tokio::select! {
        () = to_the_end => {}
        // The whole Pod ends.
        () = signals.next() => {
            workers.finish();
            let _ = tokio::time::timeout(options.termination, until_unused(workers)).await;
        }
        Some(end) = agent.tasks.join_next() => warn!(error = %fault(end), "ending before its connections"),
    }
}

async fn until_unused(workers: &Workers) {
    while workers.open_connections() > 0 {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn fault(end: Result<(), tokio::task::JoinError>) -> anyhow::Error {
    match end {
        Ok(()) => anyhow::anyhow!("a part of the agent has ended"),
        Err(error) => anyhow::anyhow!("a part of the agent has ended by a fault: {error}"),
    }
}

async fn quit(agent: &mut Agent) {
    while let Some(order) = agent.orders.recv().await {
        if order == Order::Quit {
            return;
        }
    }
}

fn data_path(options: &ProxyOptions) -> DataPathConfig {
    let listeners = |direction, address| {
        every_family(address).into_iter().map(move |address| ListenerSpec {
            direction,
            address,
            target: Target::Redirected,
        })
    };
    DataPathConfig {
        workers: options.workers,
        listeners: listeners(Direction::Inbound, options.listen.inbound)
            .chain(listeners(Direction::Outbound, options.listen.outbound))
            .collect(),
        deliver_from: Some(INBOUND_SOURCE_V4.into()),
        limits: Limits::default(),
        memory: options.memory,
    }
}

/// "Every address" is a listener of each family that the kernel has: an IPv4 peer of an IPv6 socket
/// would have a mapped address, which matches no IPv4 block of a policy.
fn every_family(address: SocketAddr) -> Vec<SocketAddr> {
    if address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return vec![address];
    }
    let mut addresses = vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()))];
    if std::path::Path::new("/proc/net/if_inet6").exists() {
        addresses.push(address);
    }
    addresses
}
