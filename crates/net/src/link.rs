//! The bridge of a mesh's node namespace and the pairs that join Pods to it.

use std::net::Ipv4Addr;

use crate::NetError;
use crate::command::run;
use crate::netns::NetNs;

/// The bridge's name in the node namespace; it is alone there.
pub const BRIDGE: &str = "mbr0";

/// A Pod's place on the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The Pod's network namespace.
    pub pod: NetNs,
    /// The Pod's address.
    pub address: Ipv4Addr,
    /// Bits of the Pod network's prefix.
    pub prefix: u8,
    /// The bridge's own address, the way out.
    pub gateway: Ipv4Addr,
}

impl Attachment {
    /// The end of the pair that stays in the node namespace; at most 15 bytes (`IFNAMSIZ`).
    pub fn host_link(&self) -> String {
        let [_, _, c, d] = self.address.octets();
        format!("pod{c:02x}{d:02x}")
    }

    /// A locally administered address made of the IPv4 one, so that the guard can state both.
    pub fn mac(&self) -> String {
        hardware_address(self.address)
    }
}

fn hardware_address(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Makes the bridge in the node namespace and gives it its address.
pub fn create_bridge(node: &NetNs, address: Ipv4Addr, prefix: u8) -> Result<(), NetError> {
    batch(
        node,
        &format!(
            "link set lo up\n\
             link add {BRIDGE} address {} type bridge stp_state 0 forward_delay 0\n\
             addr add {address}/{prefix} dev {BRIDGE}\n\
             link set {BRIDGE} up\n",
            // Left to itself a bridge takes the lowest of its links' addresses, another one whenever a Pod comes or goes.
            hardware_address(address),
        ),
    )?;
    node.run(|| {
        // Frames of the bridge must not pass the IP rules a second time where br_netfilter is loaded; where it
        // is not, the file is missing.
        write_if_present("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
        write_if_present("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    })
}

/// Joins a Pod's namespace to the bridge: `eth0` inside, loopback up, default route.
///
/// The guard must already know the Pod (it drops what it does not know), see [`crate::guard`].
pub fn attach(node: &NetNs, at: &Attachment) -> Result<(), NetError> {
    let (link, mac, pod) = (at.host_link(), at.mac(), at.pod.name());
    // No IPv6 outside loopback: the Pod network is IPv4, and a link-local address would be a road that no
    // policy watches. Set before the link is there, so that it never gets one.
    at.pod.run(|| {
        write_if_present("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        // As container runtimes do: ports below 1024 need no privilege in a namespace of one's own.
        write_if_present("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        write_if_present("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    })?;
    batch(
        node,
        &format!(
            "link add {link} type veth peer name eth0 address {mac} netns {pod}\n\
             link set {link} master {BRIDGE} up\n"
        ),
    )?;
    batch(
        &at.pod,
        &format!(
            "link set lo up\n\
             addr add {}/{} dev eth0\n\
             link set eth0 up\n\
             route add default via {}\n",
            at.address, at.prefix, at.gateway
        ),
    )
}

/// Takes the Pod's end away at once, so that its address may be given to another.
pub fn detach(node: &NetNs, at: &Attachment) -> Result<(), NetError> {
    batch(node, &format!("link delete {}\n", at.host_link()))
}

fn batch(ns: &NetNs, commands: &str) -> Result<(), NetError> {
    run("ip", &["-n", ns.name(), "-batch", "-"], Some(commands)).map(drop)
}

fn write_if_present(path: &str, value: &str) {
    if let Err(error) = std::fs::write(path, value)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path, %error, "cannot set a kernel parameter");
    }
}
