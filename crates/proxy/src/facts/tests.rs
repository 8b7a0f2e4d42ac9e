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
    let message = wire::TrustBundle { trust_domain: "cluster.local".into(), roots: vec![] };
    assert!(trust_bundle(&message).is_err());
}
