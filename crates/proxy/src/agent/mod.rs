//! The control-plane half of a sidecar: identity, facts, state, status servers.
//!
//! It runs on a thread of its own; what it has for the data path it leaves in [`crate::snapshot`]'s cells. Losing the
//! control plane costs nothing but news.

mod admin;
mod app_metrics;
mod ask;
mod caller_names;
mod channel;
mod client;
mod clock;
mod destinations;
mod discovery;
mod facts_in_force;
mod flows;
mod identity;
mod in_use;
mod options;
mod peer_user;
mod probes;
mod renewal;
mod run;
mod server;
mod servers;
mod shown_keys;
mod stamp;
mod start;
mod state;
mod status;
mod status_pages;
mod succession;
#[cfg(test)]
mod tests;
mod workload_api;

pub use app_metrics::AppMetrics;
pub use ask::{begin_drain, wait_until_ready};
pub use options::{DrainOptions, ListenAddresses, LogControl, OptionError, ProxyOptions};
pub use probes::Probe;
pub use run::run;
