//! Starts, drains and stops the workers of a data path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::pacing;
use crate::snapshot::{DataPathConfig, Direction, ListenerSpec, Shared};
use crate::worker::Worker;

/// Waiting connections per listener; the kernel's own limit cuts it further.
const BACKLOG: i32 = 4096;
/// Sockets that a worker serves before it writes what they came to, and looks for more. What goes over a shared connection
/// is written when nothing else is left to do: with all ready sockets at once (the library's 1,024), 64 callers become one
/// wave that every proxy on the way works on alone while the others wait. Measured on two cores with 64 connections:
/// 29,100 requests a second without a bound, 33,000 with 8, 35,200 with 16, 33,200 with 24, at the same CPU a request.
const EVENTS: usize = 16;

/// What the workers are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Accept and serve.
    Serve,
    /// Callers are to go elsewhere: inbound connections end with their next answer. New ones are still taken, for
    /// callers hear of it a moment later.
    Drain,
    /// No new inbound connections, and unused ones close.
    Refuse,
    /// Another process has the listeners: nothing new, and connections of both ways end with their next answer.
    HandOver,
    /// Unused connections of both ways close, too.
    Finish,
    /// Let go of everything.
    Stop,
}

/// Open connections of one worker. Written by that worker alone.
#[derive(Debug, Default)]
pub(crate) struct Load {
    inbound: AtomicUsize,
    outbound: AtomicUsize,
}

impl Load {
    fn of(&self, direction: Direction) -> &AtomicUsize {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    pub(crate) fn add(&self, direction: Direction) {
        self.of(direction).fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, direction: Direction) {
        self.of(direction).fetch_sub(1, Ordering::Relaxed);
    }

    /// Both ways.
    pub(crate) fn total(&self) -> usize {
        self.inbound.load(Ordering::Relaxed) + self.outbound.load(Ordering::Relaxed)
    }
}

/// Why the data path could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}; is another proxy running here?")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// A thread or its runtime could not be made.
    #[error("cannot start worker {number}: {error}")]
    Worker {
        /// Which worker.
        number: usize,
        /// What the kernel said.
        error: io::Error,
    },
}

/// The running data path.
///
/// Dropping it stops the workers without waiting for them.
#[derive(Debug)]
pub struct Workers {
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
    loads: Vec<Arc<Load>>,
    /// Kept for a successor, until it is given away or there can be none.
    sockets: Mutex<Vec<HeldListener>>,
}

/// A listening socket, for whoever is to have it too.
#[derive(Debug)]
pub(crate) struct HeldListener {
    pub(crate) direction: Direction,
    pub(crate) socket: std::net::TcpListener,
}

impl Workers {
    /// Where each listener of the configuration listens, in its order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Sends inbound callers elsewhere: HTTP connections end with their next answer, at the latest with
    /// [`Workers::refuse_inbound`]. New ones are taken until then, for callers with old news. Outbound goes on (LC-3).
    pub fn drain(&self) {
        self.enter(Phase::Drain);
    }

    /// Takes no new inbound connections from here on, lets go of unused ones, and lets the others finish.
    pub fn refuse_inbound(&self) {
        // The kernel refuses only when nobody has the sockets any more.
        self.sockets.lock().clear();
        self.enter(Phase::Refuse);
    }

    /// Accepts nothing more and leaves that to who has the sockets as well; connections end with their next answer.
    pub(crate) fn hand_over(&self) {
        self.enter(Phase::HandOver);
    }

    /// After [`Workers::hand_over`]: lets go of unused connections, too.
    pub(crate) fn finish(&self) {
        self.enter(Phase::Finish);
    }

    /// Open connections, both ways.
    pub(crate) fn open_connections(&self) -> usize {
        self.loads.iter().map(|load| load.total()).sum()
    }

    /// Its listening sockets, for a successor. The caller closes them before callers can be refused.
    pub(crate) fn give_listeners(&self) -> Vec<HeldListener> {
        std::mem::take(&mut *self.sockets.lock())
    }

    fn enter(&self, next: Phase) {
        self.phase.send_if_modified(|phase| {
            let begins = *phase < next;
            if begins {
                *phase = next;
            }
            begins
        });
    }

    /// Ends every connection and waits for the workers, at most `limit`; whether all ended in time.
    pub fn stop(mut self, limit: Duration) -> bool {
        self.phase.send_replace(Phase::Stop);
        let deadline = Instant::now() + limit;
        for thread in std::mem::take(&mut self.threads) {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            // A worker's panic was printed by its thread; there is nothing left to save here.
            let _ = thread.join();
        }
        true
    }

    /// Whether a worker has ended by itself, which only a fault of ours can cause.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Stop);
    }
}

/// Binds every listener in every worker and starts them. Once it returns, connections are accepted.
pub fn start_workers(shared: Shared, config: DataPathConfig) -> Result<Workers, StartError> {
    start_workers_on(shared, config, Vec::new())
}

/// As [`start_workers`], with sockets that listen already. Each of those is accepted from, for somebody may wait in it;
/// those that the configuration does not name are closed.
pub(crate) fn start_workers_on(
    shared: Shared,
    mut config: DataPathConfig,
    inherited: Vec<HeldListener>,
) -> Result<Workers, StartError> {
    raise_descriptor_limit();
    let count = config.workers.max(1);
    let mut inherited: Vec<_> =
        inherited.into_iter().filter_map(|held| Some((held.socket.local_addr().ok()?, held))).collect();
    let mut of_workers: Vec<Vec<(std::net::TcpListener, ListenerSpec)>> =
        (0..count).map(|_| Vec::new()).collect();
    let mut held = Vec::new();
    for spec in &mut config.listeners {
        let wanted = spec.address;
        let fails = |error| StartError::Listen { address: wanted, error };
        let (ours, others) =
            inherited.into_iter().partition(|(at, held)| (*at, held.direction) == (wanted, spec.direction));
        inherited = others;
        let mut sockets: Vec<_> = Vec::from_iter(ours).into_iter().map(|(_, held)| held.socket).collect();
        while sockets.len() < count {
            let socket = listen(spec.address).map_err(fails)?;
            // The first chooses the port for all.
            spec.address = socket.local_addr().map_err(fails)?;
            sockets.push(socket);
        }
        for (number, socket) in sockets.into_iter().enumerate() {
            if spec.is_of_this_machine() {
                pacing::spare(&socket);
            }
            let copy = socket.try_clone().map_err(fails)?;
            held.push(HeldListener { direction: spec.direction, socket: copy });
            if let Some(of_worker) = of_workers.get_mut(number % count) {
                of_worker.push((socket, spec.clone()));
            }
        }
    }
    let addresses = config.listeners.iter().map(|spec| spec.address).collect();
    let config = Arc::new(config);
    let phase = watch::Sender::new(Phase::Serve);
    let loads: Vec<Arc<Load>> = (0..count).map(|_| Arc::default()).collect();
    let mut threads = Vec::with_capacity(count);
    for (number, (listeners, load)) in of_workers.into_iter().zip(&loads).enumerate() {
        let start = Start {
            shared: shared.clone(),
            config: config.clone(),
            load: load.clone(),
            listeners,
            phase: phase.subscribe(),
        };
        threads.push(start_worker(number, start).map_err(|error| StartError::Worker { number, error })?);
    }
    Ok(Workers { phase, threads, addresses, loads, sockets: Mutex::new(held) })
}

/// The soft limit is often 1024 for the sake of programs that use `select`; each connection here takes two.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = ?limit.current, "the limit of open files cannot be raised");
    }
}

/// What one worker begins with.
struct Start {
    shared: Shared,
    config: Arc<DataPathConfig>,
    load: Arc<Load>,
    listeners: Vec<(std::net::TcpListener, ListenerSpec)>,
    phase: watch::Receiver<Phase>,
}

fn start_worker(number: usize, start: Start) -> io::Result<JoinHandle<()>> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_io_events_per_tick(EVENTS).enable_all().build()?;
    let Start { shared, config, load, listeners, phase } = start;
    let listeners = {
        let _context = runtime.enter();
        let adopt = |(socket, spec)| Ok((TcpListener::from_std(socket)?, spec));
        listeners.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?
    };
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let seed = rand::random();
        LocalSet::new().block_on(&runtime, async move {
            Worker::new(shared, config, load, seed).run(listeners, phase).await;
        });
    })
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // IPv4 has its own listener: a mapped address would match no IPv4 block of a policy.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
