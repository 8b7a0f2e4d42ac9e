//! Many streams over one connection between two Maille proxies (ALPN `maille/1`).
//!
//! A `maille/1` connection is mutual TLS like any other between sidecars: it is dialled to the endpoint's own address
//! and port, shows the service's SNI, and gets the chain of the port it arrived at. Only what is inside differs: HTTP/2,
//! whose streams are what would else have been connections of their own. Which of the two it carries is fixed when it is
//! opened, by the names offered beside `maille/1`:
//!
//! - HTTP/1.1 requests (`istio-http/1.1`): at the far end each is an HTTP/1.1 request again before anything looks at it,
//!   so the same checks, policy and application meet it ([`Requests`]).
//! - bytes (`istio`): each stream is one connection of opaque bytes, judged, recorded and cut for itself
//!   ([`ByteStream`]).
//!
//! Nothing is trusted that a stream says of itself. Identity, SNI and destination are those of the connection: proved by
//! TLS, or known from the kernel; no header carries them, so no application and no peer can forge them, and a connection
//! for one destination serves no other. Connections are shared by what is equal in all of [`crate::connect::Upstream`]
//! (address, port, SNI, expected identities) and the generation of the own certificate and trust; a worker shares them
//! with no other.
//!
//! A connection whose streams are bytes may outlive the certificates that it was opened with, if both proxies prove their
//! renewed ones inside it; one of requests is drained.

mod bounds;
mod bytes;
mod callers;
mod renewal;
mod requests;
mod streams;

pub(crate) use bounds::{SINGLE_FOR, Window, Windows, bound_client, bound_server, is_there};
pub(crate) use bytes::ByteStream;
pub(crate) use callers::{Callers, connect};
pub(crate) use requests::{Requests, pack, unpack};
pub(crate) use streams::serve_streams;
