//! Virtual addresses of Services, translated inside each namespace.
//!
//! The rules have a table of their own and come after the interception's (priority -90 behind -100), so
//! that an application's connection to a virtual address still goes to its sidecar, and only what the
//! sidecar itself or a Pod without one sends is translated: to one of the ready endpoints at
//! random. What no rule translated is refused at once, as kube-proxy does, and not left to time out.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::NetError;
use crate::netns::NetNs;
use crate::nft;

/// Transport of a Service's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One port of one virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualPort {
    /// The virtual address.
    pub address: IpAddr,
    /// TCP or UDP.
    pub transport: Transport,
    /// The Service's port.
    pub port: u16,
    /// `namespace/name:port`, for the people who read the rules.
    pub label: String,
    /// Ready endpoints of the address's family; none means that connections are refused.
    pub endpoints: Vec<(IpAddr, u16)>,
}

/// The transaction that puts exactly these virtual ports in force.
pub fn render(networks: &[IpNet], ports: &[VirtualPort]) -> String {
    let mut chains = String::new();
    let (mut map, mut map6) = (Vec::new(), Vec::new());
    for port in ports.iter().filter(|p| !p.endpoints.is_empty()) {
        let transport = port.transport.name();
        let chain =
            format!("{transport}_{}_{}", port.address.to_string().replace(['.', ':'], "_"), port.port);
        let family = family(port.address);
        let endpoints =
            port.endpoints.iter().enumerate().map(|(i, (ip, port))| format!("{i} : {ip} . {port}"));
        let _ = write!(
            chains,
            "  # {}\n  chain {chain} {{\n    meta l4proto {transport} dnat {family} to numgen random mod {} map {}\n  }}\n",
            comment(&port.label),
            port.endpoints.len(),
            nft::set(endpoints),
        );
        let map = if port.address.is_ipv4() { &mut map } else { &mut map6 };
        map.push(format!("{} . {transport} . {} : goto {chain}", port.address, port.port));
    }
    chains.push_str("  chain output {\n    type nat hook output priority -90; policy accept;\n");
    for (family, map) in [("ip", map), ("ip6", map6)] {
        if !map.is_empty() {
            let _ = writeln!(chains, "    {family} daddr . meta l4proto . th dport vmap {}", nft::set(map));
        }
    }
    chains.push_str(
        "  }\n\
         \x20 # What is still addressed to the service networks has no ready endpoint.\n\
         \x20 chain unavailable {\n\
         \x20   type filter hook output priority 0; policy accept;\n",
    );
    for network in networks {
        let family = family(network.addr());
        let _ = write!(
            chains,
            "    {family} daddr {network} meta l4proto tcp reject with tcp reset\n\
             \x20   {family} daddr {network} reject\n"
        );
    }
    chains.push_str("  }\n");
    nft::replace("inet", "maille_services", &chains)
}

/// Puts exactly these virtual ports in force inside `ns`; connections already open go on.
pub fn apply(ns: &NetNs, networks: &[IpNet], ports: &[VirtualPort]) -> Result<(), NetError> {
    nft::apply_in(ns, &render(networks, ports))
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// A label may hold anything an object's name may hold; a line break would end the comment.
fn comment(label: &str) -> String {
    label.chars().filter(|c| !c.is_control()).collect()
}
