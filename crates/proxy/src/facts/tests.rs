use super::*;

fn workload_message() -> wire::Workload {
    wire::Workload {
        uid: "shop/cart-1".into(),
        namespace: "shop".into(),
        identity: Some(wire::Identity {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
        }),
        addresses: vec!["10.244.0.7".into()],
        ..Default::default()
    }
}

fn service_message(tls: i32) -> wire::Destination {
    let endpoint = wire::Endpoint {
        workload: Some(workload_message()),
        address: "10.244.0.7".into(),
        ports: vec![wire::EndpointPort { service_port: 80, target_port: 8080, tls }],
        ..Default::default()
    };
    let service = wire::Service {
        namespace: "shop".into(),
        name: "cart".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
        addresses: vec!["10.96.0.9".into()],
        ports: vec![wire::ServicePort { number: 80, name: "http".into(), protocol: 1, ..Default::default() }],
        endpoints: vec![endpoint],
        ..Default::default()
    };
    wire::Destination { kind: Some(wire::destination::Kind::Service(service)) }
}

#[test]
fn unknown_mtls_modes_are_strict() {
    for value in [0, 3, 99, -1] {
        assert_eq!(mtls_mode(value), MtlsMode::Strict, "{value}");
    }
    assert_eq!(mtls_mode(1), MtlsMode::Disable);
    assert_eq!(mtls_mode(2), MtlsMode::Permissive);
}

#[test]
fn an_unknown_action_denies_everything_even_as_dry_run() {
    for action in [0, 77] {
        let message = wire::Authorization { action, dry_run: true, ..Default::default() };
        let policy = authorization(&message);
        assert_eq!(policy.spec.action, istio::Action::Deny);
        assert_eq!(policy.spec.rules, vec![istio::Rule::default()]);
        assert!(!policy.dry_run);
    }
}

#[test]
fn an_endpoint_of_unknown_security_is_not_used() {
    for tls in [0, 9] {
        let Ok(Destination::Service(service)) = destination(&service_message(tls)) else {
            panic!("a service")
        };
        assert!(service.endpoints[0].ports.is_empty(), "{tls}");
    }
    let Ok(Destination::Service(service)) = destination(&service_message(2)) else { panic!("a service") };
    assert_eq!(service.endpoints[0].ports[0].tls, EndpointTls::IstioMutual);
    assert_eq!(&*service.ports[0].sni, "outbound_.80_._.cart.shop.svc.cluster.local");
}

#[test]
fn a_destination_of_an_unknown_kind_is_refused_not_passed_through() {
    assert!(destination(&wire::Destination { kind: None }).is_err());
}

#[test]
fn inbound_needs_a_workload_and_real_ports() {
    assert_eq!(inbound(&wire::Inbound::default()).expect_err("no workload").field, "workload");
    let bad_port = wire::Inbound {
        workload: Some(workload_message()),
        port_modes: [(70_000, 1)].into(),
        ..Default::default()
    };
    assert_eq!(inbound(&bad_port).expect_err("no such port").field, "port_modes");
}

/// Reference mtls PA-14, PA-17.
#[test]
fn inbound_ports_keep_the_first_declaration_and_their_own_mode() {
    let declared = |protocol, name: &str| wire::InboundPort {
        port: 8080,
        protocol,
        service_name: name.into(),
        ..Default::default()
    };
    let facts = inbound(&wire::Inbound {
        workload: Some(workload_message()),
        mode: 3,
        port_modes: [(9090, 2)].into(),
        ports: vec![declared(1, "old"), declared(3, "young")],
    })
    .expect("valid");
    assert_eq!(facts.protocol_of(8080), PortProtocol::Http);
    assert_eq!(facts.protocol_of(1), PortProtocol::Auto);
    assert_eq!((facts.mode_of(9090), facts.mode_of(8080)), (MtlsMode::Permissive, MtlsMode::Strict));
}

#[test]
fn settings_fail_closed() {
    let message = wire::MeshSettings {
        trust_domain: "cluster.local".into(),
        root_namespace: "istio-system".into(),
        cluster_domain: "cluster.local".into(),
        path_normalization: 2,
        ..Default::default()
    };
    let settings = mesh_settings(&message).expect("valid");
    assert_eq!(settings.outbound_policy, OutboundPolicy::RegistryOnly);
    assert_eq!(settings.protocol_detection_timeout, None);
    for bad in [
        wire::MeshSettings { path_normalization: 0, ..message.clone() },
        wire::MeshSettings { trust_domain: "a/b".into(), ..message.clone() },
        wire::MeshSettings { root_namespace: String::new(), ..message },
    ] {
        assert!(mesh_settings(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_bundle_without_roots_is_refused() {
    let message =
        wire::TrustBundle { trust_domain: "cluster.local".into(), roots: vec![], ..Default::default() };
    assert!(trust_bundle(&message).is_err());
}

fn entry_message() -> wire::Service {
    let port = wire::ServicePort {
        number: 443,
        name: "https".into(),
        protocol: wire::Protocol::Tls.into(),
        tls: Some(wire::ClientTls {
            mode: wire::client_tls::Mode::Mutual.into(),
            rule: "production/api".into(),
            client_certificate: "/etc/certs/cert.pem".into(),
            private_key: "/etc/certs/key.pem".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let endpoint = wire::Endpoint {
        dns_name: "API.example.com".into(),
        ports: vec![wire::EndpointPort { service_port: 443, target_port: 443, tls: 1 }],
        ..Default::default()
    };
    wire::Service {
        hostname: "*.example.com".into(),
        external: true,
        resolution: wire::Resolution::Dns.into(),
        service_entry: "production/api".into(),
        ports: vec![port],
        endpoints: vec![endpoint],
        ..Default::default()
    }
}

fn entry(message: wire::Service) -> Checked<Service> {
    let kind = Some(wire::destination::Kind::Service(message));
    match destination(&wire::Destination { kind })? {
        Destination::Service(service) => Ok(service),
        other => panic!("a service, not {other:?}"),
    }
}

#[test]
fn a_service_entry_keeps_its_names_and_its_order() {
    let service = entry(entry_message()).expect("valid");
    assert_eq!((&*service.name.hostname, service.external), ("*.example.com", true));
    assert_eq!(service.service_entry.as_deref(), Some("production/api"));
    assert!(service.endpoints.is_empty());
    assert_eq!(&*service.named_endpoints[0].dns_name, "api.example.com");
    let port = &service.ports[0];
    assert!(port.is_tls && port.originates_tls() && port.takes_http());
    let order = port.order.as_ref().expect("ordered");
    assert_eq!((order.mode, &*order.rule), (crate::snapshot::OrderMode::Mutual, "production/api"));
    assert_eq!(order.files.roots, crate::snapshot::RootsFrom::System);
}

#[test]
fn addresses_of_a_service_entry_may_be_blocks() {
    let with = |addresses: &[&str]| wire::Service {
        addresses: addresses.iter().map(ToString::to_string).collect(),
        ..entry_message()
    };
    let service = entry(with(&["192.0.2.7", "10.9.0.0/16", "192.0.2.8/32", "fd00::1/128", "fd00::/8"]));
    let expected: Vec<IpAddr> =
        ["192.0.2.7", "192.0.2.8", "fd00::1"].iter().filter_map(|a| a.parse().ok()).collect();
    assert_eq!(service.expect("valid").addresses, expected);
    for bad in ["10.9.0.0/33", "10.9.0.0/", "10.9/16", "x", "fd00::/255", "10.0.0.1/255"] {
        assert!(entry(with(&[bad])).is_err(), "{bad}");
    }
}

/// A port without its order would be plaintext.
#[test]
fn an_order_of_an_unknown_mode_sends_nothing_and_an_unknown_resolution_is_refused() {
    for mode in [0, 99] {
        let mut message = entry_message();
        message.ports[0].tls.as_mut().expect("set").mode = mode;
        let service = entry(message).expect("the port stays");
        let order = service.ports[0].order.as_ref().expect("and so does the order");
        assert_eq!(order.mode, crate::snapshot::OrderMode::Unknown);
        assert!(order.originates());
    }
    let wrong = wire::Service { resolution: 17, ..entry_message() };
    assert_eq!(entry(wrong).expect_err("refused").field, "service.resolution");
    for name in ["a..b", "*.", "*", "a.*.b"] {
        let wrong = wire::Service { hostname: name.into(), ..entry_message() };
        assert!(entry(wrong).is_err(), "{name}");
    }
}

#[test]
fn two_orders_are_the_same_if_they_say_the_same() {
    let order = || entry(entry_message()).expect("valid").ports[0].order.clone().expect("ordered");
    let (one, same) = (order(), order());
    assert_eq!(one, same);
    let other = crate::snapshot::TlsOrder { sni: Some("x".into()), ..(*same).clone() };
    assert_ne!(*one, other);
}

#[test]
fn revocations_hold_for_all_names_of_the_trust_domain() {
    let id = "spiffe://old.td/ns/shop/sa/web";
    let names = ["new.td", "old.td"];
    let message = wire::Revocations {
        version: "v".into(),
        identities: vec![wire::RevokedIdentity { id: id.into(), not_after_ms: 0 }],
        trust_domains: names.map(String::from).to_vec(),
        ..Default::default()
    };
    let identity = maille_core::Identity::parse_uri(id).expect("valid");
    let expected = Revoked::new("v".into(), [], [(identity, None)], Vec::new()).expect("good");
    let named = expected.clone().among(names.map(|name| TrustDomain::parse(name).expect("valid")));
    assert_ne!(expected, named);
    assert_eq!(revocations(&message).expect("good"), named);
    let bad = wire::Revocations { trust_domains: vec!["not a domain".into()], ..message };
    assert!(revocations(&bad).is_err_and(|error| error.field == "trust_domains"));
}
