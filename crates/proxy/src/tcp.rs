//! Opaque connections: decided once, relayed, judged while they live.

use std::io;

use maille_telemetry::{Connection, ResponseFlags};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::open::{Fate, Open};
use crate::record::Refused;
use crate::relay::{Way, relay};
use crate::worker::Worker;

/// Relays until both ends are done, or until policy forbids it; then both are closed and the refusal is recorded.
/// `explain` says whether an error is a refusal: under TLS 1.3 a server's shows only when it is first read from.
pub(crate) async fn run<A, B>(
    worker: &Worker,
    downstream: &mut A,
    upstream: &mut B,
    connection: Connection,
    open: Option<&Open>,
    explain: &dyn Fn(&io::Error) -> Option<Refused>,
) where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let moved = |way, bytes| match way {
        Way::Up => connection.bytes(0, bytes),
        Way::Down => connection.bytes(bytes, 0),
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
        outcome = relay(downstream, upstream, &moved) => {
            outcome.err().and_then(|error| explain(&error)).map(std::rc::Rc::new)
        }
    };
    match refused {
        Some(refused) => worker.recorder.connection_cut(connection, &refused.refusal()),
        None => connection.close(ResponseFlags::None),
    }
}

/// Relays the bytes after an upgrade, whose connection is recorded elsewhere.
pub(crate) async fn run_upgraded<A, B>(downstream: &mut A, upstream: &mut B, open: Option<&Open>)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let cut = async {
        match open {
            Some(open) => open.cut().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        refused = cut => tracing::info!(reason = refused.reason(), "an upgraded connection was cut"),
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
