//! The Pods' way out: what they send to addresses outside of the mesh's own networks.
//!
//! Nothing is routed through the node, and the host's network is left as it is: TCP is redirected, inside the node
//! namespace, to a listener there that connects in the Pod's place; or it is reset at once. All else that is
//! not for the mesh is refused. The rules come after the bridge's guard (see [`crate::guard`]), so a source
//! address is that of its Pod here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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

/// The same in IPv6: unspecified and loopback with all of `::/96`, IPv4's addresses in other clothes, link-local,
/// site-local, multicast; translators' local prefixes (RFC 8215), whose IPv4 address may be anywhere in them; and
/// benchmarks' (RFC 5180), from which ServiceEntries get addresses (reference mtls SE-15).
const NEVER6: [Ipv6Net; 7] = [
    Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48),
];

/// Metadata services outside of the link-local network: Azure's WireServer, Alibaba's, Oracle's.
const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];

/// Amazon's and Google's in IPv6.
const METADATA6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Whether Pods of a mesh with these networks may reach `address` outside of it.
///
/// The rules say the same; what connects in a Pod's place asks again.
pub fn is_outside(address: IpAddr, own: &[IpNet]) -> bool {
    let is_special = match address {
        IpAddr::V4(v4) => NEVER.iter().any(|net| net.contains(&v4)) || METADATA.contains(&v4),
        IpAddr::V6(v6) => {
            NEVER6.iter().any(|net| net.contains(&v6))
                || METADATA6.contains(&v6)
                || translated(v6).is_some_and(|v4| !is_outside(v4.into(), own))
        }
    };
    !is_special && !own.iter().any(|net| net.contains(&address))
}

/// The IPv4 address that a translator (RFC 6052) or a tunnel (6to4, RFC 3056) on the way would make of an IPv6 one.
fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.octets() {
        [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] | [0x20, 0x02, a, b, c, d, ..] => {
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// Redirects the Pods' TCP to the outside to `port` of the node, or without one resets it.
///
/// `own` are the mesh's networks, which these rules leave alone; only families in which it has one get rules. To be called
/// after [`crate::guard::install`].
pub fn install(node: &NetNs, own: &[IpNet], port: Option<u16>) -> Result<(), NetError> {
    nft::apply_in(node, &render(own, port))
}

fn render(own: &[IpNet], port: Option<u16>) -> String {
    let special =
        |nets: Vec<String>, addresses: Vec<String>| nets.into_iter().chain(addresses).collect::<Vec<_>>();
    let never = special(
        NEVER.iter().map(ToString::to_string).collect(),
        METADATA.iter().map(ToString::to_string).collect(),
    );
    let never6 = special(
        NEVER6.iter().map(ToString::to_string).collect(),
        METADATA6.iter().map(ToString::to_string).collect(),
    );
    [("ip", true, never), ("ip6", false, never6)]
        .into_iter()
        .map(|(family, v4, never)| {
            let own: Vec<&IpNet> = own.iter().filter(|net| net.addr().is_ipv4() == v4).collect();
            if own.is_empty() {
                String::new()
            } else {
                render_family(family, &nft::set(own), &nft::set(never), port)
            }
        })
        .collect()
}

fn render_family(family: &str, own: &str, never: &str, port: Option<u16>) -> String {
    // Neighbour discovery is for the bridge itself.
    let neighbours = if family == "ip6" {
        "    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n"
    } else {
        ""
    };
    let mut body = format!(
        "  # Behind connection tracking, before the redirection.\n\
         \x20 chain outside {{\n\
         \x20   type filter hook prerouting priority -150; policy accept;\n\
         \x20   iifname != \"{BRIDGE}\" accept\n\
         \x20   {family} daddr {own} accept\n{neighbours}\
         \x20   {family} daddr {never} meta l4proto tcp reject with tcp reset\n\
         \x20   {family} daddr {never} drop\n"
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
             \x20   iifname \"{BRIDGE}\" {family} daddr != {own} meta l4proto tcp redirect to :{port}\n\
             \x20 }}\n"
        ));
        text = format!("add element {family} maille_node redirected {{ {port} }}\n");
    }
    nft::replace(family, "maille_egress", &body) + &text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_are_neither_the_meshs_nor_special_are_outside() {
        let own = ["10.244.0.0/16", "fd00:10:244::/64"].map(|net| net.parse().unwrap());
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
            "fd00:10:244::1",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:1.1.1.1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "2001:2::7",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:ffff::1",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(!is_outside(inside.parse().unwrap(), &own), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "10.0.0.1",
            "172.17.0.1",
            "192.168.1.1",
            "10.243.255.255",
            "2001:db8::1",
            "fd00:10:96::1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(is_outside(outside.parse().unwrap(), &own), "{outside}");
        }
    }
}
