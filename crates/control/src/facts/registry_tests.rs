//! What the registry is made of beside Services, ServiceEntries and TLS: selected workloads, other names, names of Pods,
//! traffic policies and subsets, and what is hidden from whom (reference mtls 2.3, 4).

use std::net::IpAddr;

use maille_config::destination_rule::Client;
use maille_config::istio::{Sidecar, WorkloadEntry};
use maille_core::{Labels, NamespacedName};
use maille_proto::facts as wire;
use serde_json::{Value, json};
use wire::EndpointTls::{IstioMutual, Plaintext};
use wire::destination::Kind;

use super::external_tests::{Mesh, labels, reached};
use super::inbound;
use crate::world::{Change, Event, Pod, Service};

impl Mesh {
    fn workload_entry(self, name: &str, spec: Value) -> Self {
        let object = json!({"metadata": {"namespace": "shop", "name": name, "labels": {"of": "metadata"}}, "spec": spec});
        let entry: WorkloadEntry = serde_json::from_value(object).expect("a WorkloadEntry");
        self.with(Event::WorkloadEntry(Change::Put(entry)))
    }

    fn sidecar(self, namespace: &str, spec: Value) -> Self {
        let object = json!({"metadata": {"namespace": namespace, "name": "default"}, "spec": spec});
        let sidecar: Sidecar = serde_json::from_value(object).expect("a Sidecar");
        self.with(Event::Sidecar(Change::Put(sidecar)))
    }

    fn change_pod(self, name: &str, change: impl FnOnce(&mut Pod)) -> Self {
        let mut pod = (**self.0.pod(&NamespacedName::new("shop", name)).expect("there")).clone();
        change(&mut pod);
        self.with(Event::Pod(Change::Put(pod)))
    }

    fn change_cart(self, change: impl FnOnce(&mut Service)) -> Self {
        let cart = NamespacedName::new("shop", "cart");
        let mut service = (**self.0.service(&cart).expect("there")).clone();
        change(&mut service);
        self.with(Event::Service(Change::Put(service)))
    }

    /// Another name of `target`, with the port of `shop/cart`.
    fn alias(self, name: &str, target: &str) -> Self {
        let cart = NamespacedName::new("shop", "cart");
        let mut service = (**self.0.service(&cart).expect("there")).clone();
        service.name = NamespacedName::new("shop", name);
        (service.addresses, service.selector, service.headless) = (Vec::new(), None, false);
        service.external_name = Some(target.to_owned());
        self.with(Event::Service(Change::Put(service)))
    }

    fn inbound(&self, pod: &str) -> wire::Inbound {
        inbound(&self.0, self.0.pod(&NamespacedName::new("shop", pod)).expect("there"))
    }

    fn is_unknown(&self, namespace: &str, name: &str) -> bool {
        matches!(self.ask(namespace, name), Kind::Unknown(_))
    }
}

fn selecting(resolution: &str) -> Value {
    json!({
        "hosts": ["vm.shop.internal"], "location": "MESH_INTERNAL", "resolution": resolution,
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}],
        "workloadSelector": {"labels": {"app": "vm"}},
    })
}

fn vm(account: &str) -> Value {
    json!({"address": "192.0.2.7", "labels": {"app": "vm", "version": "v1"}, "serviceAccount": account, "weight": 3})
}

fn addresses(service: &wire::Service) -> Vec<&str> {
    service.endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect()
}

/// SE-14.
#[test]
fn an_entry_reaches_the_workload_entries_it_selects() {
    let mesh = Mesh::new().entry("shop", "vm", selecting("STATIC")).workload_entry("vm1", vm("vm-sa"));
    let service = mesh.service("shop", "vm.shop.internal");
    assert_eq!(reached(&service), [(80, 8080, IstioMutual)]);
    assert_eq!(service.subject_alt_names, ["spiffe://cluster.local/ns/shop/sa/vm-sa"]);
    let endpoint = &service.endpoints[0];
    assert_eq!((endpoint.address.as_str(), endpoint.weight), ("192.0.2.7", 3));
    let workload = endpoint.workload.as_ref().expect("an identity");
    assert_eq!((workload.uid.as_str(), workload.canonical_revision.as_str()), ("shop/vm1", "v1"));
    let mesh = mesh.workload_entry("vm1", vm(""));
    assert_eq!(reached(&mesh.service("shop", "vm.shop.internal")), [(80, 8080, Plaintext)]);
    let mut named = vm("vm-sa");
    (named["ports"], named["labels"]["app"]) = (json!({"http": 9000}), json!("other"));
    let mesh = mesh.workload_entry("vm1", named.clone());
    assert!(mesh.service("shop", "vm.shop.internal").endpoints.is_empty(), "selected no more");
    named["labels"]["app"] = json!("vm");
    let mesh = mesh.workload_entry("vm1", named);
    assert_eq!(reached(&mesh.service("shop", "vm.shop.internal")), [(80, 9000, IstioMutual)]);
    // The labels of the object count, too.
    let mut by_metadata = selecting("STATIC");
    by_metadata["workloadSelector"]["labels"] = json!({"of": "metadata"});
    let mesh = mesh.entry("shop", "vm", by_metadata);
    assert_eq!(addresses(&mesh.service("shop", "vm.shop.internal")), ["192.0.2.7"]);
    let mut nothing = selecting("STATIC");
    nothing["workloadSelector"]["labels"] = json!({});
    assert!(mesh.entry("shop", "vm", nothing).service("shop", "vm.shop.internal").endpoints.is_empty());
}

#[test]
fn an_entry_reaches_the_ready_pods_it_selects_and_they_serve_its_ports() {
    let mut entry = selecting("STATIC");
    entry["workloadSelector"]["labels"] = json!({"app": "cart"});
    let mesh = Mesh::new().pod("a", 1, true).pod("b", 2, false).entry("shop", "vm", entry);
    let service = mesh.service("shop", "vm.shop.internal");
    assert_eq!(reached(&service), [(80, 8080, IstioMutual), (80, 8080, Plaintext)], "by the label of each");
    assert_eq!(service.endpoints[0].workload.as_ref().map(|w| w.uid.as_str()), Some("shop/a"));
    let ports = |mesh: &Mesh| {
        let all = mesh.inbound("a").ports.into_iter().map(|p| (p.port, p.protocol(), p.service_hostname));
        all.collect::<Vec<_>>()
    };
    assert_eq!(ports(&mesh), [(8080, wire::Protocol::Http, "vm.shop.internal".to_owned())]);
    let mesh = mesh.change_pod("b", |pod| pod.ready = false);
    let mesh = mesh.change_pod("a", |pod| pod.named_ports = vec![("http".into(), 9000)]);
    let service = mesh.service("shop", "vm.shop.internal");
    assert_eq!((addresses(&service), reached(&service)), (vec!["10.0.0.1"], vec![(80, 9000, IstioMutual)]));
    assert_eq!(ports(&mesh)[0].0, 9000);
    assert_eq!(
        mesh.change_pod("a", |pod| pod.terminating = true).service("shop", "vm.shop.internal").endpoints,
        []
    );
}

#[test]
fn a_service_reaches_the_workload_entries_it_selects() {
    let mut entry = vm("vm-sa");
    (entry["labels"]["app"], entry["ports"]) = (json!("cart"), json!({"http": 9000}));
    let mesh = Mesh::new().cart(false).workload_entry("vm1", entry);
    let service = mesh.service("shop", "cart");
    let outside = service.endpoints.iter().find(|e| e.address == "192.0.2.7").expect("an endpoint");
    let ports: Vec<_> = outside.ports.iter().map(|p| (p.service_port, p.target_port, p.tls())).collect();
    assert_eq!(ports, [(80, 9000, IstioMutual), (81, 8081, IstioMutual)]);
    assert!(service.subject_alt_names.contains(&"spiffe://cluster.local/ns/shop/sa/vm-sa".to_owned()));
    let naked = Mesh::new().cart(true).change_pod("b", |pod| {
        pod.labels = labels(&[("app", "cart"), ("security.istio.io/tlsMode", "istio")])
    });
    let direct = |mesh: &Mesh| match mesh.ask("shop", "10.0.0.1") {
        Kind::Workload(direct) => direct.headless_ports[0].tls(),
        other => panic!("{other:?}"),
    };
    assert_eq!(direct(&naked), IstioMutual);
    let naked = naked.workload_entry("vm1", json!({"address": "192.0.2.7", "labels": {"app": "cart"}}));
    assert_eq!(direct(&naked), Plaintext, "A3: one of them is naked");
}

#[test]
fn rules_tell_of_traffic_and_subsets_and_endpoints_of_the_labels_that_subsets_look_at() {
    let spec = json!({
        "host": "cart",
        "trafficPolicy": {
            "loadBalancer": {"simple": "ROUND_ROBIN"}, "outlierDetection": {},
            "portLevelSettings": [{"port": {"number": 81}, "connectionPool": {"tcp": {"maxConnections": 2}}}],
        },
        "subsets": [
            {"name": "v1", "labels": {"version": "v1"}},
            {"name": "v2", "labels": {"version": "v2"}, "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}},
        ],
    });
    let plain = Mesh::new().cart(false).change_pod("a", |pod| {
        pod.labels.insert("version".into(), "v1".into());
    });
    assert!(plain.service("shop", "cart").endpoints.iter().all(|e| e.labels.is_empty()));
    let mesh = plain.rule("shop", "r", spec);
    let service = mesh.service("shop", "cart");
    let traffic = |port: usize| service.ports[port].traffic.clone().expect("a policy");
    let simple = |policy: &wire::TrafficPolicy| policy.load_balancer.as_ref().map(|lb| lb.simple());
    use wire::load_balancer::Simple;
    assert_eq!((simple(&traffic(0)), traffic(0).rule.as_str()), (Some(Simple::RoundRobin), "shop/r"));
    assert!(traffic(0).outlier_detection.is_some() && traffic(0).connection_pool.is_none());
    assert_eq!(simple(&traffic(1)), None, "DR-8: the entry for the port replaces all");
    assert_eq!(traffic(1).connection_pool.map(|pool| pool.max_connections), Some(2));
    let subsets: Vec<_> = service.ports[0]
        .subsets
        .iter()
        .map(|s| {
            (
                s.name.as_str(),
                s.traffic.as_ref().and_then(simple),
                s.traffic.as_ref().is_some_and(|t| t.outlier_detection.is_some()),
            )
        })
        .collect();
    assert_eq!(subsets, [("v1", Some(Simple::RoundRobin), true), ("v2", Some(Simple::Random), true)], "DR-9");
    assert_eq!(service.endpoints[0].labels, labels(&[("version", "v1")]));
    assert!(service.endpoints[1].labels.is_empty());
    assert!(
        mesh.rule("shop", "r", json!({"host": "cart"})).service("shop", "cart").ports[0].traffic.is_none()
    );
}

/// Subsets have no names of their own: whoever may serve the service may serve each of them.
#[test]
fn sn_6_a_subset_is_proved_by_any_name_of_the_whole_service() {
    let spec = json!({"host": "cart", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]});
    let plain = Mesh::new().cart(false).change_pod("a", |pod| {
        pod.labels.insert("version".into(), "v1".into());
        pod.service_account = "first".into();
    });
    let mesh = plain.rule("shop", "r", spec);
    let service = mesh.service("shop", "cart");
    assert_eq!(service.ports[0].subsets.len(), 1);
    let names = &service.subject_alt_names;
    assert!(
        names.len() > 1 && names.contains(&"spiffe://cluster.local/ns/shop/sa/first".to_owned()),
        "{names:?}"
    );
}

/// Reference mtls 2.1, A3.
#[test]
fn with_passthrough_all_endpoints_are_reached_alike() {
    let spec = json!({"host": "cart", "trafficPolicy": {"loadBalancer": {"simple": "PASSTHROUGH"}}});
    let mesh = Mesh::new().cart(false).rule("shop", "r", spec);
    let tls = |mesh: &Mesh| {
        reached(&mesh.service("shop", "cart")).into_iter().map(|(.., tls)| tls).collect::<Vec<_>>()
    };
    assert_eq!(tls(&mesh), [Plaintext; 4], "one is naked");
    let mesh = mesh.change_pod("b", |pod| {
        pod.labels.insert("security.istio.io/tlsMode".into(), "istio".into());
    });
    assert_eq!(tls(&mesh), [IstioMutual; 4]);
    assert_eq!(tls(&mesh.mode("shop", "DISABLE")), [Plaintext; 4], "A4");
}

#[test]
fn another_name_is_what_it_names() {
    let entry = json!({
        "hosts": ["api.corp"], "resolution": "DNS", "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
    });
    let mesh = Mesh::new().cart(false).entry("shop", "api", entry);
    let mesh = mesh
        .alias("basket", "cart.shop.svc.cluster.local")
        .alias("twice", "basket.shop.svc.cluster.local")
        .alias("api", "api.corp")
        .alias("www", "www.example.com")
        .alias("round", "about.shop.svc.cluster.local")
        .alias("about", "round.shop.svc.cluster.local");
    assert_eq!(mesh.service("web", "twice.shop"), mesh.service("web", "cart.shop"));
    assert_eq!(mesh.entry_of("web", "api.shop"), "shop/api");
    let outside = mesh.service("web", "www.shop");
    assert!(outside.external && outside.resolution() == wire::Resolution::Dns);
    assert_eq!(outside.endpoints[0].dns_name, "www.example.com");
    assert_eq!(reached(&outside), [(80, 80, Plaintext), (81, 81, Plaintext)], "A1, and no target ports");
    assert!(mesh.is_unknown("web", "round.shop"));
    let hidden = mesh.sidecar(
        "web",
        json!({"egress": [{"hosts": ["*/twice.shop.svc.cluster.local", "*/www.shop.svc.cluster.local"]}]}),
    );
    assert!(hidden.is_unknown("web", "twice.shop"), "what is behind it is hidden");
    assert!(hidden.service("web", "www.shop").external);
    let rule = json!({"host": "www", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}});
    let tls = hidden.rule("shop", "r", rule).service("web", "www.shop").ports[0].tls.clone();
    assert_eq!(tls.map(|tls| tls.mode()), Some(wire::client_tls::Mode::Simple), "DR-4");
}

#[test]
fn pods_of_headless_services_have_names() {
    let name = "db-0.cart.shop.svc.cluster.local";
    let mesh = |headless: bool, ready: bool| {
        let mesh = Mesh::new().cart(headless);
        let slices: Vec<_> = mesh.0.slices_of(&NamespacedName::new("shop", "cart")).cloned().collect();
        let mut slice = (*slices[0]).clone();
        slice.endpoints[0].hostname = Some("db-0".into());
        slice.endpoints[0].ready = ready;
        mesh.with(Event::Slice(Change::Put(slice)))
    };
    let pod = |mesh: &Mesh, namespace: &str, name: &str| mesh.entry_of(namespace, name);
    let named = mesh(true, true);
    for (namespace, name) in
        [("web", name), ("web", "db-0.cart.shop"), ("shop", "db-0.cart"), ("web", "db-0.cart.shop.svc")]
    {
        assert_eq!(pod(&named, namespace, name), "shop/a", "{name}");
    }
    let Kind::Workload(direct) = named.ask("web", name) else { panic!("a workload") };
    assert_eq!(direct.headless_ports.len(), 2);
    assert_eq!(pod(&named, "web", "db-1.cart.shop"), "unknown");
    assert_eq!(pod(&named, "web", "db-0"), "unknown");
    assert_eq!(pod(&mesh(true, false), "web", name), "unknown", "as in DNS");
    assert_eq!(pod(&mesh(false, true), "web", name), "unknown", "of a service with an address");
    let hidden = named.change_cart(|service| service.export_to = vec![".".into()]);
    assert_eq!((pod(&hidden, "web", name), pod(&hidden, "shop", name)), ("unknown".into(), "shop/a".into()));
}

#[test]
fn a_pod_of_two_families_is_one_endpoint() {
    let v6 = |n: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]);
    let mesh = |headless: bool, ipv6: bool| {
        let mesh = Mesh::new().cart(headless).change_pod("a", |pod| pod.addresses.push(v6(1)));
        let slices: Vec<_> = mesh.0.slices_of(&NamespacedName::new("shop", "cart")).cloned().collect();
        let mut slice = (*slices[0]).clone();
        slice.name = NamespacedName::new("shop", "cart-6");
        slice.endpoints.truncate(1);
        slice.endpoints[0].addresses = vec![v6(1)];
        mesh.with(Event::Slice(Change::Put(slice))).change_cart(|service| service.prefers_ipv6 = ipv6)
    };
    assert_eq!(addresses(&mesh(false, false).service("shop", "cart")), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(
        addresses(&mesh(false, true).service("shop", "cart")),
        ["10.0.0.2", "fd00::1"],
        "b has no other"
    );
    let others = |service: wire::Service| {
        service.endpoints.into_iter().map(|endpoint| endpoint.other_address).collect::<Vec<_>>()
    };
    assert_eq!(
        others(mesh(false, false).service("shop", "cart")),
        ["fd00::1", ""],
        "tried if the first fails"
    );
    assert_eq!(others(mesh(false, true).service("shop", "cart")), ["", "10.0.0.1"]);
    assert_eq!(others(mesh(true, false).service("shop", "cart")), ["", "", ""], "dialled as they are");
    let selecting = json!({"hosts": ["vm.corp"], "resolution": "STATIC", "workloadSelector": {"labels": {"app": "cart"}},
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]});
    let selected = mesh(false, false).entry("shop", "vm", selecting).service("shop", "vm.corp");
    assert_eq!(addresses(&selected), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(others(selected), ["fd00::1", ""]);
    assert_eq!(addresses(&mesh(true, false).service("shop", "cart")), ["10.0.0.1", "10.0.0.2", "fd00::1"]);
    let Kind::Workload(direct) = mesh(true, false).ask("shop", "fd00::1") else { panic!("a workload") };
    assert_eq!(direct.headless_ports.len(), 2, "by either address");
}

/// Reference mtls 4.3, last paragraph.
#[test]
fn what_is_hidden_is_unknown() {
    let asked = ["cart.shop", "cart.shop.svc.cluster.local", "10.96.0.1"];
    let seen = |mesh: &Mesh, namespace: &str| asked.map(|name| !mesh.is_unknown(namespace, name));
    let private = Mesh::new().cart(false).change_cart(|service| service.export_to = vec![".".into()]);
    assert_eq!((seen(&private, "shop"), seen(&private, "web")), ([true; 3], [false; 3]), "exportTo");
    let own = || json!({"egress": [{"hosts": ["./*"]}]});
    let scoped = Mesh::new().cart(false).sidecar("web", own());
    assert_eq!((seen(&scoped, "shop"), seen(&scoped, "web")), ([true; 3], [false; 3]), "a Sidecar");
    let everywhere = Mesh::new().cart(false).sidecar("istio-system", own());
    assert_eq!((seen(&everywhere, "shop"), seen(&everywhere, "web")), ([true; 3], [false; 3]));
    // The name may be an entry's then, if that is seen.
    let entry = json!({
        "hosts": ["cart.shop.svc.cluster.local"], "resolution": "STATIC", "endpoints": [{"address": "192.0.2.1"}],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "addresses": ["192.0.2.9"],
    });
    let own_entry = scoped.entry("web", "cart", entry);
    assert_eq!(own_entry.entry_of("web", "cart.shop.svc.cluster.local"), "web/cart");
    assert_eq!(own_entry.entry_of("web", "192.0.2.9"), "web/cart");
    let narrow = own_entry.sidecar("bank", json!({"egress": [{"hosts": ["bank/*"]}]}));
    assert!(narrow.is_unknown("bank", "192.0.2.9") && narrow.is_unknown("bank", "cart.shop"));
    // Pods keep their names and addresses, and lose the ports of what is hidden.
    let direct = |mesh: &Mesh| match mesh.ask("web", "10.0.0.1") {
        Kind::Workload(direct) => direct.headless_ports.len(),
        other => panic!("{other:?}"),
    };
    let headless = Mesh::new().cart(true);
    assert_eq!((direct(&headless), direct(&headless.sidecar("web", own()))), (2, 0));
}

#[test]
fn what_a_client_is_told_of_a_hidden_service_is_not_remembered_for_others() {
    let own = json!({"workloadSelector": {"labels": {"app": "picky"}}, "egress": [{"hosts": ["./*"]}]});
    let hub = crate::hub::Hub::new(Mesh::new().cart(false).sidecar("web", own).0);
    let asked = crate::world::Asked::read("cart.shop", "web", "cluster.local");
    let version = |labels: &Labels| {
        let client = Client { namespace: "web", labels };
        hub.snapshot().destination(&asked, client).resource("d").version.clone()
    };
    let (picky, other) = (labels(&[("app", "picky")]), labels(&[("app", "other")]));
    let (a, b, c) = (version(&picky), version(&other), version(&picky));
    assert!(a != b && a == c);
}

#[test]
fn servers_keep_to_the_limits_of_their_own_namespaces_rules() {
    let limit = |n: u32| json!({"connectionPool": {"tcp": {"maxConnections": n}}});
    let limits = |mesh: &Mesh| {
        let ports = mesh.inbound("a").ports;
        ports.iter().map(|p| p.connection_pool.as_ref().map(|pool| pool.max_connections)).collect::<Vec<_>>()
    };
    let mesh = Mesh::new().cart(false);
    assert_eq!(limits(&mesh), [None, None]);
    let mesh = mesh.rule(
        "web",
        "clients",
        json!({"host": "cart.shop.svc.cluster.local", "trafficPolicy": limit(9)}),
    );
    assert_eq!(limits(&mesh), [None, None], "a rule of clients elsewhere");
    let selecting = json!({"host": "cart", "trafficPolicy": limit(8), "workloadSelector": {"matchLabels": {"app": "cart"}}});
    assert_eq!(
        limits(&Mesh::new().cart(false).rule("shop", "r", selecting)),
        [None, None],
        "selectors are for clients"
    );
    let mut policy = limit(5);
    policy["portLevelSettings"] =
        json!([{"port": {"number": 81}, "connectionPool": {"tcp": {"maxConnections": 6}}}]);
    let mesh = mesh.rule("shop", "own", json!({"host": "cart", "trafficPolicy": policy}));
    assert_eq!(limits(&mesh), [Some(5), Some(6)]);
    let mesh = mesh.sidecar("shop", json!({"inboundConnectionPool": {"tcp": {"maxConnections": 7}}}));
    assert_eq!(limits(&mesh), [Some(7), Some(7)]);
}

#[test]
fn settings_are_those_of_the_client() {
    let mesh = Mesh::new().sidecar("shop", json!({"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}));
    let none = Labels::new();
    let settings =
        |mesh: &Mesh, namespace| super::mesh_settings(&mesh.0, Client { namespace, labels: &none });
    use wire::mesh_settings::OutboundPolicy;
    assert_eq!(settings(&mesh, "shop").outbound_policy(), OutboundPolicy::RegistryOnly);
    assert_eq!(settings(&mesh, "web").outbound_policy(), OutboundPolicy::AllowAny);
    assert!(!settings(&mesh, "shop").deliver_to_localhost);
    let config = maille_config::mesh::MeshConfig {
        registry_only: true,
        deliver_to_localhost: true,
        ..Default::default()
    };
    let mesh = mesh
        .with(Event::MeshConfig(config))
        .sidecar("web", json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}));
    assert_eq!(settings(&mesh, "web").outbound_policy(), OutboundPolicy::AllowAny);
    assert_eq!(settings(&mesh, "bank").outbound_policy(), OutboundPolicy::RegistryOnly);
    assert!(settings(&mesh, "web").deliver_to_localhost);
}

/// SE-15, SE-17.
#[test]
fn an_allocated_address_means_its_host() {
    let port = json!([{"number": 5432, "name": "tcp", "protocol": "TCP"}]);
    let status = json!({"addresses": [
        {"host": "db1.corp", "value": "240.240.0.1"}, {"host": "db1.corp", "value": "2001:2::1"},
        {"host": "db2.corp", "value": "240.240.0.2"}, {"host": "db2.corp", "value": "192.0.2.5"},
    ]});
    let object = json!({
        "metadata": {"namespace": "shop", "name": "db"}, "status": status,
        "spec": {"hosts": ["db1.corp", "db2.corp"], "resolution": "DNS", "ports": port},
    });
    let entry = serde_json::from_value(object).expect("an entry");
    let mesh = Mesh::new().with(Event::ServiceEntry(Change::Put(entry)));
    let host = |asked: &str| mesh.service("shop", asked).hostname;
    assert_eq!(
        (host("240.240.0.1"), host("2001:2::1"), host("240.240.0.2")),
        ("db1.corp".into(), "db1.corp".into(), "db2.corp".into())
    );
    assert_eq!(mesh.service("shop", "db1.corp").addresses, ["240.240.0.1", "2001:2::1"]);
    assert_eq!(mesh.service("shop", "db2.corp").addresses, ["240.240.0.2"]);
    assert!(mesh.is_unknown("shop", "192.0.2.5"), "no address of ours");
}

#[test]
fn sidecars_of_ours_are_known_as_such() {
    let multiplexes = |meshed: bool| {
        let mesh = Mesh::new().pod("a", 1, meshed).change_pod("a", |pod| pod.multiplexes = true);
        mesh.inbound("a").workload.is_some_and(|workload| workload.multiplexes)
    };
    assert!(multiplexes(true) && !multiplexes(false));
}
