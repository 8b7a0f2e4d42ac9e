//! The status servers' sockets: bound, inherited, handed on.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::server::{Pages, bind, serve};
use crate::takeover::{Handed, Role};

/// Addresses of the status servers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listening {
    pub(crate) readiness: SocketAddr,
    pub(crate) status: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Listening {
    fn nowhere() -> Self {
        let none = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Self { readiness: none, status: none, metrics: none, admin: none }
    }
}

/// One server before it listens.
pub(crate) struct Server {
    pub(crate) role: Role,
    pub(crate) address: SocketAddr,
    pub(crate) pages: Arc<dyn Pages>,
}

/// The running status servers; none at first.
pub(crate) struct StatusServers {
    pub(crate) listening: Listening,
    tasks: JoinSet<()>,
    held: Vec<(Role, std::net::TcpListener)>,
}

impl Default for StatusServers {
    fn default() -> Self {
        Self { listening: Listening::nowhere(), tasks: JoinSet::new(), held: Vec::new() }
    }
}

impl StatusServers {
    /// Starts a server, on a socket of `inherited` if one is its own.
    pub(crate) fn start(&mut self, server: Server, inherited: &mut Vec<Handed>) -> anyhow::Result<()> {
        let Server { role, address, pages } = server;
        let own = |handed: &mut Handed| handed.role == role;
        let listener = match inherited.extract_if(.., own).map(|handed| handed.socket).next() {
            Some(socket) => adopt(std::net::TcpListener::from(socket)),
            None => bind(address),
        };
        let (at, held, listener) = listener
            .and_then(|listener| {
                let listener = listener.into_std()?;
                Ok((listener.local_addr()?, listener.try_clone()?, TcpListener::from_std(listener)?))
            })
            .with_context(|| format!("cannot listen on {address}; is another proxy running here?"))?;
        match role {
            Role::Readiness => self.listening.readiness = at,
            Role::Status => self.listening.status = at,
            Role::Metrics => self.listening.metrics = at,
            Role::Admin => self.listening.admin = at,
            Role::Inbound | Role::Outbound | Role::Unknown => {}
        }
        self.held.push((role, held));
        self.tasks.spawn(serve(listener, pages));
        Ok(())
    }

    /// Their sockets, for a successor. The caller closes them before callers can be refused.
    pub(crate) fn give_sockets(&mut self) -> Vec<Handed> {
        let give = |(role, socket): (Role, std::net::TcpListener)| Handed { role, socket: socket.into() };
        std::mem::take(&mut self.held).into_iter().map(give).collect()
    }

    /// Accepts nothing more; what was accepted is answered.
    pub(crate) async fn release(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Waits until one of them ends, which only a fault of ours can cause. Pending for ever when none runs.
    pub(crate) async fn fault(&mut self) -> Result<(), tokio::task::JoinError> {
        match self.tasks.join_next().await {
            Some(end) => end,
            None => std::future::pending().await,
        }
    }
}

fn adopt(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}
