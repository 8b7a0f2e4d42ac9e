//! One request and its answer, from head to record.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use http::HeaderMap;
use maille_telemetry::{Edge, RequestOutcome, ResponseFlags};

/// One request and its answer, recorded when it goes.
pub(crate) struct Exchange {
    edge: Option<Rc<Edge>>,
    started: Instant,
    pub(crate) code: u16,
    pub(crate) flags: ResponseFlags,
    pub(crate) is_grpc: bool,
    grpc_status: Option<u32>,
    request_head: u64,
    request_body: Option<Rc<Cell<u64>>>,
    pub(crate) response_bytes: u64,
    is_complete: bool,
    is_recorded: bool,
}

impl Exchange {
    pub(crate) fn new(edge: Option<Rc<Edge>>, started: Instant, is_grpc: bool, request_head: u64) -> Self {
        Self {
            edge,
            started,
            code: 0,
            flags: ResponseFlags::None,
            is_grpc,
            grpc_status: None,
            request_head,
            request_body: None,
            response_bytes: 0,
            is_complete: false,
            is_recorded: false,
        }
    }

    /// Counts on another pair, once it is known whom the request goes to.
    pub(crate) fn set_edge(&mut self, edge: Rc<Edge>) {
        self.edge = Some(edge);
    }

    /// The pair it counts on, once it is known.
    pub(crate) fn edge(&self) -> Option<&Edge> {
        self.edge.as_deref()
    }

    /// The counter that the request's body adds to.
    pub(crate) fn request_body(&mut self) -> Rc<Cell<u64>> {
        self.request_body.get_or_insert_default().clone()
    }

    pub(crate) fn note_grpc_status(&mut self, headers: &HeaderMap) {
        if self.is_grpc
            && let Some(status) = headers.get("grpc-status").and_then(|value| value.to_str().ok())
        {
            self.grpc_status = status.parse().ok();
        }
    }

    /// What is recorded.
    pub(crate) fn outcome(&self) -> RequestOutcome {
        RequestOutcome {
            code: self.code,
            flags: self.flags,
            grpc: self.is_grpc,
            grpc_status: self.grpc_status,
            duration: self.started.elapsed(),
            request_bytes: self.request_head + self.request_body.as_ref().map_or(0, |count| count.get()),
            response_bytes: self.response_bytes,
        }
    }

    /// Nothing more is to come of it.
    pub(crate) fn end(&mut self) {
        self.is_complete = true;
    }

    /// Records it as finished.
    pub(crate) fn complete(mut self) {
        self.end();
    }

    /// Somebody else has recorded it.
    pub(crate) fn forget(mut self) {
        self.is_recorded = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.is_recorded {
            return;
        }
        if !self.is_complete && self.flags == ResponseFlags::None {
            self.flags = ResponseFlags::DownstreamDisconnect;
        }
        if let Some(edge) = &self.edge {
            edge.request(&self.outcome());
        }
    }
}
