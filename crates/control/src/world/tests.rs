use std::net::IpAddr;

use maille_config::istio;
use maille_core::{NamespacedName, PortProtocol, Selector, TrustDomain};
use proptest::prelude::*;

use super::*;
use crate::facts;

fn world() -> World {
    World::new(MeshConfig::new(TrustDomain::parse("cluster.local").expect("valid")))
}

fn ip(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

fn name(n: u8) -> NamespacedName {
    NamespacedName::new(["shop", "bank", "istio-system"][usize::from(n % 3)], format!("o{}", n / 3))
}

fn pod(n: u8, address: u8, app: u8, terminating: bool) -> Pod {
    let mut labels: maille_core::Labels = [("app".to_owned(), format!("a{app}"))].into();
    if app != 2 {
        labels.insert(TLS_MODE_LABEL.into(), "istio".into());
    }
    Pod {
        name: name(n),
        uid: format!("{n}-{address}"),
        addresses: vec![ip(address)],
        labels,
        service_account: format!("sa{app}"),
        workload_name: format!("w{n}"),
        meshed: true,
        terminating,
        named_ports: vec![("http".into(), 8080)],
        scrape: None,
    }
}

fn service(n: u8, address: Option<u8>, app: Option<u8>) -> Service {
    Service {
        name: name(n),
        addresses: address.map(|a| ip(100 + a)).into_iter().collect(),
        headless: address.is_none(),
        ports: vec![ServicePort {
            number: 80,
            name: "http".into(),
            protocol: PortProtocol::Http,
            target: TargetPort::Name("http".into()),
        }],
        selector: app.map(|a| Selector::new([("app".to_owned(), format!("a{a}"))].into())),
        created_s: n.into(),
        service_accounts: Vec::new(),
        canonical_accounts: Vec::new(),
    }
}

fn slice(n: u8, service: u8, address: u8, pod: Option<u8>, ready: bool) -> EndpointSlice {
    let service = name(service);
    EndpointSlice {
        name: NamespacedName::new(service.namespace.clone(), format!("s{n}")),
        service: service.name,
        ports: vec![("http".into(), 8080)],
        endpoints: vec![SliceEndpoint {
            addresses: vec![ip(address)],
            ready,
            pod: pod.map(|p| name(p).name),
        }],
    }
}

fn peer_authentication(n: u8, app: Option<u8>, mode: u8) -> istio::PeerAuthentication {
    let mut policy = istio::PeerAuthentication::default();
    policy.metadata.namespace = Some(name(n).namespace);
    policy.metadata.name = Some(name(n).name);
    let mode =
        [istio::MutualTlsMode::Strict, istio::MutualTlsMode::Disable, istio::MutualTlsMode::Permissive]
            [usize::from(mode % 3)];
    policy.spec.mtls = Some(istio::MutualTls { mode });
    policy.spec.selector =
        app.map(|a| istio::WorkloadSelector { match_labels: [("app".to_owned(), format!("a{a}"))].into() });
    policy
}

fn event() -> impl Strategy<Value = Event> {
    let n = 0..6u8;
    prop_oneof![
        (n.clone(), 0..4u8, 0..3u8, any::<bool>())
            .prop_map(|(n, a, app, t)| Event::Pod(Change::Put(pod(n, a, app, t)))),
        n.clone().prop_map(|n| Event::Pod(Change::Delete(name(n)))),
        prop::collection::vec((n.clone(), 0..4u8, 0..3u8), 0..4).prop_map(|all| {
            Event::Pod(Change::Replace(all.into_iter().map(|(n, a, app)| pod(n, a, app, false)).collect()))
        }),
        (n.clone(), prop::option::of(0..3u8), prop::option::of(0..3u8))
            .prop_map(|(n, a, app)| Event::Service(Change::Put(service(n, a, app)))),
        n.clone().prop_map(|n| Event::Service(Change::Delete(name(n)))),
        (0..3u8, n.clone(), 0..4u8, prop::option::of(n.clone()), any::<bool>())
            .prop_map(|(s, of, a, p, r)| Event::Slice(Change::Put(slice(s, of, a, p, r)))),
        (0..3u8, n.clone()).prop_map(|(s, of)| {
            let namespace = name(of).namespace;
            Event::Slice(Change::Delete(NamespacedName::new(namespace, format!("s{s}"))))
        }),
        (n.clone(), prop::option::of(0..3u8), 0..3u8)
            .prop_map(|(n, app, m)| Event::PeerAuthentication(Change::Put(peer_authentication(n, app, m)))),
        n.prop_map(|n| Event::PeerAuthentication(Change::Delete(name(n)))),
    ]
}

fn cases() -> u32 {
    std::env::var("MAILLE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(256)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// What a fact says changes only together with a key it is subscribed by.
    #[test]
    fn no_change_of_a_fact_is_missed(events in prop::collection::vec(event(), 1..40)) {
        let mut world = world();
        for event in events {
            let before = world.clone();
            let mut changes = ChangeSet::default();
            world.apply(event.clone(), &mut changes);
            for n in 0..6 {
                let asked = Asked::Service(name(n));
                if facts::destination(&before, &asked) != facts::destination(&world, &asked) {
                    prop_assert!(changes.contains(&Key::Service(name(n))), "{:?} by {:?}", asked, event);
                }
                let inbound = |w: &World| w.pod(&name(n)).map(|p| facts::inbound(w, p));
                if inbound(&before) != inbound(&world) {
                    prop_assert!(changes.contains(&Key::Workload(name(n))), "inbound {} by {:?}", name(n), event);
                }
            }
            for address in (0..4).map(ip).chain((100..103).map(ip)) {
                let asked = Asked::Address(address);
                if facts::destination(&before, &asked) != facts::destination(&world, &asked) {
                    prop_assert!(changes.contains(&Key::Address(address)), "{:?} by {:?}", asked, event);
                }
            }
        }
    }

    /// Which events led to a world does not matter, only what it holds.
    #[test]
    fn a_world_reached_in_steps_equals_one_built_at_once(events in prop::collection::vec(event(), 1..40)) {
        let mut world = world();
        let mut changes = ChangeSet::default();
        for event in events {
            world.apply(event, &mut changes);
        }
        let mut fresh = self::world();
        let owned = |all: Vec<&Arc<Pod>>| all.into_iter().map(|p| (**p).clone()).collect();
        fresh.apply(Event::Pod(Change::Replace(owned(world.pods().collect()))), &mut changes);
        fresh.apply(
            Event::Service(Change::Replace(world.services().map(|s| (**s).clone()).collect())),
            &mut changes,
        );
        fresh.apply(
            Event::Slice(Change::Replace(world.slices.values().map(|s| (**s).clone()).collect())),
            &mut changes,
        );
        prop_assert_eq!(&fresh.pods_by_address, &world.pods_by_address);
        prop_assert_eq!(&fresh.slices_by_pod, &world.slices_by_pod);
        prop_assert_eq!(&fresh.slices_by_service, &world.slices_by_service);
        prop_assert_eq!(&fresh.slices_by_address, &world.slices_by_address);
    }

    #[test]
    fn names_are_read_without_panic(text in ".*", namespace in "[a-z]{1,5}") {
        let _ = Asked::read(&text, &namespace, "cluster.local");
    }
}

#[test]
fn names_are_understood_as_a_pods_resolver_would() {
    let shop = |n: &str| Asked::Service(NamespacedName::new("shop", n));
    let cases = [
        ("cart", shop("cart")),
        ("Cart", shop("cart")),
        ("cart.shop", shop("cart")),
        ("cart.shop.svc", shop("cart")),
        ("cart.shop.svc.cluster.local", shop("cart")),
        ("cart.shop.svc.cluster.local.", shop("cart")),
        ("pay.bank", Asked::Service(NamespacedName::new("bank", "pay"))),
        ("10.0.0.1", Asked::Address(ip(1))),
        ("::ffff:10.0.0.1", Asked::Address(ip(1))),
        ("www.example.com", Asked::Foreign),
        ("pod-0.cart.shop.svc.cluster.local", Asked::Foreign),
        ("svc.cluster.local", Asked::Foreign),
        ("cart.svc", Asked::Foreign),
        ("", Asked::Foreign),
        ("a b", Asked::Foreign),
    ];
    for (text, expected) in cases {
        let asked = Asked::read(text, "shop", "cluster.local");
        assert_eq!(asked, expected, "{text}");
    }
}

#[test]
fn an_address_belongs_to_the_pod_that_stays_and_to_nobody_when_in_doubt() {
    let mut world = world();
    let mut changes = ChangeSet::default();
    world.apply(Event::Pod(Change::Put(pod(0, 1, 0, true))), &mut changes);
    assert_eq!(world.pod_at(ip(1)).map(|p| p.name.clone()), Some(name(0)), "a leaving pod lives still");
    world.apply(Event::Pod(Change::Put(pod(3, 1, 0, false))), &mut changes);
    assert_eq!(world.pod_at(ip(1)).map(|p| p.name.clone()), Some(name(3)));
    world.apply(Event::Pod(Change::Put(pod(1, 1, 0, false))), &mut changes);
    assert!(world.pod_at(ip(1)).is_none(), "two that both claim it");
}

#[test]
fn what_changes_nothing_concerns_nobody() {
    let mut world = world();
    let mut changes = ChangeSet::default();
    let event = Event::Pod(Change::Put(pod(0, 1, 0, false)));
    world.apply(event.clone(), &mut changes);
    let mut again = ChangeSet::default();
    world.apply(event, &mut again);
    world.apply(Event::Service(Change::Delete(name(4))), &mut again);
    assert!(again.is_empty());
}
