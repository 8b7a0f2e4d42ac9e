//! One proxy process of a Pod after the other: what the newcomer takes, what the old one gives.

use std::io;
use std::path::PathBuf;

use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::start::Agent;
use super::state::StateStore;
use crate::snapshot::Direction;
use crate::takeover::{self, Channel, Door, Handed, Role, TakeoverError};
use crate::workers::{HeldListener, Workers};

/// The process that serves when this one starts, if there is one.
pub(crate) struct Predecessor(Option<Channel>);

impl Predecessor {
    pub(crate) fn find(agent: &Agent) -> Self {
        Self(path(agent).and_then(|path| takeover::find(&path)))
    }

    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Waits until it is gone; for ever if there was none.
    pub(crate) async fn gone(&mut self) {
        match &self.0 {
            Some(channel) => channel.gone().await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }

    /// Its sockets, when this process can serve; none if there is nobody any more.
    pub(crate) async fn take(&mut self) -> Result<Vec<Handed>, TakeoverError> {
        let Some(channel) = &self.0 else { return Ok(Vec::new()) };
        match takeover::take(channel).await {
            Ok(sockets) => {
                info!(sockets = sockets.len(), "taking over from the proxy that runs");
                Ok(sockets)
            }
            Err(TakeoverError::Gone) => {
                self.0 = None;
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Tells it that this process serves now.
    pub(crate) async fn dismiss(self) {
        let Some(channel) = self.0 else { return };
        match takeover::confirm(&channel).await {
            Ok(()) => info!("the proxy before finishes its connections"),
            // Both may have the sockets for as long as it lives, which serves callers as well.
            Err(error) => warn!(%error, "the proxy before did not let go"),
        }
    }
}

/// Where a successor knocks, and the conversation with it.
pub(crate) struct Heir {
    door: Option<Door>,
    talk: Option<JoinHandle<Result<Channel, TakeoverError>>>,
}

/// The listening sockets that a successor gets; none once this process is about to end.
pub(crate) type Sockets = std::sync::Arc<parking_lot::Mutex<Vec<Handed>>>;

impl Heir {
    /// Opens the door, where there is a place for it.
    pub(crate) fn expect(agent: &Agent) -> Self {
        let door = path(agent).and_then(|path| match Door::open(&path) {
            Ok(door) => Some(door),
            Err(error) => {
                warn!(%error, path = %path.display(), "no other process can take over from this one");
                None
            }
        });
        Self { door, talk: None }
    }

    /// Waits until a successor serves on the sockets that `sockets` holds then. Cancel-safe.
    pub(crate) async fn serves(&mut self, sockets: &Sockets) -> Channel {
        loop {
            if let Some(talk) = &mut self.talk {
                let outcome = talk.await;
                self.talk = None;
                match outcome {
                    Ok(Ok(channel)) => return channel,
                    // It never served; everything is as it was.
                    Ok(Err(error)) => warn!(%error, "a successor did not take over"),
                    Err(error) => warn!(%error, "a successor did not take over"),
                }
            }
            let Some(door) = &self.door else { return std::future::pending().await };
            let (channel, sockets) = (door.successor().await, sockets.clone());
            info!("another proxy of this Pod is getting ready to take over");
            self.talk = Some(tokio::spawn(takeover::offer(channel, move || copies(&sockets.lock()))));
        }
    }

    /// Nobody is heard any more.
    pub(crate) fn close(&mut self) {
        self.door = None;
        if let Some(talk) = self.talk.take() {
            talk.abort();
        }
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        self.close();
    }
}

fn path(agent: &Agent) -> Option<PathBuf> {
    agent.store.as_deref().map(|store: &StateStore| store.path(takeover::SOCKET))
}

fn copies(sockets: &[Handed]) -> io::Result<Vec<Handed>> {
    let copy = |handed: &Handed| Ok(Handed { role: handed.role, socket: handed.socket.try_clone()? });
    sockets.iter().map(copy).collect()
}

/// Every socket that this process listens on. The kernel refuses callers only when these are closed as well.
pub(crate) fn sockets(agent: &mut Agent, workers: &Workers) -> Sockets {
    let mut all = agent.servers.give_sockets();
    all.extend(workers.give_listeners().into_iter().map(|held| Handed {
        role: match held.direction {
            Direction::Inbound => Role::Inbound,
            Direction::Outbound => Role::Outbound,
        },
        socket: held.socket.into(),
    }));
    Sockets::new(all.into())
}

/// Takes those of the data path from among inherited sockets.
pub(crate) fn take_listeners(inherited: &mut Vec<Handed>) -> Vec<HeldListener> {
    let direction = |role| match role {
        Role::Inbound => Some(Direction::Inbound),
        Role::Outbound => Some(Direction::Outbound),
        Role::Status | Role::Readiness | Role::Metrics | Role::Admin | Role::Unknown => None,
    };
    inherited
        .extract_if(.., |handed| direction(handed.role).is_some())
        .filter_map(|handed| {
            Some(HeldListener { direction: direction(handed.role)?, socket: handed.socket.into() })
        })
        .collect()
}
