//! Guards of the bridge and of the node namespace.
//!
//! The control plane believes that a connection from a Pod's address comes from that Pod, so no Pod may use
//! another's: frames that do not carry the link's own pair of addresses are dropped where they enter
//! the bridge, ARP answers included. Anything but IPv4 and ARP is dropped.

use std::net::Ipv4Addr;

use crate::NetError;
use crate::link::{Attachment, BRIDGE};
use crate::netns::NetNs;
use crate::nft;

/// Installs both guards in the node namespace, with no Pod allowed yet.
///
/// `open_tcp` and `open_udp` are the node's own ports that Pods may reach (API and DNS).
pub fn install(node: &NetNs, address: Ipv4Addr, open_tcp: &[u16], open_udp: &[u16]) -> Result<(), NetError> {
    nft::apply_in(node, &render(address, open_tcp, open_udp))
}

fn render(address: Ipv4Addr, open_tcp: &[u16], open_udp: &[u16]) -> String {
    let bridge = nft::replace(
        "bridge",
        "maille_guard",
        "  # link . hardware address . IP address of each Pod\n\
         \x20 set pods {\n\
         \x20   type ifname . ether_addr . ipv4_addr\n\
         \x20 }\n\
         \x20 chain prerouting {\n\
         \x20   type filter hook prerouting priority -300; policy drop;\n\
         \x20   ether type ip iifname . ether saddr . ip saddr @pods accept\n\
         \x20   ether type arp iifname . ether saddr . arp saddr ip @pods iifname . arp saddr ether . arp saddr ip @pods accept\n\
         \x20 }\n",
    );
    let mut body = String::from(
        "  # Ports that are reached by redirection only (see `maille_egress`).\n\
         \x20 set redirected {\n\
         \x20   type inet_service\n\
         \x20 }\n\
         \x20 chain input {\n\
         \x20   type filter hook input priority 0; policy accept;\n",
    );
    body.push_str(&format!("    iifname != \"{BRIDGE}\" accept\n"));
    body.push_str("    ct state established,related accept\n");
    body.push_str("    ct status dnat tcp dport @redirected accept\n");
    if !open_tcp.is_empty() {
        body.push_str(&format!("    ip daddr {address} tcp dport {} accept\n", nft::set(open_tcp)));
    }
    if !open_udp.is_empty() {
        body.push_str(&format!("    ip daddr {address} udp dport {} accept\n", nft::set(open_udp)));
    }
    body.push_str(
        "    icmp type echo-request accept\n\
         \x20   meta l4proto tcp reject with tcp reset\n\
         \x20   reject\n\
         \x20 }\n",
    );
    body.push_str(
        "  # Nothing is routed through the node.\n\
         \x20 chain forward {\n\
         \x20   type filter hook forward priority 0; policy drop;\n\
         \x20 }\n",
    );
    bridge + &nft::replace("ip", "maille_node", &body)
}

/// Lets a Pod's link use the Pod's addresses.
pub fn allow(node: &NetNs, at: &Attachment) -> Result<(), NetError> {
    nft::apply_in(node, &format!("add element bridge maille_guard pods {{ {} }}\n", element(at)))
}

/// Takes that right away.
pub fn forbid(node: &NetNs, at: &Attachment) -> Result<(), NetError> {
    nft::apply_in(node, &format!("delete element bridge maille_guard pods {{ {} }}\n", element(at)))
}

fn element(at: &Attachment) -> String {
    format!("\"{}\" . {} . {}", at.host_link(), at.mac(), at.address)
}
