//! Metrics, access log, flows: recorded once, read by many.
//!
//! A worker of the data plane takes a [`WorkerRecorder`] and asks it for handles ([`Connection`], [`Edge`]) when it meets a
//! pair of workloads; counting on a handle is a few plain stores: no lock, no allocation. Readers sum over
//! workers when they are asked: [`Registry::render_prometheus`] with Istio's metric and label names, and
//! [`Registry::take_flows`] for the control plane. Every refusal, and if the mesh says so every request and connection, is
//! also one line of the [`access_log`].
//!
//! Everything here is bounded: label sets, flows, refusal counters and log lines; what does not
//! fit is counted under `other`, and that it did not fit is counted too.

#![forbid(unsafe_code)]

pub mod access_log;
mod flow;
mod histogram;
mod labels;
mod naming;
mod prometheus;
mod recorder;
mod refusal;
mod registry;
mod series;
mod tables;

pub use access_log::{AccessLog, Marks, RequestLine, Shadow, Transfer, Way};
pub use labels::{
    ConnectionLabels, Peer, Protocol, Reporter, ResponseFlags, Security, ServiceLabels, WorkloadLabels,
};
pub use naming::{Names, Naming};
pub use recorder::{Connection, Edge, RequestOutcome, WorkerRecorder};
pub use refusal::{PolicyRef, Refusal, RefusalKind, TlsReason};
pub use registry::{OwnWorkload, ProxyGauges, Registry};
