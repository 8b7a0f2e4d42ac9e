//! The addresses of one mesh. All of them live in its own namespaces, so every mesh has the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use parking_lot::Mutex;

/// The node's name in `spec.nodeName`.
pub const NODE_NAME: &str = "maille";
/// Where every container has the `maille` binary. Objects name it so, and not where it is on the host, which may be
/// elsewhere at the next start.
pub const BINARY_IN_CONTAINERS: &str = "/usr/local/bin/maille";
/// Where Pods have their addresses.
pub const POD_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16);
/// Where Services have theirs.
pub const SERVICE_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);
/// Where Pods have a second address, if the kernel has IPv6: the same low bits.
pub const POD_NETWORK_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 64);
/// Where Services have theirs that ask for one.
pub const SERVICE_NETWORK_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112);
/// Where ServiceEntries get addresses that lead to sidecars only (reference mtls SE-15).
pub const ALLOCATED_NETWORK_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48);
/// The node in IPv6, where it only is on the way.
pub const NODE_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);
/// The node: bridge, API and DNS.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// Where the API listens for Pods.
pub const API_PORT: u16 = 6443;
/// Where cluster DNS listens.
pub const DNS_PORT: u16 = 53;
/// Where the Pods' way out listens; reached by redirection only.
pub const EGRESS_PORT: u16 = 6444;
/// The user of the process there; the last before those of Pods.
pub const EGRESS_USER: u32 = FIRST_POD_UID - 1;
/// `kubernetes.default`.
pub const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// `kube-dns.kube-system`, which Pods' `resolv.conf` names.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// First of the users that Pods get which do not choose one; the low 16 bits of the Pod's address are added.
pub const FIRST_POD_UID: u32 = 100_000;

/// Whether Pods have addresses of both families: whenever the kernel has.
pub fn is_dual_stack() -> bool {
    maille_net::link::has_ipv6()
}

/// The networks of a mesh, of every family that it has.
pub fn own_networks() -> Vec<IpNet> {
    let mut networks = vec![POD_NETWORK.into(), SERVICE_NETWORK.into()];
    if is_dual_stack() {
        networks.extend([IpNet::from(POD_NETWORK_V6), SERVICE_NETWORK_V6.into()]);
    }
    networks
}

/// The IPv6 address of the Pod with this IPv4 one.
pub fn pod_v6(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(POD_NETWORK_V6.network().to_bits() | u128::from(suffix(address)))
}

/// All addresses of a Pod, the main one first.
pub fn pod_addresses(address: Ipv4Addr) -> impl Iterator<Item = IpAddr> {
    let second = is_dual_stack().then(|| pod_v6(address).into());
    std::iter::once(IpAddr::V4(address)).chain(second)
}

/// Hands out Pod addresses, each as late again as possible: a peer may still remember the last holder.
#[derive(Debug, Default)]
pub struct AddressPool {
    state: Mutex<(BTreeSet<u16>, u16)>,
}

impl AddressPool {
    /// The next free address; `None` when all are taken.
    pub fn take(&self) -> Option<Ipv4Addr> {
        let mut state = self.state.lock();
        let (used, last) = &mut *state;
        for _ in 0..u16::MAX {
            *last = last.wrapping_add(1);
            // The first 256 are the node's; .0 and .255 confuse people and old tools.
            let usable = *last >= 256 && !matches!(*last & 0xff, 0 | 0xff);
            if usable && used.insert(*last) {
                return Some(Ipv4Addr::from(u32::from(POD_NETWORK.network()) | u32::from(*last)));
            }
        }
        None
    }

    /// Goes on behind an address that an earlier run gave out: the API still shows it for Pods that have not been
    /// started again, and two Pods must not claim one address.
    pub fn continue_after(&self, address: Ipv4Addr) {
        let mut state = self.state.lock();
        state.1 = state.1.max(suffix(address));
    }

    /// Gives one back.
    pub fn release(&self, address: Ipv4Addr) {
        self.state.lock().0.remove(&suffix(address));
    }
}

/// The user a Pod at this address gets unless its manifest names one: no two Pods share it, so they can
/// neither signal nor read each other.
pub fn pod_uid(address: Ipv4Addr) -> u32 {
    FIRST_POD_UID + u32::from(suffix(address))
}

fn suffix(address: Ipv4Addr) -> u16 {
    let [_, _, c, d] = address.octets();
    u16::from_be_bytes([c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_run_does_not_begin_with_the_addresses_of_the_one_before() {
        let pool = AddressPool::default();
        pool.continue_after(Ipv4Addr::new(10, 244, 1, 7));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 244, 1, 8)));
    }

    #[test]
    fn both_addresses_of_a_pod_tell_the_same() {
        let (v4, v6) = (Ipv4Addr::new(10, 244, 1, 7), "fd00:10:244::107".parse::<Ipv6Addr>().unwrap());
        assert_eq!(pod_v6(v4), v6);
        assert!(POD_NETWORK_V6.contains(&v6) && POD_NETWORK_V6.contains(&NODE_ADDRESS_V6));
        assert_eq!(pod_addresses(v4).next(), Some(v4.into()));
    }

    #[test]
    fn addresses_are_unique_and_reused_last() {
        let pool = AddressPool::default();
        let first = pool.take().unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 244, 1, 1));
        pool.release(first);
        assert_ne!(pool.take().unwrap(), first);
        let mut all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert!(all.len() > 60_000 && all.iter().all(|a| POD_NETWORK.contains(a)));
        all.sort_unstable();
        all.dedup();
        assert!(all.len() > 60_000);
    }
}
