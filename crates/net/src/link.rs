//! The bridge of a mesh's node namespace and the pairs that join Pods to it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv6Net};

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
    /// The same in IPv6, where the mesh has both.
    pub v6: Option<Attachment6>,
}

/// A Pod's place in IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment6 {
    /// The Pod's address.
    pub address: Ipv6Addr,
    /// Bits of the Pod network's prefix.
    pub prefix: u8,
    /// The bridge's own address.
    pub gateway: Ipv6Addr,
    /// Networks that are reached through the bridge. The whole world only if the machine has a way there: a program that
    /// finds no route tries the other family at once.
    pub routes: Vec<Ipv6Net>,
}

/// Whether this kernel speaks IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
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

/// Makes the bridge in the node namespace and gives it its addresses, each with the length of its network's prefix.
pub fn create_bridge(node: &NetNs, address: Ipv4Addr, addresses: &[IpNet]) -> Result<(), NetError> {
    let has_v6 = addresses.iter().any(|address| matches!(address, IpNet::V6(_)));
    node.run(|| prepare_ipv6(has_v6))?;
    let mut commands = format!(
        "link set lo up\n\
         link add {BRIDGE} address {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n",
        // Left to itself a bridge takes the lowest of its links' addresses, another one whenever a Pod comes or goes.
        hardware_address(address),
    );
    for address in addresses {
        commands.push_str(&add_address(address, BRIDGE));
    }
    commands.push_str(&format!("link set {BRIDGE} up\n"));
    batch(node, &commands)?;
    // Frames of the bridge must not pass the IP rules a second time where br_netfilter is loaded; where it
    // is not, the files are missing.
    node.run(|| {
        write_if_present("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
        write_if_present("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "0");
    })
}

fn add_address(address: &IpNet, device: &str) -> String {
    // Nobody else can have it (see the guard): no need to ask around for a second first.
    let nodad = if matches!(address, IpNet::V6(_)) { " nodad" } else { "" };
    format!("addr add {address} dev {device}{nodad}\n")
}

/// How links that come to the calling thread's namespace treat IPv6: with the addresses that they are given and no others.
/// A link-local address would be a road that no policy watches, and routers are nobody's to announce.
fn prepare_ipv6(wanted: bool) {
    let default = |name: &str| format!("/proc/sys/net/ipv6/conf/default/{name}");
    write_if_present(&default("disable_ipv6"), if wanted { "0" } else { "1" });
    // IN6_ADDR_GEN_MODE_NONE
    write_if_present(&default("addr_gen_mode"), "1");
    write_if_present(&default("accept_ra"), "0");
    write_if_present(&default("accept_redirects"), "0");
}

/// Joins a Pod's namespace to the bridge: `eth0` inside, loopback up, default route.
///
/// The guard must already know the Pod (it drops what it does not know), see [`crate::guard`].
pub fn attach(node: &NetNs, at: &Attachment) -> Result<(), NetError> {
    let (link, mac, pod) = (at.host_link(), at.mac(), at.pod.name());
    at.pod.run(|| {
        // Before the link is there, so that it never has another address.
        prepare_ipv6(at.v6.is_some());
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
    let mut commands = format!(
        "link set lo up\n\
         addr add {}/{} dev eth0\n\
         link set eth0 up\n\
         route add default via {}\n",
        at.address, at.prefix, at.gateway
    );
    if let Some(v6) = &at.v6 {
        commands.push_str(&format!("addr add {}/{} dev eth0 nodad\n", v6.address, v6.prefix));
        for network in &v6.routes {
            commands.push_str(&format!("route add {network} via {}\n", v6.gateway));
        }
    }
    batch(&at.pod, &commands)
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
