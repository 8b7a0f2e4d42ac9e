//! Addresses for the hosts of ServiceEntries that have none (reference mtls 4.2, SE-15).
//!
//! What is in force stands in the entry's status, so that it outlives the control plane, and two of them agree; this module
//! only says what should stand there. A host's address is found by a hash of its names, so that one that is deleted and
//! made again most likely gets it again, while callers still remember it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use maille_config::istio::{Resolution, ServiceEntry};
use maille_config::service_entry::namespace_of;
use maille_core::NamespacedName;
use serde_json::Value;

use super::World;

/// With the value `false` an entry gets no addresses.
const LABEL: &str = "networking.istio.io/enable-autoallocate-ip";

/// 240.240.0.0/16.
const V4: u32 = u32::from_be_bytes([240, 240, 0, 0]);
/// Without the first and the last.
const V4_LAST: u32 = 0xfffe;
/// 2001:2::/48, the block for benchmarks (RFC 5180).
const V6: u128 = 0x2001_0002_0000 << 80;
/// As many are enough.
const V6_LAST: u32 = u32::MAX - 1;

/// One element of `status.addresses`: host and address.
pub(super) type Allocated<'e> = (&'e str, IpAddr);

/// Whether an entry is to have addresses (istio pilot/pkg/networking/serviceentry, `shouldV2AutoAllocateIPFromPieces`).
fn is_wanted(entry: &ServiceEntry) -> bool {
    let label = entry.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL));
    entry.spec.addresses.is_empty()
        && entry.spec.resolution != Resolution::None
        && !label.is_some_and(|value| value.eq_ignore_ascii_case("false"))
}

/// The hosts that get addresses: a wildcard is asked for under names that are its own only with DYNAMIC_DNS.
fn hosts_of(entry: &ServiceEntry) -> BTreeSet<&str> {
    let hosts = entry.spec.hosts.iter().map(String::as_str).filter(|_| is_wanted(entry));
    hosts.filter(|host| !host.starts_with('*') || entry.spec.resolution == Resolution::DynamicDns).collect()
}

/// What stands in an entry's status, of our ranges.
fn stored(entry: &ServiceEntry) -> impl Iterator<Item = Allocated<'_>> {
    let all = entry.status.as_ref().and_then(|status| status.get("addresses")).and_then(Value::as_array);
    all.into_iter().flatten().filter_map(|found| {
        let host = found.get("host")?.as_str()?;
        let address: IpAddr = found.get("value")?.as_str()?.parse().ok()?;
        is_ours(address).then_some((host, address))
    })
}

/// The addresses of an entry's hosts that are in force.
pub(super) fn in_force(entry: &ServiceEntry) -> Vec<Allocated<'_>> {
    if entry.status.is_none() {
        return Vec::new();
    }
    let hosts = hosts_of(entry);
    stored(entry).filter(|(host, _)| hosts.contains(host)).collect()
}

fn is_ours(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => (1..=V4_LAST).contains(&u32::from(address).wrapping_sub(V4)),
        IpAddr::V6(address) => {
            let offset = u128::from(address).wrapping_sub(V6);
            (1..=u128::from(V6_LAST)).contains(&offset)
        }
    }
}

/// What should stand in the status of an entry, since something else does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The entry.
    pub entry: NamespacedName,
    /// Host and address; empty: nothing should stand there any more.
    pub addresses: Vec<(String, IpAddr)>,
}

impl World {
    /// The entries whose addresses are not as they should be. Addresses that are in force stay, unless an older entry, or
    /// one whose author wrote it down, has the same.
    pub fn allocations_due(&self) -> Vec<Allocation> {
        let written = self.entries().flat_map(|entry| &entry.spec.addresses);
        let mut used: BTreeSet<IpAddr> = written.filter_map(|text| text.parse().ok()).collect();
        let mut entries: Vec<&ServiceEntry> = self.entries().map(|entry| &**entry).collect();
        entries.sort_by_key(|entry| {
            let created = entry.metadata.creation_timestamp.as_ref();
            (
                created.map_or(i64::MAX, |t| t.0.as_second()),
                namespace_of(entry),
                entry.metadata.name.as_deref(),
            )
        });
        // What stays is known before anything new is chosen.
        let kept: Vec<Vec<Allocated<'_>>> = entries
            .iter()
            .map(|entry| {
                let mut families = BTreeSet::new();
                let all = in_force(entry).into_iter();
                all.filter(|(host, a)| families.insert((*host, a.is_ipv6())) && used.insert(*a)).collect()
            })
            .collect();
        let mut due = Vec::new();
        for (entry, kept) in entries.into_iter().zip(kept) {
            let name = NamespacedName::new(
                namespace_of(entry).to_owned(),
                entry.metadata.name.clone().unwrap_or_default(),
            );
            let mut wanted: Vec<(String, IpAddr)> = Vec::new();
            for host in hosts_of(entry) {
                for ipv6 in [false, true] {
                    let known =
                        kept.iter().find(|(of, a)| *of == host && a.is_ipv6() == ipv6).map(|(_, a)| *a);
                    let address = known.or_else(|| free(&name, host, ipv6, &mut used));
                    wanted.extend(address.map(|address| (host.to_owned(), address)));
                }
            }
            let now: BTreeSet<(&str, IpAddr)> = stored(entry).collect();
            if now != wanted.iter().map(|(host, address)| (host.as_str(), *address)).collect() {
                due.push(Allocation { entry: name, addresses: wanted });
            }
        }
        due
    }
}

/// The first free address from where the hash of the names leads; `None` if there is none.
fn free(name: &NamespacedName, host: &str, ipv6: bool, used: &mut BTreeSet<IpAddr>) -> Option<IpAddr> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{name}/{host}").as_bytes());
    let hash = digest.as_ref().iter().take(4).fold(0u32, |hash, byte| hash << 8 | u32::from(*byte));
    let last = if ipv6 { V6_LAST } else { V4_LAST };
    let first = hash % last;
    // More entries than a world can hold before this ends without an answer.
    (0..=V4_LAST).map(|step| 1 + ((u64::from(first) + u64::from(step)) % u64::from(last)) as u32).find_map(
        |offset| {
            let address: IpAddr = if ipv6 {
                Ipv6Addr::from(V6 | u128::from(offset)).into()
            } else {
                Ipv4Addr::from(V4 | offset).into()
            };
            used.insert(address).then_some(address)
        },
    )
}

#[cfg(test)]
mod tests {
    use maille_core::TrustDomain;
    use serde_json::json;

    use super::*;
    use crate::world::{Change, ChangeSet, Event, MeshConfig};

    struct Scene(World, u32);

    impl Scene {
        fn new() -> Self {
            Self(World::new(MeshConfig::new(TrustDomain::parse("cluster.local").expect("valid"))), 0)
        }

        /// Later ones are newer.
        fn put(&mut self, name: &str, spec: Value, status: Value) {
            self.1 += 1;
            let created = format!("2026-01-01T00:00:{:02}Z", self.1);
            let entry = json!({
                "metadata": {"namespace": "shop", "name": name, "creationTimestamp": created},
                "spec": spec, "status": status,
            });
            let entry: ServiceEntry = serde_json::from_value(entry).expect("an entry");
            self.0.apply(Event::ServiceEntry(Change::Put(entry)), &mut ChangeSet::default());
        }

        fn due(&self) -> Vec<Allocation> {
            self.0.allocations_due()
        }

        /// Writes what is due, as the keeper of statuses does.
        fn write(&mut self) -> Vec<Allocation> {
            let due = self.due();
            for allocation in &due {
                let mut entry = (**self.0.entry(&allocation.entry).expect("there")).clone();
                entry.status = Some(status(&allocation.addresses));
                self.0.apply(Event::ServiceEntry(Change::Put(entry)), &mut ChangeSet::default());
            }
            due
        }

        fn of(&self, name: &str) -> Vec<(String, IpAddr)> {
            let entry = self.0.entry(&NamespacedName::new("shop", name)).expect("there");
            in_force(entry).into_iter().map(|(host, address)| (host.to_owned(), address)).collect()
        }
    }

    fn status(addresses: &[(String, IpAddr)]) -> Value {
        let all: Vec<Value> =
            addresses.iter().map(|(h, a)| json!({"value": a.to_string(), "host": h})).collect();
        json!({"addresses": all})
    }

    fn dns(hosts: &[&str]) -> Value {
        json!({"hosts": hosts, "resolution": "DNS", "ports": [{"number": 5432, "name": "tcp", "protocol": "TCP"}]})
    }

    #[test]
    fn every_host_gets_one_address_of_each_family_and_keeps_it() {
        let mut scene = Scene::new();
        scene.put("db", dns(&["db1.corp", "db2.corp"]), Value::Null);
        let written = scene.write();
        let [allocation] = written.as_slice() else { panic!("{written:?}") };
        assert_eq!(allocation.addresses.len(), 4);
        let all: BTreeSet<IpAddr> = allocation.addresses.iter().map(|(_, address)| *address).collect();
        assert!(all.len() == 4 && all.iter().all(|address| is_ours(*address)), "{all:?}");
        for (_, address) in &allocation.addresses {
            let text = address.to_string();
            assert!(text.starts_with("240.240.") || text.starts_with("2001:2::"), "{text}");
        }
        assert!(scene.due().is_empty(), "it is as it should be");
        let before = scene.of("db");
        scene.put("db", dns(&["db1.corp", "db3.corp"]), status(&before));
        scene.write();
        let after = scene.of("db");
        let of = |all: &[(String, IpAddr)], host: &str| -> Vec<IpAddr> {
            all.iter().filter(|(h, _)| h == host).map(|(_, a)| *a).collect()
        };
        assert_eq!(of(&before, "db1.corp"), of(&after, "db1.corp"));
        assert!(of(&after, "db2.corp").is_empty() && of(&after, "db3.corp").len() == 2);
        // One that comes again finds its own address.
        let name = NamespacedName::new("shop", "db");
        scene.0.apply(Event::ServiceEntry(Change::Delete(name)), &mut ChangeSet::default());
        scene.put("db", dns(&["db1.corp"]), Value::Null);
        scene.write();
        assert_eq!(of(&scene.of("db"), "db1.corp"), of(&before, "db1.corp"));
    }

    #[test]
    fn entries_that_need_none_get_none_and_lose_what_they_have() {
        let mut with_address = dns(&["a.corp"]);
        with_address["addresses"] = json!(["192.0.2.1"]);
        let mut none = dns(&["a.corp"]);
        none["resolution"] = json!("NONE");
        let old = status(&[("a.corp".to_owned(), "240.240.0.1".parse().expect("an address"))]);
        for (spec, dynamic) in [(with_address, false), (none, false), (dns(&["*.corp"]), false)] {
            let mut scene = Scene::new();
            scene.put("db", spec.clone(), Value::Null);
            assert_eq!(scene.due().len(), usize::from(dynamic), "{spec}");
            scene.put("db", spec.clone(), old.clone());
            assert!(scene.of("db").is_empty(), "{spec}");
            let name = NamespacedName::new("shop", "db");
            assert_eq!(scene.due(), [Allocation { entry: name, addresses: Vec::new() }], "{spec}");
        }
        let mut scene = Scene::new();
        let mut wild = dns(&["*.corp"]);
        wild["resolution"] = json!("DYNAMIC_DNS");
        scene.put("wild", wild, Value::Null);
        assert_eq!(scene.due().len(), 1);
        let mut off: ServiceEntry = serde_json::from_value(
            json!({"metadata": {"namespace": "shop", "name": "off"}, "spec": dns(&["a.corp"])}),
        )
        .expect("an entry");
        off.metadata.labels = Some([(LABEL.to_owned(), "False".to_owned())].into());
        let mut scene = Scene::new();
        scene.0.apply(Event::ServiceEntry(Change::Put(off)), &mut ChangeSet::default());
        assert!(scene.due().is_empty());
    }

    #[test]
    fn of_two_with_one_address_the_older_keeps_it() {
        let both = |host: &str| {
            let address = |text: &str| (host.to_owned(), text.parse().expect("an address"));
            status(&[address("240.240.0.7"), address("2001:2::7")])
        };
        let mut scene = Scene::new();
        scene.put("old", dns(&["a.corp"]), both("a.corp"));
        scene.put("new", dns(&["b.corp"]), both("b.corp"));
        let due = scene.write();
        assert_eq!(due.iter().map(|d| d.entry.name.as_str()).collect::<Vec<_>>(), ["new"]);
        let (old, new) = (scene.of("old"), scene.of("new"));
        assert_eq!((old.len(), new.len()), (2, 2));
        assert!(old.iter().all(|(_, a)| !new.iter().any(|(_, b)| a == b)), "{old:?} {new:?}");
        // What an author writes down goes before what was given.
        let written = json!({"hosts": ["c.corp"], "addresses": ["240.240.0.7"], "resolution": "DNS"});
        scene.put("written", written, Value::Null);
        scene.write();
        assert!(scene.of("old").iter().all(|(_, a)| a.to_string() != "240.240.0.7"), "{:?}", scene.of("old"));
        assert!(scene.due().is_empty());
    }

    #[test]
    fn addresses_out_of_range_are_not_ours_and_the_range_is_not_left() {
        for (text, ours) in [
            ("240.240.0.0", false),
            ("240.240.0.1", true),
            ("240.240.255.254", true),
            ("240.240.255.255", false),
            ("240.241.0.1", false),
            ("10.0.0.1", false),
            ("2001:2::", false),
            ("2001:2::1", true),
            ("2001:2:1::1", false),
        ] {
            assert_eq!(is_ours(text.parse().expect("an address")), ours, "{text}");
        }
        let name = NamespacedName::new("shop", "db");
        let address = |offset: u32| IpAddr::from(Ipv4Addr::from(V4 | offset));
        for left in [1, 77, V4_LAST] {
            let mut used = (1..=V4_LAST).filter(|offset| *offset != left).map(address).collect();
            assert_eq!(free(&name, "a.corp", false, &mut used), Some(address(left)));
            assert_eq!(free(&name, "b.corp", false, &mut used), None, "all are taken");
        }
    }
}
