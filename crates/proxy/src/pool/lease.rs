//! A connection while one exchange uses it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use hyper::client::conn::http1;

use super::Pool;
use super::bounds::Life;
use super::shared::Streams;
use super::single::Idle;
use crate::balance::Held;
use crate::http::body::Body;
use crate::server_proof::ServerProof;
use crate::worker::Worker;

/// A connection in use by one exchange.
pub(crate) struct Lease {
    pub(super) pool: Rc<Pool>,
    pub(super) sender: Option<http1::SendRequest<Body>>,
    pub(super) streams: Option<Rc<Streams>>,
    pub(super) generation: u64,
    /// The own end of an HTTP/1.1 connection, if it is worth knowing.
    pub(super) local: Option<SocketAddr>,
    /// What the server of an HTTP/1.1 connection has proved.
    pub(super) proof: Option<Rc<ServerProof>>,
    pub(super) limit: usize,
    pub(super) life: Life,
    /// It counts as a request under way.
    pub(super) request: Option<Held>,
}

impl Lease {
    /// The own end of the connection, where everything is logged.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        self.streams.as_ref().map_or(self.local, |streams| streams.local)
    }

    /// What the connection's server has proved.
    pub(crate) fn proof(&self) -> Option<Rc<ServerProof>> {
        self.streams.as_ref().map_or(&self.proof, |streams| &streams.proof).clone()
    }

    /// The response has been read to its end: the connection may serve another request.
    pub(crate) fn give_back(mut self) {
        if let Some(sender) = self.sender.take()
            && !sender.is_closed()
            && self.life.goes_on(self.pool.upstream.terms.as_ref())
        {
            let mut idle = self.pool.idle.borrow_mut();
            if idle.len() < self.limit {
                let (generation, local, proof) = (self.generation, self.local, self.proof.take());
                let life = std::mem::take(&mut self.life);
                idle.push(Idle { sender, generation, local, proof, since: Instant::now(), life });
            }
            drop(idle);
            if let Some(room) = &self.pool.room {
                room.free();
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.active.set(self.pool.active.get().saturating_sub(1));
        if let Some(streams) = &self.streams {
            streams.set(streams.get().saturating_sub(1));
            if let Some(room) = &self.pool.room {
                room.free();
            }
        }
    }
}

impl Pool {
    pub(super) fn lease(self: &Rc<Self>, worker: &Worker, generation: u64) -> Lease {
        self.active.set(self.active.get() + 1);
        Lease {
            pool: self.clone(),
            sender: None,
            streams: None,
            generation,
            local: None,
            proof: None,
            limit: worker.config.limits.idle_upstreams,
            life: Life::default(),
            request: None,
        }
    }
}
