//! Guards of the bridge and of the node namespace.
//!
//! The control plane believes that a connection from a Pod's address comes from that Pod, so no Pod may use
//! another's: frames that do not carry the link's own pair of addresses are dropped where they enter
//! the bridge, answers of ARP and neighbour discovery included. Anything else but IPv4 and IPv6 is dropped.

use std::net::Ipv4Addr;

use crate::NetError;
use crate::link::{Attachment, BRIDGE, has_ipv6};
use crate::netns::NetNs;
use crate::nft;

/// Installs both guards in the node namespace, with no Pod allowed yet.
///
/// `open_tcp` and `open_udp` are the node's own ports that Pods may reach (API and DNS), in IPv4.
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
         \x20 set pods6 {\n\
         \x20   type ifname . ether_addr . ipv6_addr\n\
         \x20 }\n\
         \x20 # link . address that a neighbour advertisement may be about\n\
         \x20 set neighbours6 {\n\
         \x20   typeof iifname . @th,64,128\n\
         \x20 }\n\
         \x20 chain prerouting {\n\
         \x20   type filter hook prerouting priority -300; policy drop;\n\
         \x20   icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @neighbours6 drop\n\
         \x20   icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect } drop\n\
         \x20   ether type ip6 iifname . ether saddr . ip6 saddr @pods6 accept\n\
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
    body.push_str("    icmp type echo-request accept\n");
    body.push_str(REFUSE_AND_FORWARD_NOTHING);
    let v6 = if has_ipv6() { render_node_v6() } else { String::new() };
    bridge + &nft::replace("ip", "maille_node", &body) + &v6
}

const REFUSE_AND_FORWARD_NOTHING: &str = "    meta l4proto tcp reject with tcp reset\n\
     \x20   reject\n\
     \x20 }\n\
     \x20 # Nothing is routed through the node.\n\
     \x20 chain forward {\n\
     \x20   type filter hook forward priority 0; policy drop;\n\
     \x20 }\n";

/// The node serves nothing in IPv6: Pods only find it, as the way to networks behind it.
fn render_node_v6() -> String {
    let body = format!(
        "  # Ports that are reached by redirection only (see `maille_egress`).\n\
         \x20 set redirected {{\n\
         \x20   type inet_service\n\
         \x20 }}\n\
         \x20 chain input {{\n\
         \x20   type filter hook input priority 0; policy accept;\n\
         \x20   iifname != \"{BRIDGE}\" accept\n\
         \x20   icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept\n\
         \x20   ct state established,related accept\n\
         \x20   ct status dnat tcp dport @redirected accept\n{REFUSE_AND_FORWARD_NOTHING}"
    );
    nft::replace("ip6", "maille_node", &body)
}

/// Lets a Pod's link use the Pod's addresses.
pub fn allow(node: &NetNs, at: &Attachment) -> Result<(), NetError> {
    nft::apply_in(node, &change("add", at))
}

/// Takes that right away.
pub fn forbid(node: &NetNs, at: &Attachment) -> Result<(), NetError> {
    nft::apply_in(node, &change("delete", at))
}

fn change(verb: &str, at: &Attachment) -> String {
    let (link, mac) = (at.host_link(), at.mac());
    let change =
        |set: &str, element: String| format!("{verb} element bridge maille_guard {set} {{ {element} }}\n");
    let mut text = change("pods", format!("\"{link}\" . {mac} . {}", at.address));
    if let Some(v6) = &at.v6 {
        text += &change("pods6", format!("\"{link}\" . {mac} . {}", v6.address));
        text += &change("neighbours6", format!("\"{link}\" . 0x{:032x}", u128::from(v6.address)));
    }
    text
}
