//! What people and scripts see of a proxy: tables and JSON, whole.

use base64::Engine as _;
use maille_envoy::{Dump, loaded_policies, tables};
use maille_proto::facts as wire;
use serde_json::{Value, json};
use wire::destination::Kind;

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn allow(name: &str, principal: &str) -> wire::Authorization {
    let source = wire::Source { principals: texts(&[principal]), ..Default::default() };
    let operation = wire::Operation { methods: texts(&["GET"]), ..Default::default() };
    wire::Authorization {
        namespace: "production".into(),
        name: name.into(),
        action: wire::authorization::Action::Allow.into(),
        rules: vec![wire::Rule { from: vec![source], to: vec![operation], when: Vec::new() }],
        ..Default::default()
    }
}

fn service(namespace: &str, name: &str, protocol: wire::Protocol, tls: wire::EndpointTls) -> wire::Service {
    let port = wire::EndpointPort { service_port: 80, target_port: 8080, tls: tls.into() };
    wire::Service {
        namespace: namespace.into(),
        name: name.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local"),
        addresses: texts(&["10.96.0.7"]),
        ports: vec![wire::ServicePort { number: 80, protocol: protocol.into(), ..Default::default() }],
        endpoints: vec![wire::Endpoint {
            address: "10.244.0.9".into(),
            ports: vec![port],
            ..Default::default()
        }],
        subject_alt_names: vec![format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")],
        ..Default::default()
    }
}

/// The guide's external service.
fn external() -> wire::Service {
    let tls = wire::ClientTls {
        mode: wire::client_tls::Mode::Mutual.into(),
        rule: "production/external-api-mtls".into(),
        client_certificate: "/etc/certs/cert.pem".into(),
        private_key: "/etc/certs/key.pem".into(),
        ca_certificates: "/etc/certs/ca.pem".into(),
        ..Default::default()
    };
    let port =
        wire::EndpointPort { service_port: 443, target_port: 443, tls: wire::EndpointTls::Plaintext.into() };
    wire::Service {
        namespace: "production".into(),
        hostname: "api.external-service.com".into(),
        ports: vec![wire::ServicePort {
            number: 443,
            name: "https".into(),
            protocol: wire::Protocol::Tls.into(),
            tls: Some(tls),
            ..Default::default()
        }],
        endpoints: vec![wire::Endpoint {
            dns_name: "api.external-service.com".into(),
            ports: vec![port],
            ..Default::default()
        }],
        external: true,
        resolution: wire::Resolution::Dns.into(),
        service_entry: "production/external-api".into(),
        ..Default::default()
    }
}

fn named(name: &str, service: wire::Service) -> wire::NamedDestination {
    wire::NamedDestination {
        name: name.into(),
        destination: Some(wire::Destination { kind: Some(Kind::Service(service)) }),
        ..Default::default()
    }
}

/// payment-service of the guide, with port 9090 open for plaintext, and port 7000 that no Service declares.
fn proxy(mode: wire::MtlsMode) -> wire::ConfigDump {
    use wire::{EndpointTls, Protocol};
    let port = |port, protocol: Protocol| wire::InboundPort {
        port,
        protocol: protocol.into(),
        service_hostname: "payment-service.production.svc.cluster.local".into(),
        service_name: "payment-service".into(),
        service_namespace: "production".into(),
        ..Default::default()
    };
    let modes = [(9090, wire::MtlsMode::Permissive), (7000, wire::MtlsMode::Disable)];
    let inbound = wire::Inbound {
        mode: mode.into(),
        port_modes: modes.into_iter().map(|(port, mode)| (port, mode.into())).collect(),
        ports: vec![port(8080, Protocol::Http), port(9090, Protocol::Tcp)],
        ..Default::default()
    };
    wire::ConfigDump {
        workload: "production/payment-service-1".into(),
        identity: "spiffe://cluster.local/ns/production/sa/payment-service".into(),
        version: "0.1.0".into(),
        facts: Some(wire::FactsInForce {
            inbound: Some(inbound),
            authorizations: vec![
                allow("allow-cart", "cluster.local/ns/production/sa/cart"),
                wire::Authorization {
                    namespace: "production".into(),
                    name: "deny-all".into(),
                    action: wire::authorization::Action::Allow.into(),
                    ..Default::default()
                },
            ],
            destinations: vec![
                named("10.96.0.7", service("production", "orders", Protocol::Http, EndpointTls::IstioMutual)),
                named(
                    "orders.production.svc.cluster.local",
                    service("production", "orders", Protocol::Http, EndpointTls::IstioMutual),
                ),
                named("10.96.0.8", service("legacy", "old", Protocol::Auto, EndpointTls::Plaintext)),
                named("api.external-service.com", external()),
            ],
            ..Default::default()
        }),
        bootstrap: Some(wire::Bootstrap {
            inbound: "[::]:15006".into(),
            outbound: "[::]:15001".into(),
            discovery_address: "istiod.istio-system.svc:15012".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A table as its cells joined by ` | `.
fn lines(table: &tables::Table) -> Vec<String> {
    table.iter().map(|row| row.join(" | ").trim_end().to_owned()).collect()
}

fn inbound_rows(mode: wire::MtlsMode) -> Vec<String> {
    let dump = Dump::of_proxy(&proxy(mode));
    let filter = tables::ListenerFilter { port: Some(15006), ..Default::default() };
    let wanted: Vec<Value> = dump.listeners.into_iter().filter(|listener| filter.wants(listener)).collect();
    lines(&tables::listeners(&wanted))
}

#[test]
fn a_strict_port_takes_tls_only_and_a_permissive_one_both() {
    assert_eq!(
        inbound_rows(wire::MtlsMode::Strict),
        [
            "ADDRESSES | PORT | MATCH | DESTINATION",
            "0.0.0.0 | 15006 | Trans: tls; App: istio-http/1.0,istio-http/1.1,istio-h2; Addr: 0.0.0.0/0,::/0 | InboundPassthroughCluster",
            "0.0.0.0 | 15006 | Trans: tls; Addr: 0.0.0.0/0,::/0 | InboundPassthroughCluster",
            "0.0.0.0 | 15006 | Trans: raw_buffer; App: http/1.1,h2c; Addr: *:7000 | InboundPassthroughCluster",
            "0.0.0.0 | 15006 | Trans: raw_buffer; Addr: *:7000 | InboundPassthroughCluster",
            "0.0.0.0 | 15006 | Trans: tls; App: istio,istio-peer-exchange,istio-http/1.0,istio-http/1.1,istio-h2; Addr: *:9090 | Cluster: inbound|9090||",
            "0.0.0.0 | 15006 | Trans: tls; Addr: *:9090 | Cluster: inbound|9090||",
            "0.0.0.0 | 15006 | Trans: raw_buffer; Addr: *:9090 | Cluster: inbound|9090||",
            "0.0.0.0 | 15006 | Trans: tls; Addr: *:8080 | Cluster: inbound|8080||",
            "0.0.0.0 | 15006 | Addr: *:15006 | BlackHoleCluster",
        ]
    );
    let plaintext = |rows: Vec<String>| rows.iter().any(|row| row.contains("raw_buffer; Addr: *:8080"));
    assert!(plaintext(inbound_rows(wire::MtlsMode::Permissive)));
    assert!(plaintext(inbound_rows(wire::MtlsMode::Disable)));
    let disabled = inbound_rows(wire::MtlsMode::Disable);
    assert!(!disabled.iter().any(|row| row.contains("tls") && row.contains("*:8080")), "{disabled:#?}");
}

#[test]
fn the_application_protocol_of_a_connection_manager_carries_the_policies() {
    let dump = Dump::of_proxy(&proxy(wire::MtlsMode::Strict));
    let inbound = dump.listeners.iter().find(|l| l["name"] == "virtualInbound").expect("15006");
    let of_8080 = inbound["filterChains"]
        .as_array()
        .expect("chains")
        .iter()
        .find(|chain| chain["name"] == "0.0.0.0_8080");
    let filter = &of_8080.expect("8080")["filters"][0]["typedConfig"]["httpFilters"][0];
    assert_eq!(filter["name"], "envoy.filters.http.rbac");
    assert_eq!(
        filter["typedConfig"]["rules"]["policies"]["ns[production]-policy[allow-cart]-rule[0]"]["principals"],
        json!([{"andIds": {"ids": [{"orIds": {"ids": [
            {"authenticated": {"principalName": {"exact": "spiffe://cluster.local/ns/production/sa/cart"}}}
        ]}}]}}])
    );
    assert_eq!(of_8080.expect("8080")["transportSocket"]["typedConfig"]["requireClientCertificate"], true);
    let loaded: Vec<_> = loaded_policies(&dump.listeners)
        .into_iter()
        .map(|policy| format!("{} {} {}", policy.action, policy.policy, policy.rules))
        .collect();
    // A policy without rules has one that never matches, by its name, so that the filter is never without any.
    assert_eq!(loaded, ["ALLOW allow-cart.production 1", "ALLOW deny-all.production 1"]);
}

#[test]
fn clusters_name_their_kind_and_rule() {
    let dump = Dump::of_proxy(&proxy(wire::MtlsMode::Strict));
    assert_eq!(
        lines(&tables::clusters(&dump.clusters)),
        [
            "SERVICE FQDN | PORT | SUBSET | DIRECTION | TYPE | DESTINATION RULE",
            " | 8080 | - | inbound | ORIGINAL_DST |",
            " | 9090 | - | inbound | ORIGINAL_DST |",
            "BlackHoleCluster | - | - | - | STATIC |",
            "InboundPassthroughCluster | - | - | - | ORIGINAL_DST |",
            "PassthroughCluster | - | - | - | ORIGINAL_DST |",
            "api.external-service.com | 443 | - | outbound | STRICT_DNS | external-api-mtls.production",
            "old.legacy.svc.cluster.local | 80 | - | outbound | EDS |",
            "orders.production.svc.cluster.local | 80 | - | outbound | EDS |",
            "xds-grpc | - | - | - | STRICT_DNS |",
        ]
    );
    let cluster = |name: &str| dump.clusters.iter().find(|c| c["name"] == name).expect("there").clone();
    let own = cluster("outbound|80||orders.production.svc.cluster.local");
    let mutual = &own["transportSocketMatches"][0];
    assert_eq!(mutual["match"], json!({"tlsMode": "istio"}));
    assert_eq!(
        mutual["transportSocket"]["typedConfig"]["sni"],
        "outbound_.80_._.orders.production.svc.cluster.local"
    );
    assert!(cluster("outbound|80||old.legacy.svc.cluster.local").get("transportSocketMatches").is_none());
    let originated = cluster("outbound|443||api.external-service.com");
    let common = &originated["transportSocket"]["typedConfig"]["commonTlsContext"];
    assert_eq!(
        common["tlsCertificateSdsSecretConfigs"][0]["name"],
        "file-cert:/etc/certs/cert.pem~/etc/certs/key.pem"
    );
    assert_eq!(
        common["combinedValidationContext"]["validationContextSdsSecretConfig"]["name"],
        "file-root:/etc/certs/ca.pem"
    );
}

#[test]
fn a_service_asked_for_twice_is_shown_once() {
    let dump = Dump::of_proxy(&proxy(wire::MtlsMode::Strict));
    assert_eq!(
        lines(&tables::endpoints(&dump.endpoints)),
        [
            "ENDPOINT | STATUS | OUTLIER CHECK | CLUSTER",
            "10.244.0.9:8080 | HEALTHY | OK | outbound|80||old.legacy.svc.cluster.local",
            "10.244.0.9:8080 | HEALTHY | OK | outbound|80||orders.production.svc.cluster.local",
            "api.external-service.com:443 | HEALTHY | OK | outbound|443||api.external-service.com",
            "istiod.istio-system.svc:15012 | HEALTHY | OK | xds-grpc",
        ]
    );
    assert_eq!(
        lines(&tables::routes(&dump.routes)),
        [
            "NAME | VHOST NAME | DOMAINS | MATCH | VIRTUAL SERVICE",
            "80 | orders.production.svc.cluster.local:80 | orders.production.svc.cluster.local, orders, orders.production.svc + 2 more... | /* |",
            "80 | allow_any | * | /* |",
            "443 | api.external-service.com:443 | api.external-service.com | /* |",
            "443 | allow_any | * | /* |",
            "inbound|8080|| | inbound|http|8080 | * | /* |",
            "old.legacy.svc.cluster.local:80 | old.legacy.svc.cluster.local:80 | old.legacy.svc.cluster.local, old.legacy.svc, old.legacy + 1 more... | /* |",
        ]
    );
}

#[test]
fn a_name_that_was_looked_up_is_shown_by_its_addresses() {
    let mut proxy = proxy(wire::MtlsMode::Strict);
    let facts = proxy.facts.as_mut().expect("facts");
    let external =
        facts.destinations.iter_mut().find(|d| d.name == "api.external-service.com").expect("there");
    external.resolved = ["203.0.113.7", "203.0.113.8"]
        .map(|address| wire::Endpoint {
            address: address.into(),
            ports: vec![wire::EndpointPort { service_port: 443, target_port: 443, ..Default::default() }],
            ..Default::default()
        })
        .to_vec();
    let filter = tables::EndpointFilter {
        cluster: Some("outbound|443||api.external-service.com".into()),
        ..Default::default()
    };
    let table = tables::endpoints(&filter.select(&Dump::of_proxy(&proxy).endpoints));
    let endpoints: Vec<&str> = table.iter().skip(1).map(|row| row[0].as_str()).collect();
    assert_eq!(endpoints, ["203.0.113.7:443", "203.0.113.8:443"]);
}

#[test]
fn outbound_listeners_are_there_for_what_was_called() {
    let dump = Dump::of_proxy(&proxy(wire::MtlsMode::Strict));
    let outbound: Vec<Value> =
        dump.listeners.into_iter().filter(|l| l["trafficDirection"] == "OUTBOUND").collect();
    assert_eq!(
        lines(&tables::listeners(&outbound)),
        [
            "ADDRESSES | PORT | MATCH | DESTINATION",
            "0.0.0.0 | 80 | Trans: raw_buffer; App: http/1.1,h2c | Route: 80",
            "0.0.0.0 | 80 | ALL | PassthroughCluster",
            "10.96.0.7 | 80 | Trans: raw_buffer; App: http/1.1,h2c | Route: old.legacy.svc.cluster.local:80",
            "10.96.0.7 | 80 | ALL | Cluster: outbound|80||old.legacy.svc.cluster.local",
            "0.0.0.0 | 443 | Trans: raw_buffer; App: http/1.1,h2c | Route: 443",
            "0.0.0.0 | 443 | ALL | PassthroughCluster",
            "0.0.0.0 | 15001 | ALL | PassthroughCluster",
            "0.0.0.0 | 15001 | Addr: *:15001 | BlackHoleCluster",
        ]
    );
}

/// A dump with certificates of a real authority.
fn certified() -> (Dump, maille_testkit::TestAuthority) {
    let authority = maille_testkit::TestAuthority::new();
    let svid = authority.svid("production", "payment-service");
    let mut dump = proxy(wire::MtlsMode::Strict);
    let own = wire::Certificate {
        obtained: "2026-08-22T15:00:18Z".into(),
        chain: svid.chain_pem(),
        ..Default::default()
    };
    let roots = wire::TrustedRoots {
        trust_domain: "cluster.local".into(),
        certificates: vec![authority.roots_pem()],
    };
    let tls = wire::TlsInUse {
        key_exchanges: texts(&["X25519MLKEM768", "X25519"]),
        oldest_version: "TLSv1.2".into(),
        ..Default::default()
    };
    dump.certificates = Some(wire::Certificates { workload: Some(own), roots: vec![roots], tls: Some(tls) });
    (Dump::of_proxy(&dump), authority)
}

fn decoded(value: &Value) -> String {
    let bytes =
        base64::engine::general_purpose::STANDARD.decode(value.as_str().expect("text")).expect("base64");
    String::from_utf8(bytes).expect("PEM")
}

#[test]
fn secrets_have_the_layout_that_scripts_decode_and_no_key() {
    let (dump, authority) = certified();
    let section = dump.secret_section();
    let names: Vec<_> = section["dynamicActiveSecrets"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| s["name"].clone())
        .collect();
    assert_eq!(names, ["default", "ROOTCA"]);
    let own = &section["dynamicActiveSecrets"][0];
    assert_eq!(own["lastUpdated"], "2026-08-22T15:00:18Z");
    assert_eq!(
        own["secret"]["@type"],
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    );
    assert!(
        decoded(&own["secret"]["tlsCertificate"]["certificateChain"]["inlineBytes"])
            .starts_with("-----BEGIN CERT")
    );
    assert_eq!(own["secret"]["tlsCertificate"]["privateKey"]["inlineBytes"], "W3JlZGFjdGVkXQ==");
    let roots = decoded(
        &section["dynamicActiveSecrets"][1]["secret"]["validationContext"]["trustedCa"]["inlineBytes"],
    );
    assert_eq!(roots, authority.roots_pem());
    assert!(!dump.to_config_dump().to_string().contains("PRIVATE"));
}

/// Beside Envoy's section, where readers of that do not look; and not in the raw dump, which Envoy's schema must take.
#[test]
fn what_tls_negotiates_is_shown_beside_the_secrets() {
    let (dump, _) = certified();
    let shown = dump.secrets_shown();
    assert_eq!(shown["dynamicActiveSecrets"], dump.secret_section()["dynamicActiveSecrets"]);
    assert_eq!(shown["tls"]["keyExchanges"][0], "X25519MLKEM768");
    assert_eq!(
        (&shown["tls"]["oldestVersion"], &shown["tls"]["revocations"]),
        (&"TLSv1.2".into(), &Value::Null)
    );
    assert!(!dump.to_config_dump().to_string().contains("key_exchanges"));
    let read = Dump::read(shown.to_string().as_bytes()).expect("a section alone is read, too");
    assert_eq!((&read.tls, &read.secrets), (&dump.tls, &dump.secrets));
    let envoys = Dump::read(dump.to_config_dump().to_string().as_bytes()).expect("read");
    assert!(envoys.secrets_shown().get("tls").is_none(), "of Envoy it is not known");
}

#[test]
fn the_table_of_secrets_judges_validity_and_names_trust_domains() {
    let (dump, _) = certified();
    let chain = decoded(&dump.secrets[0]["secret"]["tlsCertificate"]["certificateChain"]["inlineBytes"]);
    let facts = tables::certificate_facts(chain.as_bytes()).expect("a certificate");
    assert_eq!((facts.is_authority, facts.serial.len()), (false, 32));
    assert_eq!(facts.trust_domain.as_deref(), Some("cluster.local"));
    let rows = |now| tables::secrets(&[], &dump.secrets, now, |seconds| seconds.to_string());
    let table = rows(facts.not_before + 1);
    assert_eq!(table[0].last().map(String::as_str), Some("TRUST DOMAIN"));
    let (serial, after, before) = (facts.serial, facts.not_after, facts.not_before);
    assert_eq!(
        table[1].join(" | "),
        format!("default | Cert Chain | ACTIVE | true | {serial} | {after} | {before} | cluster.local")
    );
    assert_eq!(table[2][..4], ["ROOTCA", "CA", "ACTIVE", "true"]);
    assert_eq!(rows(facts.not_after)[1][3], "false", "expired");
    assert_eq!(rows(facts.not_before)[1][3], "false", "not valid yet");
}

/// Envoy's own form goes in again: `proxy-config all -o json` of one day is `--file` of another.
#[test]
fn the_raw_dump_is_snake_case_and_reads_back_whole() {
    let (dump, _) = certified();
    let raw = dump.to_config_dump();
    let kinds: Vec<_> =
        raw["configs"].as_array().expect("sections").iter().map(|s| s["@type"].clone()).collect();
    assert_eq!(
        kinds.last().and_then(Value::as_str),
        Some("type.googleapis.com/envoy.admin.v3.SecretsConfigDump")
    );
    assert!(raw.to_string().contains("dynamic_active_secrets"));
    let read = Dump::read(raw.to_string().as_bytes()).expect("read");
    assert_eq!(lines(&tables::listeners(&read.listeners)), lines(&tables::listeners(&dump.listeners)));
    assert_eq!(lines(&tables::clusters(&read.clusters)), lines(&tables::clusters(&dump.clusters)));
    assert_eq!(lines(&tables::routes(&read.routes)), lines(&tables::routes(&dump.routes)));
    assert_eq!(lines(&tables::endpoints(&read.endpoints)), lines(&tables::endpoints(&dump.endpoints)));
    assert_eq!(read.secrets, dump.secrets);
    assert_eq!(loaded_policies(&read.listeners), loaded_policies(&dump.listeners));
}

#[test]
fn what_is_no_dump_is_said_to_be_none() {
    for (text, expected) in
        [("{", "not JSON"), ("{}", "'configs'"), ("[1]", "'configs'"), ("null", "'configs'")]
    {
        let error = Dump::read(text.as_bytes()).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_proxy_without_facts_shows_only_what_every_proxy_has() {
    let dump = Dump::of_proxy(&wire::ConfigDump::default());
    assert!(dump.secrets.is_empty() && dump.endpoints.is_empty());
    assert_eq!(lines(&tables::listeners(&dump.listeners)).len(), 3, "15001 and its loop guard");
}

fn rule(issuer: &str) -> wire::JwtRule {
    wire::JwtRule {
        issuer: issuer.into(),
        audiences: texts(&["shop"]),
        jwks: "{\"keys\":[{\"kty\":\"EC\"}]}".into(),
        from_headers: vec![wire::JwtHeader { name: "x-token".into(), prefix: "Bearer ".into() }],
        output_claim_to_headers: vec![wire::ClaimToHeader { header: "x-sub".into(), claim: "sub".into() }],
        space_delimited_claims: texts(&["roles"]),
        ..Default::default()
    }
}

fn with_tokens(rules: &[&str]) -> Dump {
    let mut dump = proxy(wire::MtlsMode::Strict);
    let authentication = wire::RequestAuthentication {
        namespace: "shop".into(),
        name: "tokens".into(),
        jwt_rules: rules.iter().map(|issuer| rule(issuer)).collect(),
    };
    dump.facts.as_mut().expect("facts").request_authentications = vec![authentication];
    Dump::of_proxy(&dump)
}

/// The HTTP filters of the first chain for HTTP of the inbound listener.
fn http_filters(dump: &Dump) -> Vec<Value> {
    let inbound =
        dump.listeners.iter().find(|listener| listener["name"] == "virtualInbound").expect("inbound");
    let filters = inbound["filterChains"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|chain| chain["filters"].as_array().into_iter().flatten());
    let mut http = filters.filter_map(|filter| filter["typedConfig"]["httpFilters"].as_array());
    http.next().cloned().expect("a chain for HTTP")
}

#[test]
fn tokens_are_verified_before_policies_are_asked() {
    let filters = http_filters(&with_tokens(&["https://idp"]));
    let names: Vec<&str> = filters.iter().filter_map(|filter| filter["name"].as_str()).collect();
    assert_eq!(names.first(), Some(&"envoy.filters.http.jwt_authn"), "{names:?}");
    assert!(names.contains(&"envoy.filters.http.rbac"));
    let config = &filters[0]["typedConfig"];
    assert_eq!(
        config["providers"]["origins-0"],
        json!({
            "issuer": "https://idp",
            "audiences": ["shop"],
            "localJwks": {"inlineString": "{\"keys\":[{\"kty\":\"EC\"}]}"},
            "fromHeaders": [{"name": "x-token", "valuePrefix": "Bearer "}],
            "payloadInMetadata": "payload",
            "normalizePayloadInMetadata": {"spaceDelimitedClaims": ["permission", "roles", "scope"]},
            "claimToHeaders": [{"headerName": "x-sub", "claimName": "sub"}],
        })
    );
    let either =
        |name: &str| json!({"requiresAny": {"requirements": [{"providerName": name}, {"allowMissing": {}}]}});
    assert_eq!(config["rules"], json!([{"match": {"prefix": "/"}, "requires": either("origins-0")}]));
    assert_eq!(config["bypassCorsPreflight"], true);

    // Sorted by issuer; valid for one, or each valid or missing.
    let filters = http_filters(&with_tokens(&["https://z", "https://a"]));
    let config = &filters[0]["typedConfig"];
    assert_eq!(config["providers"]["origins-0"]["issuer"], "https://a");
    assert_eq!(
        config["rules"][0]["requires"],
        json!({"requiresAny": {"requirements": [
            {"providerName": "origins-0"},
            {"providerName": "origins-1"},
            {"requiresAll": {"requirements": [either("origins-0"), either("origins-1")]}},
        ]}})
    );
}

#[test]
fn a_workload_without_request_authentications_has_no_filter_for_tokens() {
    let names = http_filters(&Dump::of_proxy(&proxy(wire::MtlsMode::Strict)));
    assert!(names.iter().all(|filter| filter["name"] != "envoy.filters.http.jwt_authn"), "{names:?}");
}
