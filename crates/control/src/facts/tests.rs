use maille_config::destination_rule::Client;
use maille_config::istio::{self, MutualTls, MutualTlsMode, PeerAuthentication};
use maille_core::{Labels, NamespacedName, Selector, TrustDomain};
use maille_proto::facts as wire;
use wire::EndpointTls::{IstioMutual, Plaintext};

use super::*;
use crate::world::{
    Change, ChangeSet, EndpointSlice, Event, MeshConfig, Service, ServicePort, SliceEndpoint, TLS_MODE_LABEL,
    TargetPort, World,
};

/// A mesh of one service `shop/cart` (port 80 to 8080, 9090 to 9090) with some pods.
struct Mesh(World);

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn pod(name: &str, address: u8, account: &str, tls_mode: Option<&str>) -> Pod {
    let mut all = labels(&[("app", "cart"), ("pod", name)]);
    all.extend(tls_mode.map(|mode| (TLS_MODE_LABEL.to_owned(), mode.to_owned())));
    Pod {
        name: NamespacedName::new("shop", name),
        uid: name.into(),
        addresses: vec![[10, 0, 0, address].into()],
        labels: all,
        service_account: account.into(),
        workload_name: "cart".into(),
        meshed: tls_mode == Some("istio"),
        terminating: false,
        named_ports: vec![("web".into(), 8080)],
        scrape: None,
        multiplexes: false,
        node: "node-1".into(),
        ready: true,
    }
}

fn policy(namespace: &str, name: &str, selector: &[(&str, &str)], mode: MutualTlsMode) -> PeerAuthentication {
    let mut policy = PeerAuthentication::default();
    policy.metadata.namespace = Some(namespace.into());
    policy.metadata.name = Some(name.into());
    policy.spec.mtls = Some(MutualTls { mode });
    if !selector.is_empty() {
        policy.spec.selector = Some(istio::WorkloadSelector { match_labels: labels(selector) });
    }
    policy
}

impl Mesh {
    fn new(headless: bool, pods: &[Pod]) -> Self {
        Self::with_config(
            MeshConfig::new(TrustDomain::parse("cluster.local").expect("valid")),
            headless,
            pods,
        )
    }

    fn with_config(config: MeshConfig, headless: bool, pods: &[Pod]) -> Self {
        let port = |number, name: &str, target| ServicePort {
            number,
            name: name.into(),
            protocol: PortProtocol::of_port(None, Some(name), number),
            target,
        };
        let service = Service {
            name: NamespacedName::new("shop", "cart"),
            addresses: if headless { vec![] } else { vec![[10, 96, 0, 1].into()] },
            headless,
            ports: vec![
                port(80, "http", TargetPort::Name("web".into())),
                port(9090, "metrics", TargetPort::Number(9090)),
            ],
            selector: Some(Selector::new(labels(&[("app", "cart")]))),
            created_s: 10,
            service_accounts: Vec::new(),
            canonical_accounts: Vec::new(),
            external_name: None,
            prefers_ipv6: false,
            export_to: Vec::new(),
        };
        let slice = EndpointSlice {
            name: NamespacedName::new("shop", "cart-1"),
            service: "cart".into(),
            ports: vec![("http".into(), 8080), ("metrics".into(), 9090)],
            endpoints: pods
                .iter()
                .map(|pod| SliceEndpoint {
                    addresses: pod.addresses.clone(),
                    ready: true,
                    pod: Some(pod.name.name.clone()),
                    hostname: None,
                })
                .collect(),
        };
        let mut mesh = Self(World::new(config));
        mesh.apply(Event::Service(Change::Put(service)));
        mesh.apply(Event::Slice(Change::Put(slice)));
        for pod in pods {
            mesh.apply(Event::Pod(Change::Put(pod.clone())));
        }
        mesh
    }

    fn apply(&mut self, event: Event) {
        self.0.apply(event, &mut ChangeSet::default());
    }

    fn with(mut self, policy: PeerAuthentication) -> Self {
        self.apply(Event::PeerAuthentication(Change::Put(policy)));
        self
    }

    fn service(&self) -> wire::Service {
        let found = self.0.service(&NamespacedName::new("shop", "cart")).expect("there");
        super::service::service(&self.0, found, nobody())
    }

    /// TLS to each endpoint's port.
    fn tls(&self, port: u32) -> Vec<wire::EndpointTls> {
        let service = self.service();
        let ports = service.endpoints.iter().flat_map(|e| &e.ports);
        ports.filter(|p| p.service_port == port).map(|p| p.tls()).collect()
    }

    /// TLS when the pod is called by its own address, by port.
    fn direct(&self, pod: &str) -> Vec<(u32, wire::EndpointTls)> {
        let pod = self.0.pod(&NamespacedName::new("shop", pod)).expect("there");
        let direct = super::service::direct_workload(&self.0, pod, &self.0.sight_of(nobody()));
        direct.headless_ports.iter().map(|p| (p.port, p.tls())).collect()
    }
}

/// A client of whom nothing is known.
fn nobody() -> Client<'static> {
    static NO_LABELS: Labels = Labels::new();
    Client { namespace: "", labels: &NO_LABELS }
}

fn meshed() -> Pod {
    pod("a", 1, "cart", Some("istio"))
}

/// Reference mtls 2.1, CL-1 to CL-11 (CL-10 is with the DestinationRules).
#[test]
fn auto_mtls_is_decided_per_endpoint_and_port() {
    use MutualTlsMode::{Disable, Strict, Unset};
    let cart = &[("app", "cart")];
    let one = |policies: Vec<PeerAuthentication>| {
        policies.into_iter().fold(Mesh::new(false, &[meshed()]), Mesh::with)
    };
    assert_eq!(one(vec![]).tls(80), [IstioMutual], "CL-1");
    let naked = pod("b", 2, "cart", None);
    assert_eq!(Mesh::new(false, &[meshed(), naked.clone()]).tls(80), [IstioMutual, Plaintext], "CL-2");
    let strict = policy("istio-system", "default", &[], Strict);
    assert_eq!(
        Mesh::new(false, std::slice::from_ref(&naked)).with(strict.clone()).tls(80),
        [Plaintext],
        "CL-3"
    );
    let mesh = one(vec![policy("shop", "default", &[], Disable), policy("shop", "own", cart, Strict)]);
    assert_eq!(mesh.tls(80), [Plaintext], "CL-4");
    let mesh = one(vec![policy("shop", "default", &[], Strict), policy("shop", "own", cart, Disable)]);
    assert_eq!(mesh.tls(80), [Plaintext], "CL-5");
    let mut ports = policy("shop", "own", cart, Strict);
    ports.spec.port_level_mtls = Some([("8080".to_owned(), MutualTls { mode: Disable })].into());
    let mesh = one(vec![ports.clone()]);
    assert_eq!((mesh.tls(80), mesh.tls(9090)), (vec![Plaintext], vec![IstioMutual]), "CL-6");
    let headless = |pods: &[Pod]| Mesh::new(true, pods);
    let mesh = headless(&[meshed()]).with(ports);
    assert_eq!(
        (mesh.tls(80), mesh.direct("a")),
        (vec![IstioMutual], vec![(80, IstioMutual), (9090, IstioMutual)]),
        "CL-7"
    );
    let mesh = headless(&[meshed(), naked]);
    assert_eq!(
        (mesh.tls(80), mesh.direct("a")),
        (vec![Plaintext; 2], vec![(80, Plaintext), (9090, Plaintext)]),
        "CL-8"
    );
    let off = pod("a", 1, "cart", Some("disabled"));
    assert_eq!(Mesh::new(false, &[off]).tls(80), [Plaintext], "CL-9");
    let mesh = one(vec![strict, policy("shop", "default", &[], Unset)]);
    assert_eq!(mesh.tls(80), [IstioMutual], "CL-11");
}

#[test]
fn a_pod_called_directly_has_no_ports_of_services_with_an_address() {
    assert_eq!(Mesh::new(false, &[meshed()]).direct("a"), []);
}

#[test]
fn sn_1_only_ready_endpoints_are_given_but_all_their_identities() {
    let mut mesh = Mesh::new(false, &[meshed(), pod("b", 2, "cart-v2", Some("istio"))]);
    let mut slice =
        mesh.0.slices_of(&NamespacedName::new("shop", "cart")).next().expect("one").as_ref().clone();
    slice.endpoints[1].ready = false;
    mesh.apply(Event::Slice(Change::Put(slice)));
    let service = mesh.service();
    assert_eq!(service.endpoints.iter().map(|e| e.address.as_str()).collect::<Vec<_>>(), ["10.0.0.1"]);
    // SN-1: known endpoints, ready or not.
    assert_eq!(
        service.subject_alt_names,
        ["spiffe://cluster.local/ns/shop/sa/cart", "spiffe://cluster.local/ns/shop/sa/cart-v2"]
    );
}

/// SN-1: annotations, and everything again for each alias.
#[test]
fn sn_1_subject_alt_names_include_annotations_and_aliases() {
    let mut config = MeshConfig::new(TrustDomain::parse("new.td").expect("valid"));
    config.trust_domain_aliases = vec![TrustDomain::parse("old.td").expect("valid")];
    let mut mesh = Mesh::with_config(config, false, &[meshed()]);
    let mut service = mesh.0.service(&NamespacedName::new("shop", "cart")).expect("there").as_ref().clone();
    service.service_accounts = vec!["extra".into()];
    service.canonical_accounts = vec!["spiffe://new.td/ns/x/sa/y".into(), "legacy.example.com".into()];
    mesh.apply(Event::Service(Change::Put(service)));
    assert_eq!(
        mesh.service().subject_alt_names,
        [
            "legacy.example.com",
            "spiffe://new.td/ns/shop/sa/cart",
            "spiffe://new.td/ns/shop/sa/extra",
            "spiffe://new.td/ns/x/sa/y",
            "spiffe://old.td/ns/shop/sa/cart",
            "spiffe://old.td/ns/shop/sa/extra",
            "spiffe://old.td/ns/x/sa/y",
        ]
    );
}

#[test]
fn a_slice_that_names_a_pod_elsewhere_does_not_lend_its_identity() {
    let mut mesh = Mesh::new(false, &[meshed()]);
    let mut slice =
        mesh.0.slices_of(&NamespacedName::new("shop", "cart")).next().expect("one").as_ref().clone();
    slice.endpoints[0].addresses = vec![[192, 0, 2, 1].into()];
    mesh.apply(Event::Slice(Change::Put(slice)));
    let service = mesh.service();
    assert_eq!(service.endpoints.first().map(|e| e.workload.is_none()), Some(true));
    assert_eq!(mesh.tls(80), [Plaintext]);
    assert!(service.subject_alt_names.is_empty());
}

#[test]
fn inbound_has_modes_per_port_and_ports_of_services() {
    let mut ports = policy("shop", "own", &[("app", "cart")], MutualTlsMode::Strict);
    ports.spec.port_level_mtls = Some(
        [
            ("9090".to_owned(), MutualTls { mode: MutualTlsMode::Permissive }),
            ("7000".to_owned(), MutualTls { mode: MutualTlsMode::Unset }),
        ]
        .into(),
    );
    let mut mesh = Mesh::new(false, &[meshed()]).with(ports);
    // PA-17: a younger service that sees port 8080 otherwise does not count.
    let mut younger = mesh.0.service(&NamespacedName::new("shop", "cart")).expect("there").as_ref().clone();
    younger.name = NamespacedName::new("shop", "a-younger");
    younger.created_s = 20;
    younger.ports[0].protocol = PortProtocol::Tcp;
    mesh.apply(Event::Service(Change::Put(younger)));
    let fact = inbound(&mesh.0, mesh.0.pod(&NamespacedName::new("shop", "a")).expect("there"));
    assert_eq!(fact.mode(), wire::MtlsMode::Strict);
    let permissive = i32::from(wire::MtlsMode::Permissive);
    assert_eq!(fact.port_modes, [(9090, permissive)].into(), "only where it differs");
    let ports: Vec<_> = fact.ports.iter().map(|p| (p.port, p.protocol(), p.service_name.as_str())).collect();
    assert_eq!(ports, [(8080, wire::Protocol::Http, "cart"), (9090, wire::Protocol::Auto, "cart")]);
    assert_eq!(fact.ports[0].service_hostname, "cart.shop.svc.cluster.local");
    let workload = fact.workload.expect("own");
    assert_eq!((workload.uid.as_str(), workload.canonical_name.as_str()), ("shop/a", "cart"));
    assert_eq!(workload.canonical_revision, "latest");
}

/// Reference authorization 2.1 to 2.3.
#[test]
fn policies_apply_by_namespace_and_selector() {
    let policy = |namespace: &str, selector: Option<&[(&str, &str)]>| {
        let mut policy = istio::AuthorizationPolicy::default();
        policy.metadata.namespace = Some(namespace.into());
        policy.metadata.name = Some("p".into());
        policy.spec.selector = selector.map(|s| istio::WorkloadSelector { match_labels: labels(s) });
        policy
    };
    let own = meshed();
    let mut attached = policy("shop", None);
    attached.spec.target_refs = Some(vec![istio::TargetRef::default()]);
    let cases = [
        (policy("shop", None), true),
        (policy("shop", Some(&[])), true),
        (policy("shop", Some(&[("app", "cart")])), true),
        (policy("shop", Some(&[("app", "cart"), ("v", "1")])), false),
        (policy("bank", None), false),
        (policy("istio-system", None), true),
        (policy("istio-system", Some(&[("app", "cart")])), true),
        (policy("istio-system", Some(&[("app", "web")])), false),
        (attached, false),
    ];
    for (policy, expected) in cases {
        assert_eq!(Policy::of(&policy).applies_to(&own, "istio-system"), expected, "{policy:?}");
    }
}

#[test]
fn versions_follow_content_only() {
    let mesh = Mesh::new(false, &[meshed()]);
    let fact = |m: &Mesh| Fact::of(maille_xds::type_urls::DESTINATION, &m.service());
    assert_eq!(fact(&mesh), fact(&Mesh::new(false, &[meshed()])));
    assert_ne!(fact(&mesh), fact(&Mesh::new(true, &[meshed()])));
}

#[test]
fn dry_run_is_a_go_boolean() {
    for (value, expected) in [("true", true), ("1", true), ("T", true), ("yes", false), ("false", false)] {
        let mut policy = istio::AuthorizationPolicy::default();
        policy.metadata.annotations = Some([("istio.io/dry-run".to_owned(), value.to_owned())].into());
        let fact = Policy::of(&policy).fact().resource("x");
        let message: wire::Authorization =
            prost::Message::decode(fact.body.value.as_slice()).expect("decodes");
        assert_eq!(message.dry_run, expected, "{value}");
    }
}
