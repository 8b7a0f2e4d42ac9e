//! Starts, drains and stops the workers of a data path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::snapshot::{DataPathConfig, ListenerSpec, Shared};
use crate::worker::Worker;

/// Waiting connections per listener; the kernel's own limit cuts it further.
const BACKLOG: i32 = 4096;

/// What the workers are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Accept and serve.
    Serve,
    /// No new inbound connections; those open finish what they have begun.
    Drain,
    /// Let go of everything.
    Stop,
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
}

impl Workers {
    /// Where each listener of the configuration listens, in its order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting inbound connections and lets those that are open finish (reference mtls 7.7). Outbound goes on.
    pub fn drain(&self) {
        self.phase.send_if_modified(|phase| {
            let begins = *phase == Phase::Serve;
            if begins {
                *phase = Phase::Drain;
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
    raise_descriptor_limit();
    let mut config = config;
    let count = config.workers.max(1);
    let mut sockets: Vec<Vec<(std::net::TcpListener, ListenerSpec)>> =
        (0..count).map(|_| Vec::new()).collect();
    for spec in &mut config.listeners {
        for of_worker in &mut sockets {
            let socket =
                listen(spec.address).map_err(|error| StartError::Listen { address: spec.address, error })?;
            // The first chooses the port for all.
            spec.address =
                socket.local_addr().map_err(|error| StartError::Listen { address: spec.address, error })?;
            of_worker.push((socket, spec.clone()));
        }
    }
    let addresses = config.listeners.iter().map(|spec| spec.address).collect();
    let config = Arc::new(config);
    let phase = watch::Sender::new(Phase::Serve);
    let mut threads = Vec::with_capacity(count);
    for (number, listeners) in sockets.into_iter().enumerate() {
        let (shared, config, phase) = (shared.clone(), config.clone(), phase.subscribe());
        let thread = start_worker(number, shared, config, listeners, phase)
            .map_err(|error| StartError::Worker { number, error })?;
        threads.push(thread);
    }
    Ok(Workers { phase, threads, addresses })
}

/// The soft limit is often 1024 for the sake of programs that use `select`; each connection here takes two.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = ?limit.current, "the limit of open files cannot be raised");
    }
}

fn start_worker(
    number: usize,
    shared: Shared,
    config: Arc<DataPathConfig>,
    listeners: Vec<(std::net::TcpListener, ListenerSpec)>,
    phase: watch::Receiver<Phase>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners = {
        let _context = runtime.enter();
        let adopt = |(socket, spec)| Ok((TcpListener::from_std(socket)?, spec));
        listeners.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?
    };
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let seed = rand::random();
        LocalSet::new().block_on(&runtime, async move {
            Worker::new(shared, config, seed).run(listeners, phase).await;
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
