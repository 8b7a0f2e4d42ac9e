use std::net::IpAddr;

use maille_config::destination_rule::Client;
use maille_config::{istio, mesh};
use maille_core::{NamespacedName, PortProtocol, Selector, TrustDomain};
use proptest::prelude::*;

use super::*;
use crate::facts;

mod registry;

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
        multiplexes: false,
        node: "node-1".into(),
        ready: true,
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
        external_name: None,
        prefers_ipv6: false,
        export_to: Vec::new(),
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
            hostname: None,
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

/// What rules and entries name; `o0` is a service's short name.
const HOSTS: [&str; 10] = [
    "a.corp",
    "b.a.corp",
    "*.corp",
    "*",
    "o0",
    "o0.shop.svc.cluster.local",
    "*.shop.svc.cluster.local",
    "p.o0.shop.svc.cluster.local",
    "*.o0.shop",
    "p.o0",
];

fn exports(n: u8) -> Vec<String> {
    [vec![], vec![".".to_owned()], vec!["bank".to_owned()]][usize::from(n)].clone()
}

fn rule(n: u8, host: &str, mode: u8, app: Option<u8>, export: u8) -> istio::DestinationRule {
    let modes = [
        istio::ClientTlsMode::Disable,
        istio::ClientTlsMode::Simple,
        istio::ClientTlsMode::Mutual,
        istio::ClientTlsMode::IstioMutual,
    ];
    let tls = istio::ClientTlsSettings { mode: modes[usize::from(mode)], ..Default::default() };
    let mut rule = istio::DestinationRule::default();
    rule.metadata.namespace = Some(name(n).namespace);
    rule.metadata.name = Some(name(n).name);
    rule.spec.host = host.to_owned();
    rule.spec.export_to = exports(export);
    rule.spec.traffic_policy = Some(istio::TrafficPolicy { tls: Some(tls), ..Default::default() });
    rule.spec.workload_selector =
        app.map(|a| istio::WorkloadSelector { match_labels: [("app".to_owned(), format!("a{a}"))].into() });
    rule
}

fn entry(n: u8, host: &str, address: u8, export: u8, internal: bool) -> istio::ServiceEntry {
    let mut entry = istio::ServiceEntry::default();
    entry.metadata.namespace = Some(name(n).namespace);
    entry.metadata.name = Some(name(n).name);
    entry.spec.hosts = vec![host.to_owned()];
    let address = if address == 4 { "10.0.0.0/30".to_owned() } else { ip(address).to_string() };
    entry.spec.addresses = vec![address];
    entry.spec.export_to = exports(export);
    entry.spec.resolution = istio::Resolution::Static;
    entry.spec.ports = vec![istio::ServiceEntryPort {
        number: 80 + u32::from(n),
        name: "http".into(),
        protocol: "HTTP".into(),
        target_port: None,
    }];
    entry.spec.endpoints = vec![istio::WorkloadEntrySpec {
        address: "192.0.2.1".into(),
        service_account: "vm".into(),
        ..Default::default()
    }];
    entry.spec.subject_alt_names = vec![format!("san-{n}")];
    if internal {
        entry.spec.location = istio::Location::MeshInternal;
    }
    entry
}

/// An entry that is known by its port, unless it is of HTTP or TLS.
fn entry_by_port(n: u8, host: &str, port: u8, protocol: u8, export: u8) -> istio::ServiceEntry {
    let mut entry = entry(n, host, 0, export, false);
    entry.spec.addresses.clear();
    for declared in &mut entry.spec.ports {
        declared.number = 80 + u32::from(port);
        declared.protocol = ["TCP", "", "TLS", "HTTP", "MYSQL"][usize::from(protocol)].into();
    }
    entry
}

fn selector(app: Option<u8>) -> Option<istio::WorkloadSelector> {
    app.map(|a| istio::WorkloadSelector { match_labels: [("app".to_owned(), format!("a{a}"))].into() })
}

fn authorization(n: u8, app: Option<u8>, action: istio::Action) -> istio::AuthorizationPolicy {
    let mut policy = istio::AuthorizationPolicy::default();
    policy.metadata.namespace = Some(name(n).namespace);
    policy.metadata.name = Some(name(n).name);
    policy.spec.action = action;
    policy.spec.selector = selector(app);
    policy
}

/// Where keys can be, and keys in the policy itself.
fn rule_of(keys: u8) -> istio::JwtRule {
    let mut rule = istio::JwtRule { issuer: "https://idp".into(), ..Default::default() };
    match keys {
        0 => rule.jwks = r#"{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB","d":"AQ"}]}"#.into(),
        1 => {}
        n => rule.jwks_uri = format!("https://idp/{n}"),
    }
    rule
}

fn request_authentication(n: u8, app: Option<u8>, keys: &[u8]) -> istio::RequestAuthentication {
    let mut policy = istio::RequestAuthentication::default();
    policy.metadata.namespace = Some(name(n).namespace);
    policy.metadata.name = Some(name(n).name);
    policy.spec.selector = selector(app);
    policy.spec.jwt_rules = keys.iter().map(|keys| rule_of(*keys)).collect();
    policy
}

fn mesh(root: u8, domain: u8, aliases: &[u8], registry_only: bool, providers: &[u8]) -> mesh::MeshConfig {
    let domain_of = |n: u8| TrustDomain::parse(&format!("td{n}")).expect("valid");
    mesh::MeshConfig {
        root_namespace: ["istio-system", "shop", "empty"][usize::from(root)].to_owned(),
        trust_domain: (domain > 0).then(|| domain_of(domain)),
        trust_domain_aliases: aliases.iter().map(|alias| domain_of(*alias)).collect(),
        registry_only,
        extension_providers: providers
            .iter()
            .map(|n| mesh::ExtensionProvider {
                name: format!("p{n}"),
                host: ["o0.shop.svc.cluster.local", "a.corp"][usize::from(*n)].to_owned(),
                port: 80,
                timeout: std::time::Duration::from_secs(1),
                fail_open: false,
                status_on_error: 403,
                body: None,
                kind: mesh::ProviderKind::Grpc,
            })
            .collect(),
        ..mesh::MeshConfig::default()
    }
}

/// What concerns policy.
fn policy_event() -> impl Strategy<Value = Event> {
    let n = 0..6u8;
    let action = prop::sample::select(vec![istio::Action::Allow, istio::Action::Deny]);
    let few = |max: u8| prop::collection::vec(0..max, 0..3);
    prop_oneof![
        (n.clone(), prop::option::of(0..3u8), action)
            .prop_map(|(n, app, a)| Event::Authorization(Change::Put(authorization(n, app, a)))),
        n.clone().prop_map(|n| Event::Authorization(Change::Delete(name(n)))),
        (n.clone(), prop::option::of(0..3u8), few(4)).prop_map(|(n, app, keys)| {
            Event::RequestAuthentication(Change::Put(request_authentication(n, app, &keys)))
        }),
        n.clone().prop_map(|n| Event::RequestAuthentication(Change::Delete(name(n)))),
        prop::collection::vec((n, few(4)), 0..3).prop_map(|all| {
            let all = all.into_iter().map(|(n, keys)| request_authentication(n, None, &keys));
            Event::RequestAuthentication(Change::Replace(all.collect()))
        }),
        (1..4u8, any::<bool>(), 0..2u8).prop_map(|(keys, good, v)| {
            let source = KeySource::of(&rule_of(keys)).expect("a source");
            Event::Keys(source, if good { Ok(format!("keys {v}")) } else { Err(format!("problem {v}")) })
        }),
        (0..3u8, 0..3u8, few(3), any::<bool>(), few(2)).prop_map(
            |(root, domain, aliases, only, mut providers)| {
                providers.dedup();
                Event::MeshConfig(mesh(root, domain, &aliases, only, &providers))
            }
        ),
        (0..2u8).prop_map(|v| Event::OwnRoots(vec![vec![v]])),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![event(), policy_event(), registry::event()]
}

/// Facts by name, and the key of a namespace by which a proxy hears of changes of them.
type Told = (Vec<(String, facts::Fact)>, fn(String) -> Key);

/// What a pod's proxy is told of policy.
fn told(world: &World, pod: &NamespacedName) -> [Told; 2] {
    let policies = world.policies_for(pod).map(|found| (found.resource_name(), found.fact().clone()));
    let tokens = world.authentications_for(pod).map(|found| (found.resource_name(), found.fact().clone()));
    [(policies.collect(), Key::Policies), (tokens.collect(), Key::Authentications)]
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
        n.clone().prop_map(|n| Event::PeerAuthentication(Change::Delete(name(n)))),
        (n.clone(), 0..HOSTS.len(), 0..4u8, prop::option::of(0..3u8), 0..3u8)
            .prop_map(|(n, h, m, app, e)| Event::DestinationRule(Change::Put(rule(n, HOSTS[h], m, app, e)))),
        n.clone().prop_map(|n| Event::DestinationRule(Change::Delete(name(n)))),
        (n.clone(), 0..HOSTS.len(), 0..5u8, 0..3u8, any::<bool>())
            .prop_map(|(n, h, a, e, i)| Event::ServiceEntry(Change::Put(entry(n, HOSTS[h], a, e, i)))),
        (n.clone(), 0..HOSTS.len(), 0..3u8, 0..5u8, 0..3u8).prop_map(|(n, h, p, c, e)| Event::ServiceEntry(
            Change::Put(entry_by_port(n, HOSTS[h], p, c, e))
        )),
        n.prop_map(|n| Event::ServiceEntry(Change::Delete(name(n)))),
    ]
}

/// The last of each object that is policy.
#[derive(Default)]
struct Last {
    policies: std::collections::BTreeMap<NamespacedName, istio::AuthorizationPolicy>,
    authentications: std::collections::BTreeMap<NamespacedName, istio::RequestAuthentication>,
    mesh: Option<mesh::MeshConfig>,
    roots: Vec<Vec<u8>>,
}

impl Last {
    fn note(&mut self, event: &Event) {
        let named = |m: &maille_config::k8s::meta::ObjectMeta| {
            NamespacedName::new(m.namespace.clone().expect("set"), m.name.clone().expect("set"))
        };
        match event {
            Event::Authorization(Change::Put(policy)) => {
                self.policies.insert(named(&policy.metadata), policy.clone());
            }
            Event::Authorization(Change::Delete(name)) => drop(self.policies.remove(name)),
            Event::RequestAuthentication(Change::Put(found)) => {
                self.authentications.insert(named(&found.metadata), found.clone());
            }
            Event::RequestAuthentication(Change::Delete(name)) => drop(self.authentications.remove(name)),
            Event::RequestAuthentication(Change::Replace(all)) => {
                self.authentications =
                    all.iter().map(|found| (named(&found.metadata), found.clone())).collect();
            }
            Event::MeshConfig(mesh) => self.mesh = Some(mesh.clone()),
            Event::OwnRoots(roots) => self.roots.clone_from(roots),
            _ => {}
        }
    }
}

fn cases() -> u32 {
    std::env::var("MAILLE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(128)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// What a fact says changes only together with a key it is subscribed by.
    #[test]
    fn no_change_of_a_fact_is_missed(events in prop::collection::vec(any_event(), 1..40)) {
        let mut world = world();
        let mut answers = std::collections::HashMap::new();
        for event in events {
            let before = world.clone();
            let mut changes = ChangeSet::default();
            world.apply(event.clone(), &mut changes);
            for n in 0..6 {
                let inbound = |w: &World| w.pod(&name(n)).map(|p| facts::inbound(w, p));
                if inbound(&before) != inbound(&world) {
                    prop_assert!(changes.contains(&Key::Workload(name(n))), "inbound {} by {:?}", name(n), event);
                }
            }
            for source in registry::sources() {
                for app in ["a0", "a1"] {
                    let labels = [("app".to_owned(), app.to_owned())].into();
                    let client = Client { namespace: &source.name().namespace, labels: &labels };
                    let of = |world: &World| facts::credential(world, &source, client);
                    let told = changes.contains(&Key::Credential(source.clone()));
                    prop_assert!(of(&before) == of(&world) || told, "{source} for {app} by {event:?}");
                }
            }
            prop_assert!(before.roots() == world.roots() || changes.contains(&Key::Trust), "roots by {event:?}");
            for n in 0..6 {
                let namespaces = [&name(n).namespace, &before.config().root_namespace, &world.config().root_namespace];
                for ((old, key), (new, _)) in told(&before, &name(n)).into_iter().zip(told(&world, &name(n))) {
                    let is_told = namespaces.iter().any(|namespace| changes.contains(&key((*namespace).clone())));
                    let is_told = is_told || changes.contains(&Key::Workload(name(n)));
                    prop_assert!(old == new || is_told, "policies of {} by {event:?}", name(n));
                }
            }
            let hosts = [
                "a.corp", "b.a.corp", "x.corp", "o0.shop", "o1.shop", "o0.bank", "o0.shop.svc.cluster.local",
                "p.o0.shop.svc.cluster.local", "p.o0.shop", "p.o0",
            ];
            let allocated = (1..4).map(|n| IpAddr::from([240, 240, 0, n]));
            let addresses = (0..4).map(ip).chain((100..103).map(ip)).chain(allocated);
            let addresses = addresses.map(|address| address.to_string());
            let ports = [80, 81, 82].into_iter().flat_map(|port| [format!("*:{port}"), format!("*:{port}/dns")]);
            let questions = hosts.iter().map(ToString::to_string).chain(addresses).chain(ports);
            let questions: Vec<String> = questions.collect();
            for namespace in ["shop", "bank", "istio-system"] {
                for app in ["a0", "a1"] {
                    let labels = [("app".to_owned(), app.to_owned())].into();
                    let client = Client { namespace, labels: &labels };
                    let roots = [&before, &world].map(|world| world.config().root_namespace.clone());
                    let namespaces = [namespace.to_owned()].into_iter().chain(roots);
                    let rescoped = namespaces.map(Key::Sidecars).any(|key| changes.contains(&key));
                    let settings = |world: &World| facts::mesh_settings(world, client);
                    prop_assert!(
                        settings(&before) == settings(&world) || rescoped || changes.contains(&Key::Settings),
                        "settings of {namespace}/{app} by {event:?}"
                    );
                    for question in &questions {
                        let asked = Asked::read(question, namespace, "cluster.local");
                        let new = facts::destination(&world, &asked, client);
                        let old = answers.insert((namespace, app, question.clone()), new.clone());
                        let told = rescoped || asked.keys().iter().any(|key| changes.contains(key));
                        prop_assert!(old.is_none_or(|old| old == new) || told, "{question} for {namespace}/{app} by {event:?}");
                    }
                }
            }
        }
    }

    /// Subscribers of one scope get one answer.
    #[test]
    fn answers_are_the_same_within_a_scope(
        events in prop::collection::vec(prop_oneof![event(), registry::event()], 1..30),
    ) {
        let mut world = world();
        for event in events {
            world.apply(event, &mut ChangeSet::default());
        }
        let mut answers = std::collections::HashMap::new();
        for namespace in ["shop", "bank", "istio-system"] {
            for labels in [&[("app", "a0")][..], &[("app", "a1")], &[("app", "a1"), ("x", "y")], &[]] {
                let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
                let client = Client { namespace, labels: &labels };
                for question in ["a.corp", "o0.shop", "10.0.0.1", "10.0.0.100", "*:80"] {
                    let answer = facts::destination(&world, &Asked::read(question, "shop", "cluster.local"), client);
                    let known = answers.entry((question, world.scope_of(client))).or_insert_with(|| answer.clone());
                    prop_assert_eq!(&*known, &answer);
                }
            }
        }
    }

    /// Which events led to a world does not matter, only what it holds.
    #[test]
    fn a_world_reached_in_steps_equals_one_built_at_once(events in prop::collection::vec(any_event(), 1..40)) {
        let mut world = world();
        let mut changes = ChangeSet::default();
        let mut last = Last::default();
        for event in events {
            last.note(&event);
            world.apply(event, &mut changes);
        }
        let mut fresh = self::world();
        // Policies before the configuration that says where they hold, keys last.
        fresh.apply(Event::Authorization(Change::Replace(last.policies.into_values().collect())), &mut changes);
        fresh.apply(
            Event::RequestAuthentication(Change::Replace(last.authentications.into_values().collect())),
            &mut changes,
        );
        fresh.apply(Event::OwnRoots(last.roots), &mut changes);
        if let Some(mesh) = last.mesh {
            fresh.apply(Event::MeshConfig(mesh), &mut changes);
        }
        for source in world.key_sources().into_keys() {
            match world.keys_of(&source) {
                Keys::Awaited => {}
                Keys::Known(keys) => fresh.apply(Event::Keys(source, Ok(keys.to_string())), &mut changes),
                Keys::Failed(problem) => fresh.apply(Event::Keys(source, Err(problem)), &mut changes),
            }
        }
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
        fresh.apply(
            Event::ServiceEntry(Change::Replace(world.entries().map(|e| (**e).clone()).collect())),
            &mut changes,
        );
        let entries = world.workload_entries.values().map(|entry| {
            let mut object = istio::WorkloadEntry { spec: entry.spec.clone(), ..Default::default() };
            object.metadata.namespace = Some(entry.name.namespace.clone());
            object.metadata.name = Some(entry.name.name.clone());
            object
        });
        fresh.apply(Event::WorkloadEntry(Change::Replace(entries.collect())), &mut changes);
        let rules = world.rules.values().flat_map(|all| all.values()).map(|rule| (**rule).clone());
        fresh.apply(Event::DestinationRule(Change::Replace(rules.collect())), &mut changes);
        prop_assert_eq!(fresh.key_sources(), world.key_sources());
        let named = |world: &World| world.credential_sources().into_keys().collect::<Vec<_>>();
        prop_assert_eq!(named(&fresh), named(&world));
        prop_assert_eq!(&fresh.workload_entries, &world.workload_entries);
        prop_assert_eq!(&fresh.aliases, &world.aliases);
        prop_assert_eq!(&fresh.exporting, &world.exporting);
        prop_assert_eq!(&fresh.policies, &world.policies);
        prop_assert_eq!(&fresh.authentications, &world.authentications);
        prop_assert_eq!(fresh.config(), world.config());
        prop_assert_eq!(fresh.roots(), world.roots());
        let labels = maille_core::Labels::new();
        let nobody = Client { namespace: "", labels: &labels };
        prop_assert_eq!(facts::mesh_settings(&fresh, nobody).extension_providers, facts::mesh_settings(&world, nobody).extension_providers);
        prop_assert_eq!(&fresh.claims, &world.claims);
        prop_assert_eq!(&fresh.ports, &world.ports);
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
    let shop = |n: &str| Some(NamespacedName::new("shop", n));
    let cases = [
        ("cart", shop("cart")),
        ("Cart", shop("cart")),
        ("cart.shop", shop("cart")),
        ("cart.shop.svc", shop("cart")),
        ("cart.shop.svc.cluster.local", shop("cart")),
        ("cart.shop.svc.cluster.local.", shop("cart")),
        ("pay.bank", Some(NamespacedName::new("bank", "pay"))),
        ("www.example.com", None),
        ("pod-0.cart.shop.svc.cluster.local", None),
        ("svc.cluster.local", None),
        ("cart.svc", None),
    ];
    for (text, expected) in cases {
        let Asked::Host(asked) = Asked::read(text, "shop", "cluster.local") else { panic!("{text}") };
        assert_eq!(asked.service, expected, "{text}");
        assert_eq!(asked.host, text.to_lowercase().trim_end_matches('.'));
    }
    let below = [
        ("db-0.db.bank.svc.cluster.local", "bank", "db-0", Claimants::Exact),
        ("_sql._tcp.db.bank.svc", "bank", "_sql._tcp", Claimants::Exact),
        ("db-0.db.bank", "bank", "db-0", Claimants::All),
        ("db-0.db", "shop", "db-0", Claimants::All),
    ];
    for (text, namespace, below, entries) in below {
        let Asked::Host(asked) = Asked::read(text, "shop", "cluster.local") else { panic!("{text}") };
        let service = NamespacedName::new(namespace, "db");
        assert_eq!(asked.above, [Above { service, below: below.to_owned() }], "{text}");
        assert_eq!(asked.entries, entries, "{text}");
    }
    for (text, expected) in [
        ("10.0.0.1", Asked::Address(ip(1))),
        ("::ffff:10.0.0.1", Asked::Address(ip(1))),
        ("", Asked::Nothing),
        ("*:5432", Asked::Port(AskedPort { number: 5432, is_given_addresses: false })),
        ("*:5432/dns", Asked::Port(AskedPort { number: 5432, is_given_addresses: true })),
        ("*:0", Asked::Nothing),
        ("*:+80", Asked::Nothing),
        ("*:080", Asked::Nothing),
        ("*:65536", Asked::Nothing),
        ("a b", Asked::Nothing),
    ] {
        assert_eq!(Asked::read(text, "shop", "cluster.local"), expected, "{text}");
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

#[test]
fn keys_outlive_the_replacement_of_their_policy_but_not_for_ever() {
    let mut world = world();
    let apply = |world: &mut World, event| world.apply(event, &mut ChangeSet::default());
    let named = |n: usize| {
        let mut policy = request_authentication(0, None, &[]);
        policy.spec.jwt_rules =
            vec![istio::JwtRule { jwks_uri: format!("https://idp/{n}"), ..Default::default() }];
        Event::RequestAuthentication(Change::Put(policy))
    };
    let source = |n: usize| KeySource::Url(format!("https://idp/{n}"));
    apply(&mut world, named(0));
    assert!(!world.has_asked_for_keys());
    apply(&mut world, Event::Keys(source(0), Ok("keys".into())));
    apply(&mut world, Event::RequestAuthentication(Change::Delete(name(0))));
    assert!(world.key_sources().is_empty() && world.has_asked_for_keys());
    apply(&mut world, named(0));
    assert_eq!(world.keys_of(&source(0)), Keys::Known("keys".into()), "who fetches saw no change");
    for n in 1..100 {
        apply(&mut world, named(n));
    }
    assert_eq!(world.keys_of(&source(0)), Keys::Awaited, "forgotten");
    assert_eq!(world.key_sources().into_keys().collect::<Vec<_>>(), [source(99)]);
    apply(&mut world, Event::Keys(KeySource::Url("https://nobody".into()), Ok("x".into())));
    assert_eq!(world.keys_of(&KeySource::Url("https://nobody".into())), Keys::Awaited);
}

#[test]
fn a_policy_that_concerns_nobody_yet_is_remembered() {
    let hub = crate::hub::Hub::new(world());
    hub.apply([Event::PeerAuthentication(Change::Put(peer_authentication(1, None, 2)))]);
    assert_eq!(hub.snapshot().world.peer_authentications.len(), 1);
}
