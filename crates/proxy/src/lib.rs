//! The data plane: intercepts, authenticates, authorizes, forwards, measures.
//!
//! The road of a connection reads top to bottom in `inbound` and `outbound`: accept → original destination → sniff →
//! TLS → identity → connection decision → protocol → request decision → endpoint → upstream TLS → forward → record.
//! Each worker is one thread with its own listeners, pools and snapshot handle; workers share nothing that a request
//! would have to lock. The agent feeds them: it writes [`snapshot`]s, they read. What must be looked up or read from files
//! (`upkeep`: names of external hosts, certificates that DestinationRules name) is kept current beside them, too.

#![forbid(unsafe_code)]

mod agent;
mod authorizer;
mod balance;
mod chain;
mod connect;
mod departure;
mod destinations;
mod dns;
pub mod facts;
mod fixed;
mod http;
mod inbound;
mod marks;
mod memory;
mod open;
mod order;
mod original;
mod outbound;
mod pacing;
mod plan;
mod pool;
mod record;
mod relay;
mod route;
mod server_proof;
pub mod snapshot;
mod sniff;
mod stream;
mod takeover;
mod tcp;
mod tunnel;
mod upkeep;
mod worker;
mod workers;

pub use agent::{
    AppMetrics, DrainOptions, ListenAddresses, LogControl, OptionError, Probe, ProxyOptions, begin_drain,
    run, wait_until_ready,
};
pub use fixed::{FileError, StaticProxy, run_static};
pub use memory::Memory;
pub use workers::{StartError, Workers, start_workers};
