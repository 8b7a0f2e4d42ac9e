//! The embedded Kubernetes-style API over a store on disk.
//!
//! What the mesh needs of Kubernetes, served to `kubectl` and client libraries as Kubernetes serves it.
//! A request runs one road:
//!
//! - `server`: TLS, limits; `handler`: who asks (`auth`), for what (`request`), may they, which verb.
//! - `verbs`: get, list, watch, create, update, patch, delete.
//! - `admission`: defaults, what the mesh adds, validation. `patch`: the ways to change a part.
//! - `store`: one file, one writer, a ring of recent changes for watches.
//! - `collector`: what follows from changes: owners, namespaces.
//! - `streams`: commands and connections inside Pods, which `pods` asks of whoever runs them.
//! - `discovery`, `openapi`, `table`: what clients ask to find their way and to print.
//!
//! It refuses to be a cluster: there is one node, one store, and a fixed table of rights.

#![forbid(unsafe_code)]

mod admission;
mod api;
mod auth;
mod body;
mod bootstrap;
mod collector;
mod connect;
mod convert;
mod discovery;
mod handler;
mod injection;
mod json;
mod kubeconfig;
mod logs;
mod negotiate;
mod openapi;
mod options;
mod patch;
mod places;
mod pods;
mod protobuf;
mod request;
mod resources;
mod respond;
mod scale;
mod selector;
mod server;
mod status;
mod store;
mod streams;
mod table;
mod time;
mod verbs;

pub use kubeconfig::write_kubeconfig;
pub use options::{Options, Ready, ServeError};
pub use pods::{ExecCommand, PodStreams, Running, StartError, TerminalSize};
pub use server::serve;
pub use store::StoreError;
