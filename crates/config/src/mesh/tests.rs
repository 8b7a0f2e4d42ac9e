use super::*;

fn read(text: &str) -> MeshConfig {
    check(text).unwrap_or_else(|found| panic!("{text}\n{found:#?}"))
}

/// `line:column code field`, in order.
fn found(text: &str) -> Vec<String> {
    let found = check(text).err().unwrap_or_default();
    let place = |d: &crate::Diagnostic| format!("{}:{}", d.line, d.column);
    found
        .iter()
        .map(|d| format!("{} {} {}", place(d), d.code, d.field.as_deref().unwrap_or_default()))
        .collect()
}

fn provider(body: &str) -> String {
    format!(
        "extensionProviders: [{{name: p, envoyExtAuthzHttp: {{service: a.b.svc.cluster.local, port: 80, {body}}}}}]"
    )
}

#[test]
fn an_empty_text_is_istios_default() {
    for text in
        ["", "\n", "# nothing\n", "---\n", "{}", "rootNamespace: null\ntrustDomain: ~\n", "maille: {}"]
    {
        assert_eq!(read(text), MeshConfig::default(), "{text:?}");
    }
    assert_eq!(MeshConfig::default().root_namespace, "istio-system");
}

/// What `istioctl install` writes.
#[test]
fn istios_own_configuration_is_accepted() {
    let stock = "\
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  proxyMetadata: {}
defaultProviders:
  metrics:
  - prometheus
enablePrometheusMerge: true
extensionProviders:
- name: prometheus
  prometheus: {}
enableAutoMtls: true
enableTracing: true
ingressControllerMode: STRICT
ingressClass: istio
connectTimeout: 10s
protocolDetectionTimeout: 0s
rootNamespace: istio-system
trustDomain: cluster.local
";
    let config = read(stock);
    assert_eq!(config.trust_domain.as_ref().map(TrustDomain::as_str), Some("cluster.local"));
    assert_eq!(MeshConfig { trust_domain: None, ..config }, MeshConfig::default());
}

#[test]
fn every_field_that_counts_is_read() {
    let config = read(
        "\
rootNamespace: mesh
trustDomain: td-new
trustDomainAliases: [td-old, corp.example]
pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
inboundTrafficPolicy: {mode: LOCALHOST}
meshMTLS: {minProtocolVersion: TLSV1_3, ecdhCurves: [P-256, P-521, X25519]}
defaultConfig:
  holdApplicationUntilProxyStarts: true
  proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}
accessLogFile: /dev/stdout
accessLogEncoding: JSON
protocolDetectionTimeout: 1500ms
maille: {explainInResponse: true, keepExpiredTcp: true}
extensionProviders:
- name: http
  envoyExtAuthzHttp:
    service: auth/ext-authz.auth.svc.cluster.local
    port: 8000
    timeout: 2s
    pathPrefix: /check
    failOpen: true
    clearRouteCache: true
    statusOnError: \"503\"
    includeHeadersInCheck: [x-old]
    includeRequestHeadersInCheck: [Authorization, x-*]
    includeAdditionalHeadersInCheck: {x-from: mesh}
    includeRequestBodyInCheck: {maxRequestBytes: 1024, allowPartialMessage: true}
    headersToUpstreamOnAllow: [\"*-user\"]
    headersToDownstreamOnDeny: [set-cookie]
    headersToDownstreamOnAllow: [x-rate]
- name: grpc
  envoyExtAuthzGrpc: {service: 10.0.0.1, port: 9000}
",
    );
    let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let domain = |text: &str| TrustDomain::parse(text).expect("valid");
    let expected = MeshConfig {
        root_namespace: "mesh".to_owned(),
        trust_domain: Some(domain("td-new")),
        trust_domain_aliases: vec![domain("td-old"), domain("corp.example")],
        path_normalization: PathNormalization::DecodeAndMergeSlashes,
        registry_only: true,
        deliver_to_localhost: true,
        default_config: ProxyConfig {
            hold_application_until_proxy_starts: Some(true),
            dns_capture: Some(true),
            ..ProxyConfig::default()
        },
        access_log: AccessLog::Json,
        protocol_detection_timeout: Some(Duration::from_millis(1500)),
        mesh_tls: MeshTls { key_exchanges: vec!["P-256".to_owned(), "X25519".to_owned()], tls13_only: true },
        ca_certificates: vec![],
        explain_in_response: true,
        keep_expired_tcp: true,
        extension_providers: vec![
            ExtensionProvider {
                name: "http".to_owned(),
                host: "ext-authz.auth.svc.cluster.local".to_owned(),
                port: 8000,
                timeout: Duration::from_secs(2),
                fail_open: true,
                status_on_error: 503,
                body: Some(CheckBody {
                    max_request_bytes: 1024,
                    allow_partial_message: true,
                    pack_as_bytes: false,
                }),
                kind: ProviderKind::Http(HttpProvider {
                    path_prefix: "/check".to_owned(),
                    include_request_headers_in_check: names(&["Authorization", "x-*"]),
                    include_additional_headers_in_check: [("x-from".to_owned(), "mesh".to_owned())].into(),
                    headers_to_upstream_on_allow: names(&["*-user"]),
                    headers_to_downstream_on_deny: names(&["set-cookie"]),
                    headers_to_downstream_on_allow: names(&["x-rate"]),
                }),
            },
            ExtensionProvider {
                name: "grpc".to_owned(),
                host: "10.0.0.1".to_owned(),
                port: 9000,
                timeout: Duration::from_secs(600),
                fail_open: false,
                status_on_error: 403,
                body: None,
                kind: ProviderKind::Grpc,
            },
        ],
    };
    assert_eq!(config, expected);
}

#[test]
fn the_older_header_list_counts_where_the_newer_is_empty() {
    for (lists, expected) in [
        ("includeHeadersInCheck: [a], includeRequestHeadersInCheck: []", "a"),
        ("includeHeadersInCheck: [a], includeRequestHeadersInCheck: [b]", "b"),
    ] {
        let config = read(&provider(lists));
        let Some(ProviderKind::Http(http)) = config.extension_providers.first().map(|p| p.kind.clone())
        else {
            panic!("no provider");
        };
        assert_eq!(http.include_request_headers_in_check, [expected], "{lists}");
    }
}

#[test]
fn what_istio_does_and_the_mesh_does_not_is_refused() {
    for (text, expected) in [
        ("rootNamspace: a\n", "1:1 ML0103 rootNamspace"),
        ("accessLogFile: /var/log/x\n", "1:16 ML0108 accessLogFile"),
        ("accessLogFormat: '%PROTOCOL%'\n", "1:18 ML0108 accessLogFormat"),
        ("accessLogEncoding: YAML\n", "1:20 ML0105 accessLogEncoding"),
        ("outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}\n", "1:31 ML0108 outboundTrafficPolicy.mode"),
        ("outboundTrafficPolicy: {mode: REGISTRY}\n", "1:31 ML0105 outboundTrafficPolicy.mode"),
        ("outboundTrafficPolicy: {tls: {mode: SIMPLE}}\n", "1:30 ML0108 outboundTrafficPolicy.tls"),
        ("pathNormalization: {normalization: merge}\n", "1:36 ML0105 pathNormalization.normalization"),
        ("enableAutoMtls: false\n", "1:17 ML0108 enableAutoMtls"),
        ("connectTimeout: 1s\n", "1:17 ML0108 connectTimeout"),
        ("meshMTLS: {ecdhCurves: [X25519, brainpool]}\n", "1:33 ML0106 meshMTLS.ecdhCurves[1]"),
        ("meshMTLS: {ecdhCurves: [P-256, P-256]}\n", "1:32 ML0106 meshMTLS.ecdhCurves[1]"),
        ("meshMTLS: {ecdhCurves: [P-521]}\n", "1:24 ML0108 meshMTLS.ecdhCurves"),
        ("meshMTLS: {ecdhCurves: X25519MLKEM768}\n", "1:24 ML0106 meshMTLS.ecdhCurves"),
        ("meshMTLS: {ecdhCurves: [7]}\n", "1:25 ML0106 meshMTLS.ecdhCurves[0]"),
        ("meshMTLS: {maxProtocolVersion: TLSV1_2}\n", "1:32 ML0108 meshMTLS.maxProtocolVersion"),
        ("meshMTLS: {minProtocolVersion: TLSV1_1}\n", "1:32 ML0105 meshMTLS.minProtocolVersion"),
        ("meshMTLS: {cipherSuites: [A]}\n", "1:26 ML0108 meshMTLS.cipherSuites"),
        ("inboundTrafficPolicy: {mode: LOOPBACK}\n", "1:30 ML0105 inboundTrafficPolicy.mode"),
        ("mesh_mTLS: {minProtocolVersion: TLSV1_2}\n", "1:1 ML0103 mesh_mTLS"),
        ("mesh_config: {}\n", "1:1 ML0103 mesh_config"),
        ("enable_auto_mtls: false\n", "1:19 ML0108 enable_auto_mtls"),
        ("defaultConfig: {tracing: {sampling: 1}}\n", "1:26 ML0108 defaultConfig.tracing"),
        ("defaultConfig: {concurrency: 400}\n", "1:30 ML0106 defaultConfig.concurrency"),
        ("defaultConfig: {drainDuraton: 5s}\n", "1:17 ML0103 defaultConfig.drainDuraton"),
        ("defaultConfig: 3\n", "1:16 ML0104 defaultConfig"),
        ("defaultProviders: {accessLogging: [envoy]}\n", "1:19 ML0108 defaultProviders"),
        ("discoverySelectors: [{matchLabels: {a: b}}]\n", "1:21 ML0108 discoverySelectors"),
        ("rootNamespace: A\n", "1:16 ML0106 rootNamespace"),
        ("trustDomain: a_b\n", "1:14 ML0106 trustDomain"),
        ("trustDomain: ''\n", "1:14 ML0106 trustDomain"),
        ("trustDomainAliases: [a, 'b/c']\n", "1:25 ML0106 trustDomainAliases[1]"),
        ("protocolDetectionTimeout: 5\n", "1:27 ML0104 protocolDetectionTimeout"),
        ("protocolDetectionTimeout: 5 s\n", "1:27 ML0106 protocolDetectionTimeout"),
        ("protocolDetectionTimeout: 1us\n", "1:27 ML0106 protocolDetectionTimeout"),
        ("maille: {explain: true}\n", "1:10 ML0103 maille.explain"),
        ("- a\n", "1:1 ML0109 "),
        ("a: [\n", "1:4 ML0101 "),
        ("rootNamespace: a\nrootNamespace: b\n", "2:1 ML0102 rootNamespace"),
        ("rootNamespace: a\nroot_namespace: b\n", "1:1 ML0102 "),
        ("{}\n---\n{}\n", "3:1 ML0109 "),
        ("kind: XList\nitems: []\n", "1:1 ML0103 kind"),
    ] {
        let found = found(text);
        assert_eq!(found.first().map(String::as_str), Some(expected), "{text}: {found:#?}");
    }
}

/// Reference authorization 15.
#[test]
fn providers_are_checked_as_istio_does() {
    let in_list = |entry: &str| found(&format!("extensionProviders: [{entry}]"));
    let in_grpc = |body: &str| in_list(&format!("{{name: p, envoyExtAuthzGrpc: {{{body}}}}}"));
    let codes = |found: Vec<String>| {
        let short = |line: String| line.split_once(' ').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        found
            .into_iter()
            .map(short)
            .map(|line| line.replace("extensionProviders[0].", ""))
            .collect::<Vec<_>>()
    };
    let long = "a".repeat(64);
    for (name, fine) in [
        ("ext-authz", true),
        ("0", true),
        ("-a", false),
        ("a-", false),
        ("A", false),
        ("a.b", false),
        (long.as_str(), false),
    ] {
        let body = "envoyExtAuthzGrpc: {service: a.b, port: 1}";
        let found = codes(in_list(&format!("{{name: \"{name}\", {body}}}")));
        assert_eq!(found, if fine { vec![] } else { vec!["ML0106 name".to_owned()] }, "{name}");
    }
    for (entry, expected) in [
        ("{envoyExtAuthzGrpc: {service: a.b, port: 1}}", vec!["ML0107 name"]),
        ("{name: p}", vec!["ML0106 extensionProviders[0]"]),
        ("{name: p, zipkin: {service: a.b, port: 1}}", vec!["ML0108 zipkin"]),
        ("{name: prometheus, prometheus: {}}", vec![]),
        ("{name: p, envoyExtAuthz: {}}", vec!["ML0106 extensionProviders[0]", "ML0103 envoyExtAuthz"]),
        (
            "{name: p, envoyExtAuthzGrpc: {service: a.b, port: 1}, envoyExtAuthzHttp: {service: a.b, port: 1}}",
            vec!["ML0106 extensionProviders[0]"],
        ),
    ] {
        let mut found = codes(in_list(entry));
        found.sort();
        let mut expected: Vec<_> = expected.into_iter().map(str::to_owned).collect();
        expected.sort();
        assert_eq!(found, expected, "{entry}");
    }
    let twice = "{name: p, envoyExtAuthzGrpc: {service: a.b, port: 1}}";
    assert_eq!(
        found(&format!("extensionProviders:\n- {twice}\n- {twice}\n")),
        ["3:4 ML0102 extensionProviders[1].name"]
    );
    for (body, expected) in [
        ("service: a.b, port: 65535", None),
        ("service: '::1', port: 1", None),
        ("service: a.b.svc.cluster.local, port: 1, timeout: 100ms, statusOnError: '429'", None),
        ("port: 1", Some("ML0107 envoyExtAuthzGrpc.service")),
        ("service: '', port: 1", Some("ML0107 envoyExtAuthzGrpc.service")),
        ("service: a, port: 1", Some("ML0106 envoyExtAuthzGrpc.service")),
        ("service: '*.b', port: 1", Some("ML0106 envoyExtAuthzGrpc.service")),
        ("service: 'a.b:80', port: 1", Some("ML0106 envoyExtAuthzGrpc.service")),
        ("service: 'A/a.b', port: 1", Some("ML0106 envoyExtAuthzGrpc.service")),
        ("service: n/a.b, port: 1", Some("ML0108 envoyExtAuthzGrpc.service")),
        ("service: n/a.m.svc.cluster.local, port: 1", Some("ML0106 envoyExtAuthzGrpc.service")),
        ("service: a.b", Some("ML0107 envoyExtAuthzGrpc.port")),
        ("service: a.b, port: 0", Some("ML0106 envoyExtAuthzGrpc.port")),
        ("service: a.b, port: 65536", Some("ML0106 envoyExtAuthzGrpc.port")),
        ("service: a.b, port: '80'", Some("ML0104 envoyExtAuthzGrpc.port")),
        ("service: a.b, port: 1, timeout: 0s", Some("ML0106 envoyExtAuthzGrpc.timeout")),
        ("service: a.b, port: 1, timeout: 1.5ms", Some("ML0106 envoyExtAuthzGrpc.timeout")),
        ("service: a.b, port: 1, statusOnError: '99'", Some("ML0106 envoyExtAuthzGrpc.statusOnError")),
        ("service: a.b, port: 1, statusOnError: '418'", Some("ML0106 envoyExtAuthzGrpc.statusOnError")),
        ("service: a.b, port: 1, statusOnError: 503", Some("ML0104 envoyExtAuthzGrpc.statusOnError")),
        ("service: a.b, port: 1, pathPrefix: /x", Some("ML0103 envoyExtAuthzGrpc.pathPrefix")),
        (
            "service: a.b, port: 1, includeRequestBodyInCheck: {}",
            Some("ML0107 envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes"),
        ),
        (
            "service: a.b, port: 1, includeRequestBodyInCheck: {maxRequestBytes: -1}",
            Some("ML0106 envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes"),
        ),
    ] {
        let found = codes(in_grpc(body));
        assert_eq!(found, expected.into_iter().map(str::to_owned).collect::<Vec<_>>(), "{body}");
    }
    for (body, expected) in [
        ("pathPrefix: /check", None),
        ("pathPrefix: check", Some("ML0106 envoyExtAuthzHttp.pathPrefix")),
        ("pathPrefix: '/a?b'", Some("ML0106 envoyExtAuthzHttp.pathPrefix")),
        ("headersToUpstreamOnAllow: ['*']", Some("ML0106 envoyExtAuthzHttp.headersToUpstreamOnAllow[0]")),
        ("headersToDownstreamOnDeny: ['']", Some("ML0106 envoyExtAuthzHttp.headersToDownstreamOnDeny[0]")),
        (
            "headersToDownstreamOnAllow: ['a b']",
            Some("ML0106 envoyExtAuthzHttp.headersToDownstreamOnAllow[0]"),
        ),
        (
            "includeAdditionalHeadersInCheck: {x: \"a\\nb\"}",
            Some("ML0106 envoyExtAuthzHttp.includeAdditionalHeadersInCheck.x"),
        ),
    ] {
        let found = codes(found(&provider(body)));
        assert_eq!(found, expected.into_iter().map(str::to_owned).collect::<Vec<_>>(), "{body}");
    }
}

fn config_map(mesh: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": mesh},
    })
}

#[test]
fn the_config_map_is_checked_where_it_is_written() {
    assert!(crate::check(&config_map("trustDomain: a.b\n")).is_ok());
    let errors = crate::check(&config_map("a: 1\nmaille:\n  explain: true\n")).expect_err("refused");
    let shown: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 2, "{shown:#?}");
    assert!(shown[0].starts_with("data.mesh: line 1: a: unknown field 'a'"), "{shown:#?}");
    assert!(
        shown[1].starts_with("data.mesh: line 3: maille.explain: unknown field 'explain'; known here"),
        "{shown:#?}"
    );

    let mut other = config_map("a: 1");
    other["metadata"]["namespace"] = "shop".into();
    assert!(crate::check(&other).is_ok(), "another namespace's ConfigMap is its own business");
    other["metadata"]["namespace"] = "istio-system".into();
    other["data"] = serde_json::json!({"mesh": "", "meshNetworks": "networks: {}"});
    assert!(crate::check(&other).is_ok());
    other["data"] = serde_json::json!({"mesh": "", "meshNetworks": "networks: {a: {}}", "mash": ""});
    assert_eq!(crate::check(&other).expect_err("refused").len(), 2);
    other["data"] = serde_json::json!({});
    assert_eq!(crate::check(&other).expect_err("refused")[0].path, "data.mesh");
}

/// A mistake inside a block of text is pointed at in the file.
#[test]
fn lines_of_the_file_are_named() {
    let file = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: istio
  namespace: istio-system
data:
  mesh: |

    # comment
    pathNormalization:
      normalization: BASIC
    rootNamespace: X
";
    let found = crate::load(&[("mesh.yaml".to_owned(), file.to_owned())]).expect_err("refused");
    let places: Vec<_> = found.iter().map(|d| (d.line, d.column)).collect();
    assert_eq!(places, [(11, 22), (12, 20)], "{found:#?}");
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,80}") {
        let _ = check(&text);
        let _ = crate::check(&config_map(&text));
    }

    #[test]
    fn no_text_of_the_right_words_panics(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "extensionProviders", "name", "envoyExtAuthzHttp", "envoyExtAuthzGrpc", "service", "port",
                "includeRequestBodyInCheck", "maxRequestBytes", "headersToUpstreamOnAllow", "defaultConfig",
                "trustDomainAliases", "pathNormalization", "maille", ":", ": ", "\n", "\n  ", "\n- ", "- ", "[", "]",
                "{", "}", "|", "&a", "*a", "<<", "*", "/", "''", "\"", "0", "1e400", "-1", "é", "\t", "---\n", "#",
            ]),
            0..60,
        ),
    ) {
        let _ = check(&words.concat());
    }
}

const PEM: &str = "-----BEGIN CERTIFICATE-----\\nAA==\\n-----END CERTIFICATE-----\\n";

#[test]
fn whom_the_mesh_believes_besides_is_read() {
    let text = format!(
        "caCertificates:\n- pem: \"{PEM}\"\n- spiffeBundleUrl: https://b.example/bundle\n  trustDomains: [b.example, c.example]\n\
         - pem: \"{PEM}\"\n  spiffe_bundle_url: https://d.example:15016/\n  trust_domains: [d.example]\n"
    );
    let read = check(&text).unwrap_or_else(|found| panic!("{found:#?}")).ca_certificates;
    let domains =
        |entry: &CaCertificate| entry.trust_domains.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(read.len(), 3);
    assert!(read[0].pem.is_some() && read[0].spiffe_bundle_url.is_none() && read[0].trust_domains.is_empty());
    assert_eq!(read[1].spiffe_bundle_url.as_deref(), Some("https://b.example/bundle"));
    assert_eq!(domains(&read[1]), ["b.example", "c.example"]);
    assert!(read[2].pem.is_some() && read[2].spiffe_bundle_url.is_some(), "{:?}", read[2]);
    assert_eq!(domains(&read[2]), ["d.example"]);
}

#[test]
fn what_nobody_could_be_believed_by_is_refused() {
    for (text, expected) in [
        ("caCertificates: a\n", "1:17 ML0104 caCertificates"),
        ("caCertificates: [{}]\n", "1:18 ML0107 caCertificates[0]"),
        ("caCertificates: [{pem: text}]\n", "1:24 ML0106 caCertificates[0].pem"),
        ("caCertificates: [{pem: '', spiffeBundleUrl: https://a/}]\n", "1:24 ML0106 caCertificates[0].pem"),
        ("caCertificates: [{pem: 1}]\n", "1:24 ML0104 caCertificates[0].pem"),
        ("caCertificates: [{spiffeBundleUrl: http://a/}]\n", "1:36 ML0106 caCertificates[0].spiffeBundleUrl"),
        (
            "caCertificates: [{spiffeBundleUrl: https://u:p@a/}]\n",
            "1:36 ML0106 caCertificates[0].spiffeBundleUrl",
        ),
        (
            "caCertificates: [{spiffeBundleUrl: https://a/, trustDomains: [A_B]}]\n",
            "1:63 ML0106 caCertificates[0].trustDomains[0]",
        ),
        (
            "caCertificates: [{spiffeBundleUrl: https://a/, certSigners: [x]}]\n",
            "1:61 ML0108 caCertificates[0].certSigners",
        ),
        (
            "caCertificates: [{spiffeBundleUrl: https://a/, trustDomain: [x]}]\n",
            "1:48 ML0103 caCertificates[0].trustDomain",
        ),
        (
            "caCertificates: [{spiffeBundleUrl: https://a/, endpointSpiffeId: spiffe://a/b}]\n",
            "1:66 ML0106 caCertificates[0].endpointSpiffeId",
        ),
    ] {
        let found = found(text);
        assert_eq!(found.first().map(String::as_str), Some(expected), "{text}: {found:#?}");
    }
}

#[test]
fn key_exchanges_keep_their_order_and_one_alone_is_demanded() {
    let only = |yaml: &str| read(&format!("meshMTLS: {{{yaml}}}\n")).mesh_tls.is_post_quantum_only();
    assert!(only("ecdhCurves: [X25519MLKEM768]"));
    assert!(only("ecdh_curves: [X25519MLKEM768, P-521]"), "what nobody can negotiate changes nothing");
    for other in ["", "ecdhCurves: []", "ecdhCurves: [X25519MLKEM768, X25519]", "ecdhCurves: [X25519]"] {
        assert!(!only(other), "{other}");
    }
    let tls = read("meshMTLS: {ecdhCurves: [P-384, X25519MLKEM768]}\n").mesh_tls;
    assert_eq!((tls.key_exchanges.join(" ").as_str(), tls.tls13_only), ("P-384 X25519MLKEM768", false));
}
