//! Addresses that no key set is fetched from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why nothing is fetched from an address; `None` if something may be.
///
/// What refuses is what has no use as an identity provider and is worth attacking through the control plane: its own
/// loopback, and the addresses at which clouds give machines their credentials (link-local, and those that Alibaba,
/// Amazon and Azure have elsewhere), also inside the IPv6 forms that carry an IPv4 address.
pub fn forbidden(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) => forbidden_v4(address),
        IpAddr::V6(address) => forbidden_v6(address),
    }
}

fn forbidden_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [127, ..] => Some("a loopback address"),
        [0, ..] => Some("an unspecified address"),
        [169, 254, ..] => Some("a link-local address"),
        [100, 100, 100, 200] | [168, 63, 129, 16] => Some("a metadata service's address"),
        [224..=255, ..] => Some("a multicast or reserved address"),
        _ => None,
    }
}

fn forbidden_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        [first, ..] if first & 0xffc0 == 0xfe80 => Some("a link-local address"),
        [first, ..] if first & 0xff00 == 0xff00 => Some("a multicast or reserved address"),
        [0xfd00, 0x0ec2, ..] => Some("a metadata service's address"),
        // IPv4-compatible, NAT64 (RFC 6052) and 6to4 (RFC 3056).
        [0, 0, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            forbidden_v4(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_credentials_and_loopback_are_out_of_reach_in_every_form() {
        for address in [
            "127.0.0.1",
            "127.255.0.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
        ] {
            assert!(forbidden(address.parse().expect("an address")).is_some(), "{address}");
        }
    }

    #[test]
    fn providers_in_the_cluster_and_outside_can_be_reached() {
        for address in [
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "100.64.0.1",
            "203.0.113.9",
            "2001:db8::1",
            "fd12::1",
            "fec0::1",
            "64:ff9b::a00:1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(forbidden(address.parse().expect("an address")), None, "{address}");
        }
    }
}
