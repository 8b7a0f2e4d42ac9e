//! The Pods' way out: what they send to addresses outside of the mesh's own networks.
//!
//! Nothing is routed through the node, and the host's network is left as it is: TCP is redirected, inside the node
//! namespace, to a listener there that connects in the Pod's place; or it is reset at once. All else that is
//! not for the mesh is refused. The rules come after the bridge's guard (see [`crate::guard`]), so a source
//! address is that of its Pod here.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::NetError;
use crate::link::BRIDGE;
use crate::netns::NetNs;
use crate::nft;

/// Where no Pod gets through a node, whatever the rules of the host say (RFC 6890): this network, loopback,
/// link-local (where clouds have their metadata services), multicast, reserved, broadcast.
const NEVER: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Metadata services outside of the link-local network: Azure's WireServer, Alibaba's, Oracle's.
const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];

/// Whether Pods of a mesh with these networks may reach `address` outside of it.
///
/// The rules say the same; what connects in a Pod's place asks again.
pub fn is_outside(address: Ipv4Addr, own: &[Ipv4Net]) -> bool {
    !own.iter().chain(&NEVER).any(|net| net.contains(&address)) && !METADATA.contains(&address)
}

/// Redirects the Pods' TCP to the outside to `port` of the node, or without one resets it.
///
/// `own` are the mesh's networks, which these rules leave alone. To be called after [`crate::guard::install`].
pub fn install(node: &NetNs, own: &[Ipv4Net], port: Option<u16>) -> Result<(), NetError> {
    nft::apply_in(node, &render(own, port))
}

fn render(own: &[Ipv4Net], port: Option<u16>) -> String {
    let own = nft::set(own);
    let never: Vec<String> =
        NEVER.iter().map(ToString::to_string).chain(METADATA.iter().map(ToString::to_string)).collect();
    let never = nft::set(never);
    let mut body = format!(
        "  # Behind connection tracking, before the redirection.\n\
         \x20 chain outside {{\n\
         \x20   type filter hook prerouting priority -150; policy accept;\n\
         \x20   iifname != \"{BRIDGE}\" accept\n\
         \x20   ip daddr {own} accept\n\
         \x20   ip daddr {never} meta l4proto tcp reject with tcp reset\n\
         \x20   ip daddr {never} drop\n"
    );
    if port.is_some() {
        body.push_str("    meta l4proto tcp accept\n");
    }
    body.push_str(
        "    meta l4proto tcp reject with tcp reset\n\
         \x20   reject\n\
         \x20 }\n",
    );
    let mut text = String::new();
    if let Some(port) = port {
        body.push_str(&format!(
            "  chain way_out {{\n\
             \x20   type nat hook prerouting priority -100; policy accept;\n\
             \x20   iifname \"{BRIDGE}\" ip daddr != {own} meta l4proto tcp redirect to :{port}\n\
             \x20 }}\n"
        ));
        text = format!("add element ip maille_node redirected {{ {port} }}\n");
    }
    nft::replace("ip", "maille_egress", &body) + &text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_are_neither_the_meshs_nor_special_are_outside() {
        let own = [Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16)];
        for inside in [
            "10.244.0.1",
            "10.244.255.255",
            "0.0.0.0",
            "127.0.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_outside(inside.parse().unwrap(), &own), "{inside}");
        }
        for outside in ["1.1.1.1", "10.0.0.1", "172.17.0.1", "192.168.1.1", "10.243.255.255"] {
            assert!(is_outside(outside.parse().unwrap(), &own), "{outside}");
        }
    }
}
