//! The Pods' way out of the machine: a small process that connects in their place.
//!
//! Rules in the node namespace redirect the Pods' TCP to addresses outside of the mesh's networks to a listener
//! there ([`maille_net::egress`]). The process has that listener from the node namespace and lives itself in
//! the host's, so what it connects goes the host's ways: the host's network is used and never
//! configured. It gives up root before it reads the first byte.
//!
//! As on any container runtime Pods reach what the host reaches, private networks included, but for loopback, link-local
//! and metadata addresses, and the mesh's own networks. The host's own addresses are closed to them as well: what this
//! process connects there comes over loopback as from the host itself, past every rule about who may. A connection
//! is accepted before its destination is known to answer; where it does not, it is reset.

mod process;
mod relay;

use std::net::{IpAddr, TcpListener};

use anyhow::Context as _;
use maille_net::{NetNs, process as own_process, sandbox};

use crate::address::{EGRESS_PORT, EGRESS_USER, NODE_ADDRESS, NODE_ADDRESS_V6, is_dual_stack, own_networks};

pub(crate) use process::keep_running;

/// Plays the role for the mesh with this node namespace, until it is ended.
///
/// To be called in the host's network namespace, as root, before the process has a second thread.
///
/// # Errors
/// If the listener cannot be made, or a privilege not given up.
pub fn run(node_namespace: &str) -> anyhow::Result<()> {
    let parent = rustix::process::getppid();
    own_process::die_with_parent()?;
    let v6 = is_dual_stack().then_some(IpAddr::V6(NODE_ADDRESS_V6));
    let mut listeners = Vec::new();
    for address in std::iter::once(IpAddr::V4(NODE_ADDRESS)).chain(v6) {
        let listener = NetNs::named(node_namespace)
            .run(|| TcpListener::bind((address, EGRESS_PORT)))?
            .with_context(|| format!("listen on {address}, port {EGRESS_PORT}, of {node_namespace}"))?;
        listener.set_nonblocking(true)?;
        listeners.push(listener);
    }
    sandbox::become_user(EGRESS_USER)?;
    own_process::make_undumpable()?;
    // The change of user took the parent's hold on this process away for a moment.
    anyhow::ensure!(rustix::process::getppid() == parent, "the supervisor is gone");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let relay = relay::Relay::new(own_networks());
        let serving: Vec<_> = listeners
            .into_iter()
            .map(|listener| Ok(relay.clone().serve(tokio::net::TcpListener::from_std(listener)?)))
            .collect::<std::io::Result<_>>()?;
        futures::future::join_all(serving).await;
        Ok(())
    })
}
