//! ServiceEntries and DestinationRules as facts (reference mtls 2.2, 3.1, 4).

use maille_config::destination_rule::Client;
use maille_config::istio::{DestinationRule, PeerAuthentication, ServiceEntry};
use maille_core::{Labels, NamespacedName, PortProtocol, Selector, TrustDomain};
use maille_proto::facts as wire;
use serde_json::{Value, json};
use wire::EndpointTls::{IstioMutual, Plaintext};
use wire::client_tls::Mode;
use wire::destination::Kind;

use super::destination;
use crate::world::{
    Asked, Change, ChangeSet, EndpointSlice, Event, MeshConfig, Pod, Service, ServicePort, SliceEndpoint,
    TLS_MODE_LABEL, TargetPort, World,
};

pub(super) struct Mesh(pub(super) World);

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn object(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

impl Mesh {
    pub(super) fn new() -> Self {
        Self(World::new(MeshConfig::new(TrustDomain::parse("cluster.local").expect("valid"))))
    }

    pub(super) fn with(mut self, event: Event) -> Self {
        self.0.apply(event, &mut ChangeSet::default());
        self
    }

    pub(super) fn entry(self, namespace: &str, name: &str, spec: Value) -> Self {
        let entry: ServiceEntry = serde_json::from_value(object(namespace, name, spec)).expect("an entry");
        self.with(Event::ServiceEntry(Change::Put(entry)))
    }

    pub(super) fn rule(self, namespace: &str, name: &str, spec: Value) -> Self {
        let rule: DestinationRule = serde_json::from_value(object(namespace, name, spec)).expect("a rule");
        self.with(Event::DestinationRule(Change::Put(rule)))
    }

    pub(super) fn mode(self, namespace: &str, mode: &str) -> Self {
        let spec = json!({"mtls": {"mode": mode}});
        let policy: PeerAuthentication =
            serde_json::from_value(object(namespace, "default", spec)).expect("a policy");
        self.with(Event::PeerAuthentication(Change::Put(policy)))
    }

    /// A pod of `shop/cart`; naked without a sidecar.
    pub(super) fn pod(self, name: &str, address: u8, meshed: bool) -> Self {
        let mut all = labels(&[("app", "cart")]);
        if meshed {
            all.insert(TLS_MODE_LABEL.into(), "istio".into());
        }
        self.with(Event::Pod(Change::Put(Pod {
            name: NamespacedName::new("shop", name),
            uid: name.into(),
            addresses: vec![[10, 0, 0, address].into()],
            labels: all,
            service_account: "cart".into(),
            workload_name: "cart".into(),
            meshed,
            terminating: false,
            named_ports: Vec::new(),
            scrape: None,
            multiplexes: false,
            node: "node-1".into(),
            ready: true,
        })))
    }

    /// `shop/cart`, port 80 to 8080 and 81 to 8081, before pods `a` (with a sidecar) and `b` (without).
    pub(super) fn cart(self, headless: bool) -> Self {
        let port = |number: u16, name: &str| ServicePort {
            number,
            name: name.into(),
            protocol: PortProtocol::Http,
            target: TargetPort::Number(8000 + number),
        };
        let endpoint = |name: &str, address: u8| SliceEndpoint {
            addresses: vec![[10, 0, 0, address].into()],
            ready: true,
            pod: Some(name.to_owned()),
            hostname: None,
        };
        self.pod("a", 1, true)
            .pod("b", 2, false)
            .with(Event::Service(Change::Put(Service {
                name: NamespacedName::new("shop", "cart"),
                addresses: if headless { vec![] } else { vec![[10, 96, 0, 1].into()] },
                headless,
                ports: vec![port(80, "http"), port(81, "http-more")],
                selector: Some(Selector::new(labels(&[("app", "cart")]))),
                created_s: 1,
                service_accounts: Vec::new(),
                canonical_accounts: Vec::new(),
                external_name: None,
                prefers_ipv6: false,
                export_to: Vec::new(),
            })))
            .with(Event::Slice(Change::Put(EndpointSlice {
                name: NamespacedName::new("shop", "cart-1"),
                service: "cart".into(),
                ports: vec![("http".into(), 8080), ("http-more".into(), 8081)],
                endpoints: vec![endpoint("a", 1), endpoint("b", 2)],
            })))
    }

    pub(super) fn ask_as(&self, namespace: &str, labels: &Labels, name: &str) -> Kind {
        let asked = Asked::read(name, namespace, "cluster.local");
        destination(&self.0, &asked, Client { namespace, labels }).kind.expect("an answer")
    }

    pub(super) fn ask(&self, namespace: &str, name: &str) -> Kind {
        self.ask_as(namespace, &Labels::new(), name)
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> wire::Service {
        match self.ask(namespace, name) {
            Kind::Service(service) => service,
            other => panic!("{name}: {other:?}"),
        }
    }

    pub(super) fn entry_of(&self, namespace: &str, name: &str) -> String {
        match self.ask(namespace, name) {
            Kind::Service(service) => service.service_entry,
            Kind::Workload(workload) => workload.workload.map(|w| w.uid).unwrap_or_default(),
            Kind::Unknown(_) => "unknown".into(),
            Kind::AnyAddress(any) => any.service.map(|s| s.service_entry).unwrap_or_default(),
        }
    }
}

/// (service port, target port, TLS) of every endpoint.
pub(super) fn reached(service: &wire::Service) -> Vec<(u32, u32, wire::EndpointTls)> {
    let ports = service.endpoints.iter().flat_map(|e| &e.ports);
    ports.map(|p| (p.service_port, p.target_port, p.tls())).collect()
}

fn modes(service: &wire::Service) -> Vec<Option<Mode>> {
    service.ports.iter().map(|p| p.tls.as_ref().map(wire::ClientTls::mode)).collect()
}

fn tls(host: &str, tls: Value) -> Value {
    json!({"host": host, "trafficPolicy": {"tls": tls}})
}

fn external_api() -> Mesh {
    let entry = json!({
        "hosts": ["api.external-service.com"],
        "ports": [{"number": 443, "name": "https", "protocol": "HTTPS"}],
        "resolution": "DNS",
        "location": "MESH_EXTERNAL",
    });
    let settings = json!({
        "mode": "MUTUAL",
        "clientCertificate": "/etc/certs/cert.pem",
        "privateKey": "/etc/certs/key.pem",
        "caCertificates": "/etc/certs/ca.pem",
    });
    Mesh::new().entry("production", "external-api", entry).rule(
        "production",
        "external-api-mtls",
        tls("api.external-service.com", settings),
    )
}

#[test]
fn the_guides_external_service_is_known_with_its_files() {
    let service = external_api().service("production", "API.external-service.com");
    let expected = wire::Service {
        namespace: "production".into(),
        name: "api.external-service.com".into(),
        hostname: "api.external-service.com".into(),
        ports: vec![wire::ServicePort {
            number: 443,
            name: "https".into(),
            protocol: wire::Protocol::Tls.into(),
            tls: Some(wire::ClientTls {
                mode: Mode::Mutual.into(),
                rule: "production/external-api-mtls".into(),
                client_certificate: "/etc/certs/cert.pem".into(),
                private_key: "/etc/certs/key.pem".into(),
                ca_certificates: "/etc/certs/ca.pem".into(),
                ..Default::default()
            }),
            target_port: 0,
            ..Default::default()
        }],
        endpoints: vec![wire::Endpoint {
            dns_name: "api.external-service.com".into(),
            ports: vec![wire::EndpointPort { service_port: 443, target_port: 443, tls: Plaintext.into() }],
            ..Default::default()
        }],
        external: true,
        resolution: wire::Resolution::Dns.into(),
        service_entry: "production/external-api".into(),
        ..Default::default()
    };
    assert_eq!(service, expected);
    assert!(matches!(external_api().ask("production", "www.external-service.com"), Kind::Unknown(_)));
}

#[test]
fn what_is_not_exported_to_a_namespace_is_not_shown_to_it() {
    let port = json!([{"number": 443, "name": "tls", "protocol": "TLS"}]);
    let entry = |export: Value| json!({"hosts": ["a.corp"], "addresses": ["192.0.2.9"], "ports": port, "resolution": "DNS", "exportTo": export});
    let mesh = Mesh::new().entry("shop", "own", entry(json!(["."])));
    let both =
        |mesh: &Mesh, namespace: &str| ["a.corp", "192.0.2.9"].map(|asked| mesh.entry_of(namespace, asked));
    assert_eq!(both(&mesh, "shop"), ["shop/own", "shop/own"]);
    assert_eq!(both(&mesh, "bank"), ["unknown", "unknown"]);
    let mesh = mesh.entry("bank", "named", entry(json!(["audit"])));
    assert_eq!(mesh.entry_of("bank", "a.corp"), "unknown", "not even the own one, unless it says '.'");
    assert_eq!(mesh.entry_of("audit", "a.corp"), "bank/named");
    // The rule of one namespace for a host that another sees too.
    let settings = json!({"host": "a.corp", "exportTo": ["."], "trafficPolicy": {"tls": {"mode": "SIMPLE"}}});
    let mesh = Mesh::new().entry("shop", "all", entry(json!([]))).rule("shop", "r", settings);
    assert_eq!(modes(&mesh.service("shop", "a.corp")), [Some(Mode::Simple)]);
    assert_eq!(modes(&mesh.service("bank", "a.corp")), [None], "DR-13");
}

#[test]
fn sn_1_a_kubernetes_service_goes_before_an_entry_of_its_name_and_takes_its_names() {
    let entry = json!({
        "hosts": ["cart.shop.svc.cluster.local"], "resolution": "STATIC", "subjectAltNames": ["spiffe://td/ns/x/sa/y"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "endpoints": [{"address": "192.0.2.1"}],
    });
    let before = Mesh::new().entry("shop", "cart", entry.clone()).entry("bank", "cart", entry.clone());
    for name in ["cart", "cart.shop", "cart.shop.svc.cluster.local"] {
        assert_eq!(before.entry_of("shop", name), "bank/cart", "{name}");
    }
    let service = before.cart(false).service("shop", "cart");
    assert_eq!(service.service_entry, "");
    // SN-1 b: of the same namespace only.
    assert_eq!(
        service.subject_alt_names,
        ["spiffe://cluster.local/ns/shop/sa/cart", "spiffe://td/ns/x/sa/y"]
    );
    let elsewhere = Mesh::new().entry("bank", "cart", entry).cart(false).service("shop", "cart");
    assert_eq!(elsewhere.subject_alt_names, ["spiffe://cluster.local/ns/shop/sa/cart"]);
}

#[test]
fn no_entry_takes_the_names_below_a_service() {
    let names = [
        "db-0.cart.shop.svc.cluster.local",
        "db-0.cart.shop.svc",
        "db-0.cart.shop",
        "_http._tcp.cart.shop.svc",
    ];
    let entry = |hosts: Value| {
        json!({
            "hosts": hosts, "resolution": "STATIC", "endpoints": [{"address": "192.0.2.66"}],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        })
    };
    let wide = json!(["*.svc.cluster.local", "*.cart.shop.svc", "*.svc", "*.cart.shop", "*.shop"]);
    let thief = Mesh::new().entry("thief", "exact", entry(json!(names))).entry("thief", "wide", entry(wide));
    for name in names {
        assert_eq!(thief.entry_of("bank", name), "thief/exact", "{name}: there is no such service");
    }
    let mesh = thief.entry("thief", "short", entry(json!(["db-0.cart"]))).cart(true);
    for (namespace, name) in names.iter().map(|name| ("bank", *name)).chain([("shop", "db-0.cart")]) {
        assert_eq!(mesh.entry_of(namespace, name), "unknown", "{name}");
    }
    assert_eq!(mesh.entry_of("bank", "db-0.cart"), "thief/short", "bank has no service of that name");
}

#[test]
fn no_wildcard_takes_the_clusters_own_names_and_no_entry_a_pods() {
    let entry = |hosts: Value| {
        json!({
            "hosts": hosts, "resolution": "STATIC", "endpoints": [{"address": "192.0.2.66"}],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        })
    };
    let wide = json!([
        "*.cluster.local",
        "*.svc.cluster.local",
        "*.shop.svc.cluster.local",
        "*.local",
        "*.shop.svc",
        "*.svc"
    ]);
    let pods =
        json!(["*.pod.cluster.local", "*.shop.pod", "10-0-0-1.shop.pod", "10-0-0-1.shop.pod.cluster.local"]);
    let mesh = Mesh::new().entry("thief", "wide", entry(wide)).entry("thief", "pods", entry(pods));
    for name in [
        "late.shop.svc.cluster.local",
        "late.shop.svc",
        "late.shop",
        "late",
        "db-0.late.shop.svc.cluster.local",
        "10-0-0-1.shop.pod.cluster.local",
        "10-0-0-1.shop.pod",
        "x.cluster.local",
    ] {
        assert_eq!(mesh.entry_of("shop", name), "unknown", "{name}");
    }
    assert_eq!(mesh.entry_of("shop", "printer.local"), "thief/wide");
    let mesh = mesh.entry("shop", "vm", entry(json!(["late.shop.svc.cluster.local"])));
    assert_eq!(mesh.entry_of("shop", "late"), "shop/vm", "said exactly");
}

#[test]
fn what_is_remembered_of_an_entry_ends_when_a_service_takes_the_name() {
    let host = "db-0.cart.shop.svc.cluster.local";
    let entry = json!({
        "hosts": [host], "resolution": "STATIC", "endpoints": [{"address": "192.0.2.66"}],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
    });
    let hub = crate::hub::Hub::new(Mesh::new().entry("thief", "exact", entry).0);
    let asked = Asked::read(host, "bank", "cluster.local");
    let labels = Labels::new();
    let version = || {
        let client = Client { namespace: "bank", labels: &labels };
        hub.snapshot().destination(&asked, client).resource("d").version.clone()
    };
    let stolen = version();
    let with_service = Mesh::new().cart(true).0;
    let services = with_service.services().map(|service| service.as_ref().clone());
    hub.apply([Event::Service(Change::Replace(services.collect()))]);
    let own = version();
    assert_ne!(own, stolen);
    hub.apply([Event::Service(Change::Replace(Vec::new()))]);
    assert_eq!(version(), stolen);
}

#[test]
fn hosts_are_found_exactly_then_by_the_longest_wildcard() {
    let entry =
        |host: &str| json!({"hosts": [host], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]});
    let mesh = Mesh::new()
        .entry("a", "wide", entry("*.corp"))
        .entry("a", "narrow", entry("*.db.corp"))
        .entry("a", "exact", entry("x.db.corp"))
        .entry("a", "two-labels", entry("plain.corp"));
    for (host, expected) in [
        ("x.db.corp", "a/exact"),
        ("y.db.corp", "a/narrow"),
        ("db.corp", "a/wide"),
        ("plain.corp", "a/two-labels"),
        ("corp", "unknown"),
        ("x.corpus", "unknown"),
    ] {
        assert_eq!(mesh.entry_of("a", host), expected, "{host}");
    }
    let service = mesh.service("a", "y.db.corp");
    assert_eq!(
        (service.hostname.as_str(), service.resolution()),
        ("*.db.corp", wire::Resolution::None),
        "SE-4"
    );
}

#[test]
fn addresses_are_found_by_the_longest_prefix_and_never_take_a_meshed_pods() {
    let entry = |addresses: Value| {
        json!({
            "hosts": ["db.corp"], "addresses": addresses, "ports": [{"number": 5432, "name": "db", "protocol": "TCP"}],
        })
    };
    let mesh = Mesh::new()
        .entry("a", "wide", entry(json!(["10.0.0.0/8", "2001:db8::/32"])))
        .entry("a", "narrow", entry(json!(["10.9.0.0/16"])))
        .entry("a", "exact", entry(json!(["10.9.1.2", "10.0.0.1", "10.0.0.2/32", "10.96.0.1"])))
        .cart(false)
        .pod("c", 3, false);
    for (address, expected) in [
        ("10.9.1.2", "a/exact"),
        ("10.9.1.3", "a/narrow"),
        ("10.8.0.1", "a/wide"),
        ("2001:db8::7", "a/wide"),
        ("11.0.0.1", "unknown"),
        ("10.96.0.1", ""),
        ("10.0.0.1", "shop/a"),
        ("10.0.0.2", "a/exact"),
        ("10.0.0.3", "shop/c"),
    ] {
        assert_eq!(mesh.entry_of("x", address), expected, "{address}");
    }
    assert_eq!(
        mesh.service("x", "db.corp").addresses,
        ["10.9.1.2", "10.0.0.1", "10.0.0.2", "10.96.0.1"],
        "no blocks"
    );
}

#[test]
fn endpoints_follow_the_resolution() {
    let ports = json!([{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}]);
    let entry = |resolution: &str, endpoints: Value| {
        let spec =
            json!({"hosts": ["a.corp"], "ports": ports, "resolution": resolution, "endpoints": endpoints});
        Mesh::new().entry("a", "e", spec).service("a", "a.corp")
    };
    let places = |service: &wire::Service| {
        service.endpoints.iter().map(|e| format!("{}{}", e.address, e.dns_name)).collect::<Vec<_>>()
    };
    let none = entry("NONE", json!([]));
    assert_eq!((none.resolution(), none.ports[0].target_port), (wire::Resolution::None, 8080));
    assert!(none.endpoints.is_empty());
    let listed = json!([{"address": "192.0.2.1", "ports": {"http": 9000}}, {"address": "192.0.2.2"}]);
    let fixed = entry("STATIC", listed);
    assert_eq!((fixed.resolution(), fixed.ports[0].target_port), (wire::Resolution::Endpoints, 0));
    assert_eq!(places(&fixed), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(reached(&fixed), [(80, 9000, Plaintext), (80, 8080, Plaintext)], "SE-5");
    let dns = entry("DNS", json!([{"address": "B.corp"}, {"address": "192.0.2.3"}]));
    assert_eq!(dns.resolution(), wire::Resolution::Dns);
    assert_eq!(places(&dns), ["192.0.2.3", "b.corp"]);
    let one = entry("DNS_ROUND_ROBIN", json!([]));
    assert_eq!(one.resolution(), wire::Resolution::DnsRoundRobin);
    assert_eq!(places(&one), ["a.corp"]);
    // SE-8: the proxy looks up what each request says.
    let dynamic = entry("DYNAMIC_DNS", json!([]));
    assert!(dynamic.endpoints.is_empty() && dynamic.resolution() == wire::Resolution::DynamicDns);
    assert_eq!(dynamic.ports[0].target_port, 8080);
    let socket =
        entry("STATIC", json!([{"address": "unix:///run/a.sock", "weight": 3}, {"address": "unix://b"}]));
    let [endpoint] = socket.endpoints.as_slice() else { panic!("{socket:?}") };
    assert_eq!(
        (endpoint.unix_path.as_str(), endpoint.weight, endpoint.address.as_str()),
        ("/run/a.sock", 3, "")
    );
}

#[test]
fn entries_of_one_namespace_add_ports_to_a_host() {
    let entry = |number: u32, name: &str, address: &str| {
        json!({
            "hosts": ["a.corp"], "resolution": "STATIC", "endpoints": [{"address": address}],
            "ports": [
                {"number": number, "name": name, "protocol": "HTTP"},
                {"number": 90, "name": "both", "protocol": "HTTP"},
            ],
        })
    };
    let service = Mesh::new()
        .entry("a", "first", entry(80, "http", "192.0.2.1"))
        .entry("a", "second", entry(81, "more", "192.0.2.2"))
        .entry("b", "third", entry(82, "never", "192.0.2.3"))
        .service("c", "a.corp");
    assert_eq!(service.service_entry, "a/first");
    assert_eq!(service.ports.iter().map(|p| p.number).collect::<Vec<_>>(), [80, 90, 81]);
    let of = |address: &str| {
        let endpoint = service.endpoints.iter().find(|e| e.address == address).expect("there");
        endpoint.ports.iter().map(|p| p.service_port).collect::<Vec<_>>()
    };
    assert_eq!((of("192.0.2.1"), of("192.0.2.2")), (vec![80, 90], vec![81]));
}

/// SE-14, with its endpoint written into the entry.
#[test]
fn endpoints_within_the_mesh_take_mutual_tls() {
    let entry = |location: &str, endpoint: Value| {
        let spec = json!({
            "hosts": ["vm.shop.internal"], "location": location, "resolution": "STATIC", "endpoints": [endpoint],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}],
            "subjectAltNames": ["spiffe://td/ns/x/sa/y"],
        });
        Mesh::new().entry("shop", "vm", spec)
    };
    let vm = || json!({"address": "192.0.2.7", "serviceAccount": "vm-sa"});
    let service = entry("MESH_INTERNAL", vm()).service("shop", "vm.shop.internal");
    assert_eq!(reached(&service), [(80, 8080, IstioMutual)]);
    assert_eq!(
        service.subject_alt_names,
        ["spiffe://cluster.local/ns/shop/sa/vm-sa", "spiffe://td/ns/x/sa/y"]
    );
    let workload = service.endpoints[0].workload.as_ref().expect("known");
    assert_eq!(workload.identity.as_ref().map(|i| i.service_account.as_str()), Some("vm-sa"));
    assert!(!service.external);
    let tls = |mesh: Mesh| reached(&mesh.service("shop", "vm.shop.internal")).remove(0).2;
    assert_eq!(tls(entry("MESH_INTERNAL", json!({"address": "192.0.2.7"}))), Plaintext, "no account");
    let mut labelled = vm();
    labelled["labels"] = json!({TLS_MODE_LABEL: "disabled"});
    assert_eq!(tls(entry("MESH_INTERNAL", labelled)), Plaintext);
    let labelled = json!({"address": "192.0.2.7", "labels": {TLS_MODE_LABEL: "istio"}});
    assert_eq!(tls(entry("MESH_INTERNAL", labelled)), IstioMutual);
    assert_eq!(tls(entry("MESH_EXTERNAL", vm())), Plaintext, "A1");
    assert_eq!(tls(entry("MESH_INTERNAL", vm()).mode("shop", "DISABLE")), Plaintext, "A4");
    assert_eq!(tls(entry("MESH_INTERNAL", vm()).mode("istio-system", "STRICT")), IstioMutual);
}

#[test]
fn rules_decide_how_services_are_reached() {
    let with = |spec: Value| Mesh::new().cart(false).rule("shop", "r", spec);
    let sent = |mesh: &Mesh| {
        let service = mesh.service("web", "cart.shop");
        let all = reached(&service);
        let of =
            |port: u32| all.iter().filter(|(p, ..)| *p == port).map(|(.., tls)| *tls).collect::<Vec<_>>();
        (modes(&service), of(80), of(81))
    };
    let auto = vec![IstioMutual, Plaintext];
    let (plain, mutual) = (vec![Plaintext; 2], vec![IstioMutual; 2]);
    let (disable, istio) = (Some(Mode::Disable), Some(Mode::IstioMutual));
    let neither = (vec![None, None], auto.clone(), auto);
    assert_eq!(sent(&Mesh::new().cart(false)), neither, "CL-2");
    let mode = |mode: &str| with(tls("cart", json!({"mode": mode})));
    assert_eq!(sent(&mode("DISABLE")), (vec![disable; 2], plain.clone(), plain.clone()), "DR-1");
    assert_eq!(sent(&mode("ISTIO_MUTUAL")), (vec![istio; 2], mutual.clone(), mutual.clone()), "DR-2");
    let balanced = with(json!({"host": "cart", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}}));
    assert_eq!(sent(&balanced), neither, "CL-10");
    let quirk = |mode: &str| {
        let own = json!({"port": {"number": 80}, "loadBalancer": {"simple": "RANDOM"}});
        let policy = json!({"tls": {"mode": mode}, "portLevelSettings": [own]});
        with(json!({"host": "cart", "trafficPolicy": policy}))
    };
    assert_eq!(sent(&quirk("DISABLE")), (vec![None, disable], plain.clone(), plain.clone()), "DR-8");
    assert_eq!(sent(&quirk("ISTIO_MUTUAL")), (vec![None, istio], mutual.clone(), mutual), "DR-8");
    assert_eq!(sent(&quirk("ISTIO_MUTUAL").mode("shop", "DISABLE")).1, plain, "A4 comes first");
    // Through the address as through the name.
    let by_address = mode("ISTIO_MUTUAL").service("web", "10.96.0.1");
    assert_eq!(modes(&by_address), [istio; 2]);
    assert_eq!(by_address.ports[0].tls.as_ref().map(|t| t.rule.as_str()), Some("shop/r"));
}

#[test]
fn rules_hold_for_pods_of_headless_services_called_directly() {
    let spec = tls("cart.shop.svc.cluster.local", json!({"mode": "ISTIO_MUTUAL"}));
    let mesh = Mesh::new().cart(true).rule("web", "r", spec);
    let ports = |namespace: &str| match mesh.ask(namespace, "10.0.0.1") {
        Kind::Workload(workload) => workload
            .headless_ports
            .iter()
            .map(|p| (p.port, p.tls(), p.client_tls.as_ref().map(wire::ClientTls::mode)))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let mutual = |port| (port, IstioMutual, Some(Mode::IstioMutual));
    assert_eq!(ports("web"), [mutual(80), mutual(81)]);
    // CL-8: one naked pod.
    assert_eq!(ports("bank"), [(80, Plaintext, None), (81, Plaintext, None)]);
}

#[test]
fn selectors_look_at_the_clients_labels() {
    let mut spec = tls("cart.shop.svc.cluster.local", json!({"mode": "DISABLE"}));
    spec["workloadSelector"] = json!({"matchLabels": {"app": "x"}});
    let mesh = Mesh::new().cart(false).rule("web", "a", spec);
    let mode = |app: &str| match mesh.ask_as("web", &labels(&[("app", app)]), "cart.shop") {
        Kind::Service(service) => modes(&service)[0],
        other => panic!("{other:?}"),
    };
    assert_eq!((mode("x"), mode("y")), (Some(Mode::Disable), None), "DR-16");
}

#[test]
fn sn_4_names_and_modes_are_filled_in_where_rules_leave_them_open() {
    let settings = |settings: Value| {
        let spec = json!({
            "hosts": ["a.corp"], "ports": [{"number": 443, "name": "https", "protocol": "HTTPS"}],
            "resolution": "STATIC", "location": "MESH_EXTERNAL", "endpoints": [{"address": "192.0.2.1"}],
            "subjectAltNames": ["b.corp", "a.corp"],
        });
        let mesh = Mesh::new().entry("a", "e", spec).rule("a", "r", tls("a.corp", settings));
        let service = mesh.service("a", "a.corp");
        service.ports[0].tls.clone().expect("an order")
    };
    assert_eq!(settings(json!({"mode": "SIMPLE"})).subject_alt_names, ["a.corp", "b.corp"], "DR-3");
    let own = settings(json!({"mode": "SIMPLE", "subjectAltNames": ["c.corp"], "sni": "d.corp"}));
    assert_eq!((own.subject_alt_names, own.sni.as_str()), (vec!["c.corp".to_owned()], "d.corp"), "SN-4");
    assert!(settings(json!({"mode": "SIMPLE", "insecureSkipVerify": true})).insecure_skip_verify);
    let mutual = settings(json!({"mode": "ISTIO_MUTUAL"}));
    assert_eq!((mutual.mode(), mutual.subject_alt_names.len()), (Mode::IstioMutual, 0), "DR-4");
    let revoking = settings(json!({"mode": "SIMPLE", "caCertificates": "/a", "caCrl": "/c"}));
    assert_eq!((revoking.mode(), revoking.ca_crl.as_str()), (Mode::Simple, "/c"));
    let without_selector = settings(json!({"mode": "SIMPLE", "credentialName": "x"}));
    assert_eq!(
        (without_selector.mode(), without_selector.credential.as_str()),
        (Mode::Unspecified, ""),
        "G-16"
    );
    let map = settings(json!({"mode": "SIMPLE", "credentialName": "configmap://x"}));
    assert_eq!((map.mode(), map.credential.as_str()), (Mode::Simple, "configmap://a/x"));
}
