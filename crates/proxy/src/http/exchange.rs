//! One request and its answer, from head to record.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use http::{HeaderMap, Request};
use maille_telemetry::{Edge, RequestLine, RequestOutcome, ResponseFlags};

use crate::http::head;
use crate::http::line::{Line, Origin};
use crate::marks::Marked;
use crate::record::Refused;
use crate::worker::Worker;

/// One request and its answer, recorded when it goes.
pub(crate) struct Exchange {
    origin: Rc<dyn Origin>,
    line: Line,
    edge: Option<Rc<Edge>>,
    started: Instant,
    pub(crate) code: u16,
    pub(crate) flags: ResponseFlags,
    pub(crate) is_grpc: bool,
    grpc_status: Option<u32>,
    request_head: u64,
    request_body: Option<Rc<Cell<u64>>>,
    response_head: u64,
    /// Of the body alone.
    pub(crate) response_bytes: u64,
    marks: Option<Box<Marked>>,
    is_complete: bool,
    is_recorded: bool,
}

impl Exchange {
    /// Of a request whose head has been checked, or found malformed; `head_bytes` as it came. Boxed, since it goes through
    /// many hands, each of which would copy it.
    pub(crate) fn new<B>(
        origin: Rc<dyn Origin>,
        edge: Option<Rc<Edge>>,
        request: &Request<B>,
        started: Instant,
        head_bytes: u64,
    ) -> Box<Self> {
        let line = Line::of(request, origin.worker().recorder.logs_everything());
        Box::new(Self {
            origin,
            line,
            edge,
            started,
            code: 0,
            flags: ResponseFlags::None,
            is_grpc: head::is_grpc(request.headers()),
            grpc_status: None,
            request_head: head_bytes,
            request_body: None,
            response_head: 0,
            response_bytes: 0,
            marks: None,
            is_complete: false,
            is_recorded: false,
        })
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        self.origin.worker()
    }

    /// Counts on another pair, once it is known whom the request goes to.
    pub(crate) fn set_edge(&mut self, edge: Rc<Edge>) {
        self.edge = Some(edge);
    }

    /// The pair it counts on, once it is known.
    pub(crate) fn edge(&self) -> Option<&Rc<Edge>> {
        self.edge.as_ref()
    }

    /// Notes what policies say that do not decide.
    pub(crate) fn mark(&mut self, marks: Box<Marked>) {
        if let Some(edge) = &self.edge {
            self.worker().recorder.marked(edge.labels().reporter, &marks.borrow());
        }
        self.marks = Some(marks);
    }

    /// The counter that the request's body adds to.
    pub(crate) fn request_body(&mut self) -> Rc<Cell<u64>> {
        self.request_body.get_or_insert_default().clone()
    }

    /// The request goes to `upstream` now.
    pub(crate) fn sent(&mut self, upstream: SocketAddr) {
        self.line.sent(upstream);
    }

    /// The own end of the connection that it went over.
    pub(crate) fn sent_from(&mut self, local: Option<SocketAddr>) {
        self.line.sent_from(local);
    }

    /// Notes the head of the answer, whoever it comes from.
    pub(crate) fn answered<B>(&mut self, response: &http::Response<B>) {
        self.line.answered();
        self.code = response.status().as_u16();
        self.response_head = head::head_bytes(response.headers());
        self.note_grpc_status(response.headers());
    }

    pub(crate) fn note_grpc_status(&mut self, headers: &HeaderMap) {
        if self.is_grpc
            && let Some(status) = headers.get("grpc-status").and_then(|value| value.to_str().ok())
        {
            self.grpc_status = status.parse().ok();
        }
    }

    /// What a log line says of the request.
    fn line(&self) -> RequestLine<'_> {
        let marks = self.marks.as_ref().map(|marks| marks.borrow()).unwrap_or_default();
        self.line.borrow(self.origin.way(), marks)
    }

    /// Whom the request is addressed to.
    pub(crate) fn authority(&self) -> &str {
        self.line.authority()
    }

    fn outcome(&self) -> RequestOutcome {
        let request_body = self.request_body.as_ref().map_or(0, |count| count.get());
        RequestOutcome {
            code: self.code,
            flags: self.flags,
            grpc: self.is_grpc,
            grpc_status: self.grpc_status,
            duration: self.started.elapsed(),
            request_bytes: self.request_head + request_body,
            response_bytes: self.response_head + self.response_bytes,
            request_head_bytes: self.request_head,
            response_head_bytes: self.response_head,
            upstream_time: self.line.upstream_time(),
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

    /// Records it as refused.
    pub(crate) fn refused(mut self, refused: &Refused) {
        self.flags = refused.flags();
        self.is_recorded = true;
        if let Some(edge) = &self.edge {
            let recorder = &self.worker().recorder;
            recorder.refused_request(edge, &self.line(), &self.outcome(), &refused.refusal());
        }
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
        let Some(edge) = &self.edge else { return };
        let outcome = self.outcome();
        edge.request(&outcome);
        if let Some(marks) = &self.marks {
            marks.would_refuse(edge);
        }
        let recorder = &self.worker().recorder;
        if self.marks.is_some() || recorder.logs_everything() {
            recorder.log_request(edge, &self.line(), &outcome);
        }
    }
}
