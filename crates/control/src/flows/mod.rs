//! Flows: what really happened, aggregated, bounded and recent.

mod query;
mod refusals;
mod service;
mod store;

pub use query::{FlowQuery, FlowView, PeerSummary, WouldRefuseView};
pub(crate) use refusals::RefusalLog;
pub(crate) use service::{FlowService, MAX_REPORT_BYTES};
pub use store::{FlowStore, Limits};
