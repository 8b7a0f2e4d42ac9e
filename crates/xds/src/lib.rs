//! Delta xDS, both ends: what is subscribed, what is known, what is owed.
//!
//! The transport is Envoy's `AggregatedDiscoveryService.DeltaAggregatedResources` (xDS protocol, "Incremental
//! xDS"). [`ClientState`] and [`ServerState`] are state machines without I/O; [`run_client`]
//! and [`serve_stream`] drive them over gRPC. Nothing here knows what a resource means: the client hands opaque
//! resources to its [`Handler`], the server takes them from a [`View`], which also is the one place that decides
//! what a peer may see.
//!
//! Rules beyond the protocol's text, kept by both ends:
//! - the first request of a type on a stream is always answered, if need be with an empty
//!   response, so that a client knows when a wildcard is complete;
//! - one response per type is on its way at a time; what changes meanwhile is coalesced;
//! - a version is a hash of the content, so that it survives restarts of either end;
//! - a rejected version is not sent again until the resource changes.

#![forbid(unsafe_code)]

mod backoff;
mod client;
mod client_state;
pub mod limits;
mod resource;
mod server;
mod server_state;
pub mod type_urls;

pub use backoff::Backoff;
pub use client::{
    BoxError, Client, ClientError, ClientOptions, Driver, Handler, configure_endpoint, run_client,
};
pub use client_state::{ClientState, Receipt, SubscribeError};
pub use resource::{Rejection, Resource, Update};
pub use server::{Dirty, View, serve_stream};
pub use server_state::{NodeInfo, ProtocolError, Request, ServerState, TypeStatus};
