//! Opaque connections: decided once, relayed, judged while they live.

use std::cell::Cell;
use std::io;
use std::time::Instant;

use maille_telemetry::{Connection, ResponseFlags, Transfer};

use crate::marks::Marked;
use crate::open::{Fate, Open};
use crate::record::Refused;
use crate::relay::{self, Side, relay};
use crate::server_proof::{self, ServerProof};
use crate::worker::Worker;

/// A connection of opaque bytes that was let through.
pub(crate) struct Passage<'a> {
    pub(crate) connection: Connection,
    /// By what it is judged while it lives.
    pub(crate) open: Option<&'a Open>,
    /// What the upstream's server has proved, and lives by.
    pub(crate) server: Option<&'a ServerProof>,
    /// What the log says of its addresses.
    pub(crate) way: maille_telemetry::Way<'a>,
    /// What policies say that do not decide.
    pub(crate) marks: Option<&'a Marked>,
    /// Says whether an error is a refusal: under TLS 1.3 a server's shows only when it is first read from.
    pub(crate) explain: &'a dyn Fn(&io::Error) -> Option<Refused>,
}

impl Passage<'_> {
    /// Relays until both ends are done, or until policy forbids it; then both are closed and the refusal is recorded.
    pub(crate) async fn run<A, B>(self, worker: &Worker, downstream: &mut A, upstream: &mut B)
    where
        A: Side,
        B: Side,
    {
        let Self { connection, open, server, way, marks, explain } = self;
        let started = Instant::now();
        let (sent, received) = (Cell::new(0), Cell::new(0));
        let moved = |direction, bytes: u64| match direction {
            relay::Way::Up => {
                received.set(received.get() + bytes);
                connection.bytes(0, bytes);
            }
            relay::Way::Down => {
                sent.set(sent.get() + bytes);
                connection.bytes(bytes, 0);
            }
        };
        let cut = async {
            match open {
                Some(open) => open.cut().await,
                None => std::future::pending().await,
            }
        };
        let refused = tokio::select! {
            biased;
            refused = cut => Some(refused),
            refused = server_proof::lost(server) => Some(refused),
            outcome = relay(downstream, upstream, &moved) => {
                outcome.err().and_then(|error| explain(&error)).map(std::rc::Rc::new)
            }
        };
        let transfer = Transfer {
            received: received.get(),
            sent: sent.get(),
            duration: started.elapsed(),
            flags: ResponseFlags::None,
        };
        let noted = marks.map(Marked::borrow).unwrap_or_default();
        match refused {
            Some(refused) => {
                worker.recorder.connection_cut(connection, &refused.refusal(), &noted, &way, transfer);
            }
            None => {
                if let Some(marks) = marks {
                    marks.would_refuse(connection.edge());
                }
                worker.recorder.log_connection(connection.edge().labels(), &noted, &way, transfer);
                connection.close(ResponseFlags::None);
            }
        }
    }
}

/// Relays the bytes after an upgrade, whose connection is recorded elsewhere.
pub(crate) async fn run_upgraded<A, B>(
    worker: &Worker,
    downstream: &mut A,
    upstream: &mut B,
    open: Option<&Open>,
    server: Option<&ServerProof>,
) where
    A: Side,
    B: Side,
{
    let cut = async {
        match open {
            Some(open) => open.cut().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        refused = cut => {
            if let Some(open) = open {
                open.record_cut(worker, &refused);
            }
        }
        refused = server_proof::lost(server) => {
            tracing::info!(reason = refused.reason(), "an upgraded stream was cut");
        }
        // Either side closing is how it ends.
        _ = relay(downstream, upstream, &|_, _| {}) => {}
    }
}

impl Open {
    async fn cut(&self) -> std::rc::Rc<crate::record::Refused> {
        loop {
            match self.fate().await {
                Fate::Cut(refused) => return refused,
                // Draining concerns requests; a stream goes on.
                Fate::Drains | Fate::Lives => std::future::pending::<()>().await,
            }
        }
    }
}
