//! A Pod's network: namespace, address, link, translation rules.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::Ipv6Net;
use maille_net::link::{self, Attachment, Attachment6};
use maille_net::{NetError, NetNs, guard};

use super::Kubelet;
use crate::address::{
    ALLOCATED_NETWORK_V6, NODE_ADDRESS, NODE_ADDRESS_V6, POD_NETWORK, POD_NETWORK_V6, SERVICE_NETWORK_V6,
    is_dual_stack, pod_v6,
};

/// The network of one Pod; taken away when dropped.
pub(crate) struct Network {
    kubelet: Arc<Kubelet>,
    at: Attachment,
}

impl Network {
    /// Makes it.
    pub(crate) async fn create(kubelet: Arc<Kubelet>) -> Result<Self, String> {
        let address =
            kubelet.addresses.take().ok_or_else(|| format!("no address is left in {POD_NETWORK}"))?;
        let work = move || {
            let made = build(&kubelet, address);
            if made.is_err() {
                kubelet.addresses.release(address);
            }
            made.map(|at| Self { kubelet, at })
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.at.address
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.at.pod.path()
    }

    /// Takes it away, and waits for that.
    pub(crate) async fn remove(self) {
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

fn build(kubelet: &Kubelet, address: Ipv4Addr) -> Result<Attachment, NetError> {
    let pod = NetNs::create(kubelet.data.pod_namespace(address))?;
    let at =
        Attachment { pod, address, prefix: POD_NETWORK.prefix_len(), gateway: NODE_ADDRESS, v6: v6(address) };
    let node = kubelet.node.ns();
    let joined = guard::allow(node, &at)
        .and_then(|()| link::attach(node, &at))
        .and_then(|()| kubelet.services.register(&at.pod));
    if let Err(error) = joined {
        tear_down(kubelet, &at);
        return Err(error);
    }
    Ok(at)
}

fn v6(address: Ipv4Addr) -> Option<Attachment6> {
    let mut routes = vec![SERVICE_NETWORK_V6, ALLOCATED_NETWORK_V6];
    if reaches_the_world() {
        routes = vec![Ipv6Net::default()];
    }
    is_dual_stack().then(|| Attachment6 {
        address: pod_v6(address),
        prefix: POD_NETWORK_V6.prefix_len(),
        gateway: NODE_ADDRESS_V6,
        routes,
    })
}

/// Whether this machine has a way to IPv6's addresses of the world. Sends nothing.
fn reaches_the_world() -> bool {
    // An address of the DNS root, which is always somewhere else.
    let root = (Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30), 53);
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).and_then(|socket| socket.connect(root)).is_ok()
}

fn tear_down(kubelet: &Kubelet, at: &Attachment) {
    kubelet.services.unregister(&at.pod);
    let node = kubelet.node.ns();
    // The link first: the namespace may outlive its name for a moment, the address must not.
    for result in [link::detach(node, at), guard::forbid(node, at), at.pod.delete()] {
        if let Err(error) = result {
            tracing::debug!(%error, pod = at.pod.name(), "taking a Pod's network away");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        tear_down(&self.kubelet, &self.at);
        self.kubelet.addresses.release(self.at.address);
    }
}
