//! A mesh on one Linux machine: supervisor of Pods as local processes, controllers, cluster DNS, Services.
//!
//! - [`supervisor`]: the process that holds a mesh together: node namespace, API process, kubelet, controllers.
//! - [`state`]: what a mesh leaves on the machine, and how to take it away.
//! - [`address`]: the networks and addresses of a mesh.
//! - [`controllers`]: of Deployments, StatefulSets, DaemonSets, Jobs and what belongs to them, and of EndpointSlices.
//! - [`dns`]: the cluster's DNS server.
//! - [`egress`]: the Pods' way out of the machine.
//! - [`builtin`]: the objects that every mesh begins with.
//! - [`exec`]: commands and connections in running containers.

#![forbid(unsafe_code)]

pub mod address;
pub mod builtin;
mod cluster;
pub mod controllers;
pub mod dns;
pub mod egress;
pub mod exec;
mod hash;
mod kubelet;
mod mirror;
mod node;
mod remove;
mod sandbox;
mod services;
pub mod state;
pub mod supervisor;
mod terminal;

pub use state::{DataDir, teardown};
pub use supervisor::{Prepare, Ready, SupervisorOptions, run_supervisor};
