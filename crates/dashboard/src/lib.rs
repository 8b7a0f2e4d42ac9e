//! The web page over the control plane's public API: who talks to whom, with what identity, and what is refused and why.
//!
//! The page is rendered here, whole, from the flows of the control plane and the cluster's lists of workloads; a browser
//! needs no script to read it. Whatever flows and objects say is text of strangers: bounded, and escaped.
//!
//! - [`serve`]: the page over HTTP, for those who have its key ([`AccessKey`]).
//! - [`Upstream`]: the Kubernetes API, as far as the page asks it.

#![forbid(unsafe_code)]

mod access;
mod conversation;
mod details;
mod feed;
mod flows;
mod graph;
mod layout;
mod objects;
mod page;
mod picture;
mod query;
mod server;
mod table;
mod text;

pub use access::AccessKey;
pub use feed::{MAX_ANSWER_BYTES, Upstream};
pub use server::serve;
