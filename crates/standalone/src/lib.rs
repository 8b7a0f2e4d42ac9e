//! A mesh on one Linux machine: supervisor of Pods as local processes, controllers, cluster DNS, Services.
//!
//! - [`controllers`]: Deployment, ReplicaSet and EndpointSlice controllers.
//! - [`dns`]: the cluster's DNS server.
//! - [`builtin`]: the objects that every mesh begins with.

#![forbid(unsafe_code)]

pub mod builtin;
pub mod controllers;
pub mod dns;
