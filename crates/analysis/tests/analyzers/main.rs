//! Each finding: when it is reported, where, and when not.

mod policies;
#[path = "../support/mod.rs"]
mod support;
mod traffic;

use support::{analyze_files, analyze_live, codes, expect};

/// A namespace with a sidecar for everything in it.
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp-db, port: 5432, targetPort: 5432}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers:
      - {name: web, image: web, ports: [{containerPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: base, namespace: shop}
spec: {}
---
";

/// A policy of the shop with this spec, on the lines after `SHOP`.
fn policy(spec: &str) -> String {
    format!(
        "{SHOP}apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

fn peer_authentication(spec: &str) -> String {
    format!(
        "{SHOP}apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

fn destination_rule(spec: &str) -> String {
    format!(
        "{SHOP}apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

fn service_entry(spec: &str) -> String {
    format!(
        "{SHOP}apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn a_mesh_that_is_right_has_no_findings() {
    assert_eq!(codes(&analyze_files(SHOP)), [""; 0]);
}

#[test]
fn ist0101_names_namespaces_that_do_not_exist() {
    for (namespaces, expected) in [
        ("[shop]", None),
        ("[SHOP]", None),
        ("[\"sh*\"]", None),
        ("[\"*op\", \"*\"]", None),
        ("[istio-system, default]", None),
        ("[shopp]", Some("did you mean 'shop'?")),
        ("[\"bank*\"]", Some("'bank*'")),
    ] {
        for field in ["namespaces", "notNamespaces"] {
            let text = policy(&format!("{{rules: [{{from: [{{source: {{{field}: {namespaces}}}}}]}}]}}"));
            expect(&text, "IST0101", expected);
        }
        let when = format!("{{rules: [{{when: [{{key: source.namespace, values: {namespaces}}}]}}]}}");
        expect(&policy(&when), "IST0101", expected);
    }
}

#[test]
fn ist0127_names_policies_that_select_nothing() {
    expect(&policy("{selector: {matchLabels: {app: web}}}"), "IST0127", None);
    expect(&policy("{selector: {matchLabels: {app: wep}}}"), "IST0127", Some("did you mean app=web?"));
    expect(&policy("{selector: {matchLabels: {app: cart}}}"), "IST0127", Some("app=cart"));
    let elsewhere = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: NS}\nspec: SPEC\n";
    let in_namespace =
        |ns: &str, spec: &str| format!("{SHOP}{}", elsewhere.replace("NS", ns).replace("SPEC", spec));
    expect(&in_namespace("default", "{}"), "IST0127", Some("protects nothing"));
    expect(
        &in_namespace("default", "{selector: {matchLabels: {app: web}}}"),
        "IST0127",
        Some("namespace shop has one"),
    );
    expect(&in_namespace("istio-system", "{}"), "IST0127", None);
    expect(&in_namespace("istio-system", "{selector: {matchLabels: {app: web}}}"), "IST0127", None);
    expect(
        &in_namespace("istio-system", "{selector: {matchLabels: {app: x}}}"),
        "IST0127",
        Some("in the mesh"),
    );
    let naked = policy("{selector: {matchLabels: {app: web}}}").replace("istio-injection: enabled", "a: b");
    expect(&naked, "IST0127", Some("without a sidecar there is shop/web"));
    // Gateways and services, not workloads.
    let attached = "{targetRefs: [{kind: Service, group: \"\", name: web}]}";
    expect(&policy(attached), "IST0127", None);
}

#[test]
fn ist0102_and_ist0123_look_at_labels_of_namespaces() {
    let namespace = |name: &str, labels: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n")
    };
    expect(&namespace("shop", "{}"), "IST0102", Some("kubectl label namespace shop istio-injection=enabled"));
    for labels in ["{istio-injection: enabled}", "{istio-injection: disabled}", "{istio.io/rev: canary}"] {
        expect(&namespace("shop", labels), "IST0102", None);
        expect(&namespace("shop", labels), "IST0123", None);
    }
    for system in ["kube-system", "kube-public", "istio-system"] {
        expect(&namespace(system, "{}"), "IST0102", None);
    }
    let both = "{istio-injection: enabled, istio.io/rev: canary}";
    expect(&namespace("shop", both), "IST0123", Some("istio-injection, istio.io/rev"));
    expect(&namespace("shop", "{istio-injection: disabled, istio.io/rev: canary}"), "IST0123", None);
}

#[test]
fn ist0103_names_pods_without_the_sidecar_they_should_have() {
    let pod = |extra: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{istio-injection: enabled}}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop{extra}}}\nspec: {{{spec}}}\n"
        )
    };
    let naked = "containers: [{name: a, image: a}]";
    let found = analyze_live(&pod("", naked));
    assert_eq!(codes(&found), ["IST0103"]);
    assert_eq!(found[0].to_string().split(' ').next(), Some("Warning"));
    assert_eq!(found[0].reference, None, "live objects have no place in a file");
    for (extra, spec) in [
        ("", "containers: [{name: a, image: a}, {name: istio-proxy, image: a}]"),
        ("", "initContainers: [{name: istio-proxy, image: a}], containers: [{name: a, image: a}]"),
        ("", "hostNetwork: true, containers: [{name: a, image: a}]"),
        (", labels: {sidecar.istio.io/inject: \"false\"}", naked),
    ] {
        let found = analyze_live(&pod(extra, spec));
        assert!(!codes(&found).contains(&"IST0103"), "{extra} {spec}: {found:?}");
    }
    // A Pod that is not there yet gets its sidecar when it is created.
    expect(&pod("", naked), "IST0103", None);
    let disabled = pod("", naked).replace("enabled", "disabled");
    assert!(!codes(&analyze_live(&disabled)).contains(&"IST0103"));
}

#[test]
fn ist0118_names_ports_that_do_not_tell_their_protocol() {
    let service = |port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: shop}}\nspec: {{ports: [{port}]}}\n"
        )
    };
    for good in [
        "{name: http, port: 80}",
        "{name: http-web, port: 80}",
        "{name: HTTP2-x, port: 80}",
        "{name: grpc-web, port: 80}",
        "{name: web, port: 80, appProtocol: http}",
        "{name: web, port: 80, appProtocol: kubernetes.io/h2c}",
        "{name: dns, port: 53, protocol: UDP}",
        "{port: 3306}",
    ] {
        expect(&service(good), "IST0118", None);
    }
    for (bad, text) in [
        ("{name: web, port: 80, targetPort: 8080}", "port name 'web' (port: 80, targetPort: 8080)"),
        ("{port: 80}", "port name ''"),
        ("{name: httpx, port: 80}", "'httpx'"),
        ("{name: web, port: 80, appProtocol: private}", "'web'"),
    ] {
        expect(&service(bad), "IST0118", Some(text));
    }
}

#[test]
fn ist0116_and_ist0137_compare_the_services_of_a_deployment() {
    let second = |ports: &str| {
        format!(
            "{SHOP}apiVersion: v1\nkind: Service\nmetadata: {{name: other, namespace: shop}}\n\
             spec: {{selector: {{app: web}}, ports: [{ports}]}}\n"
        )
    };
    let same = second("{name: http, port: 80, targetPort: 8080}");
    expect(&same, "IST0116", None);
    expect(&same, "IST0137", None);
    expect(&second("{name: udp, port: 80, protocol: UDP, targetPort: 8080}"), "IST0116", Some("TCP, UDP"));
    expect(&second("{name: http, port: 8000, targetPort: 8080}"), "IST0137", Some("80, 8000"));
    expect(&second("{name: http, port: 8000, targetPort: 8000}"), "IST0137", None);
}

#[test]
fn ist0106_and_ist0133_give_each_mistake_with_its_line() {
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: a\n  namespace: shop\nspec:\n  mtls:\n    mode: STRIKT\n  portLevelMtls:\n    99999:\n      mode: STRICT\n";
    let found = analyze_files(text);
    let places: Vec<_> = found
        .iter()
        .filter(|m| m.code.code == "IST0106")
        .map(|m| m.reference.as_deref().unwrap_or_default())
        .collect();
    assert_eq!(places, ["test.yaml:8", "test.yaml:9", "test.yaml:10"], "{found:#?}");
    expect(&policy("{selector: {}}"), "IST0133", Some("names no label"));
    expect(&policy("{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"), "IST0133", Some("TCP"));
    expect(&policy("{action: DENY}"), "IST0106", Some("spec.rules"));
    expect(&policy("{action: DENY, rules: [{}]}"), "IST0106", None);
}

#[test]
fn ml0108_tells_what_nothing_enforces_from_what_is_wrong() {
    let virtual_service = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: shop}\nspec: {hosts: [a]}\n";
    expect(virtual_service, "ML0108", Some("not enforced"));
    expect(virtual_service, "IST0106", None);
    let unknown = virtual_service.replace("VirtualService", "WorkloadGroup");
    expect(&unknown, "ML0108", Some("WorkloadGroup"));
    let ordinary = "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: a, namespace: shop}\n";
    expect(ordinary, "ML0108", None);
}

#[test]
fn annotations_are_known_placed_valid_and_not_outlived() {
    let pod = |annotations: &str| {
        format!(
            "{SHOP}apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop, annotations: {{{annotations}}}}}\n\
             spec: {{containers: [{{name: a, image: a}}]}}\n"
        )
    };
    let service = |annotations: &str| {
        format!(
            "{SHOP}apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: shop, annotations: {{{annotations}}}}}\n\
             spec: {{ports: [{{name: http, port: 80}}]}}\n"
        )
    };
    let good = "traffic.sidecar.istio.io/excludeOutboundPorts: \"80,443\"";
    for code in ["IST0107", "IST0108", "IST0125", "IST0135", "ML0211"] {
        expect(&pod(good), code, None);
        expect(&pod("example.com/other: x"), code, None);
    }
    expect(&service(good), "IST0107", Some("belongs to a Pod"));
    let slip = "traffic.sidecar.istio.io/excludeOutboundPort: \"80\"";
    expect(&pod(slip), "IST0108", Some("did you mean traffic.sidecar.istio.io/excludeOutboundPorts?"));
    expect(
        &pod("traffic.sidecar.istio.io/excludeOutboundPorts: \"abc\""),
        "IST0125",
        Some("'abc' is no port"),
    );
    expect(
        &pod("traffic.sidecar.istio.io/includeOutboundIPRanges: \"10.0.0\""),
        "IST0125",
        Some("address range"),
    );
    expect(&pod("sidecar.istio.io/rewriteAppHTTPProbers: \"maybe\""), "IST0125", Some("boolean"));
    expect(&pod("sidecar.istio.io/inject: \"true\""), "IST0135", Some("label of the same name"));
    expect(&pod("sidecar.istio.io/statsCompression: \"true\""), "ML0211", Some("no effect"));
    let template = SHOP.replace(
        "    metadata: {labels: {app: web}}",
        "    metadata: {labels: {app: web}, annotations: {sidecar.istio.io/injekt: \"a\"}}",
    );
    expect(&template, "IST0108", Some("sidecar.istio.io/inject?"));
    let deployment = SHOP.replace(
        "kind: Deployment\nmetadata: {name: web, namespace: shop}",
        "kind: Deployment\nmetadata: {name: web, namespace: shop, annotations: {sidecar.istio.io/inject: \"false\"}}",
    );
    expect(&deployment, "IST0107", Some("spec.template.metadata.annotations"));
}

#[test]
fn ist0144_finds_applications_that_run_as_the_sidecar() {
    let pod = |spec: &str| {
        SHOP.replace("      serviceAccountName: web", &format!("      serviceAccountName: web\n      {spec}"))
    };
    expect(&pod("securityContext: {runAsUser: 1337}"), "IST0144", Some("1337"));
    expect(&pod("securityContext: {runAsUser: 1000}"), "IST0144", None);
    let container = SHOP.replace("image: web,", "image: web, securityContext: {runAsUser: 1337},");
    expect(&container, "IST0144", Some("1337"));
}

#[test]
fn ist0128_and_ist0129_want_a_ca() {
    let top = |tls: &str| destination_rule(&format!("{{host: a.example, trafficPolicy: {{tls: {tls}}}}}"));
    expect(&top("{mode: SIMPLE}"), "IST0128", Some("caCertificates"));
    expect(&top("{mode: SIMPLE, caCertificates: /etc/ca.pem}"), "IST0128", None);
    expect(&top("{mode: SIMPLE, caCertificates: system}"), "IST0128", None);
    expect(&top("{mode: SIMPLE, insecureSkipVerify: true}"), "IST0128", Some("insecureSkipVerify"));
    expect(&top("{mode: ISTIO_MUTUAL}"), "IST0128", None);
    let port = destination_rule(
        "{host: a.example, trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]}}",
    );
    expect(&port, "IST0129", Some("port 443"));
    expect(&port, "IST0128", None);
}

#[test]
fn ist0173_and_ist0174_look_for_what_a_rule_is_about() {
    let host = |host: &str| destination_rule(&format!("{{host: {host}}}"));
    for known in ["web", "web.shop.svc.cluster.local", "\"*.shop.svc.cluster.local\"", "\"*\""] {
        expect(&host(known), "IST0174", None);
    }
    expect(&host("wep"), "IST0174", Some("did you mean web.shop.svc.cluster.local?"));
    expect(&host("web.shop"), "IST0174", Some("write web.shop.svc.cluster.local"));
    expect(&host("api.example"), "IST0174", Some("ServiceEntry"));
    let entry = service_entry(
        "{hosts: [api.example], ports: [{number: 443, name: https, protocol: HTTPS}], resolution: DNS}",
    );
    let rule = |namespace: &str| {
        format!(
            "{entry}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: {namespace}}}\nspec: {{host: api.example}}\n"
        )
    };
    expect(&rule("shop"), "IST0174", None);
    expect(&rule("default"), "IST0174", None);
    let private = rule("default").replace("resolution: DNS", "resolution: DNS, exportTo: [\".\"]");
    expect(&private, "IST0174", Some("no visible ServiceEntry"));

    let subset =
        |labels: &str| destination_rule(&format!("{{host: web, subsets: [{{name: v1, labels: {labels}}}]}}"));
    expect(&subset("{app: web}"), "IST0173", None);
    expect(&subset("{version: v1}"), "IST0173", Some("version=v1"));
}

#[test]
fn ist0134_and_ist0177_tell_service_entries_apart() {
    let entry = |port: &str, more: &str| {
        service_entry(&format!("{{hosts: [db.corp], ports: [{port}], resolution: DNS{more}}}"))
    };
    // Hosts that get addresses of the mesh's giving are told apart by these, where DNS is captured.
    expect(&entry("{number: 5432, name: tcp, protocol: TCP}", ""), "IST0134", None);
    expect(&entry("{number: 5432, name: tcp, protocol: TCP}", ""), "IST0133", Some("ISTIO_META_DNS_CAPTURE"));
    let passing =
        |port: &str| service_entry(&format!("{{hosts: [db.corp], ports: [{port}], resolution: NONE}}"));
    expect(&passing("{number: 5432, name: tcp, protocol: TCP}"), "IST0134", Some("5432"));
    expect(&passing("{number: 5432, name: x}"), "IST0134", Some("5432"));
    expect(&entry("{number: 5432, name: tcp, protocol: TCP}", ", addresses: [10.9.0.1]"), "IST0134", None);
    expect(&entry("{number: 443, name: https, protocol: HTTPS}", ""), "IST0134", None);

    let two = |second: &str, more: &str| {
        format!(
            "{}---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: q, namespace: shop}}\n\
             spec: {{hosts: [DB.corp], ports: [{second}], resolution: DNS{more}}}\n",
            entry("{number: 443, name: https, protocol: HTTPS}", more)
        )
    };
    expect(&two("{number: 443, name: https, protocol: HTTPS}", ""), "IST0177", None);
    expect(&two("{number: 80, name: http, protocol: HTTP}", ""), "IST0177", None);
    expect(&two("{number: 443, name: http, protocol: HTTP}", ""), "IST0177", Some("agree on one"));
    expect(&two("{number: 443, name: http, protocol: HTTP}", ", exportTo: [\"~\"]"), "IST0177", None);
}

#[test]
fn ml0201_says_which_peer_authentication_wins() {
    let second = |name: &str, spec: &str| {
        format!(
            "{}---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n",
            peer_authentication("{mtls: {mode: STRICT}}")
        )
    };
    expect(
        &second("q", "{mtls: {mode: PERMISSIVE}}"),
        "ML0201",
        Some("shop/p is of the same age and first by name"),
    );
    expect(&second("q", "{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}}"), "ML0201", None);
    let selecting = |labels: &str| {
        second("q", &format!("{{selector: {{matchLabels: {labels}}}, mtls: {{mode: STRICT}}}}"))
            + "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: r, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}\n"
    };
    expect(&selecting("{app: web}"), "ML0201", Some("ignored for shop/web: shop/q"));
    expect(&selecting("{app: other}"), "ML0201", None);
    let older = second("a-new", "{mtls: {mode: STRICT}}").replace(
        "{name: p, namespace: shop}",
        "{name: p, namespace: shop, creationTimestamp: \"2024-01-01T00:00:00Z\"}",
    );
    expect(&older, "ML0201", Some("shop/p is the older one"));
}

#[test]
fn ml0202_knows_the_ports_of_workloads() {
    let port = |number: u16| {
        peer_authentication(&format!(
            "{{selector: {{matchLabels: {{app: web}}}}, portLevelMtls: {{{number}: {{mode: PERMISSIVE}}}}}}"
        ))
    };
    expect(&port(8080), "ML0202", None);
    expect(&port(5432), "ML0202", None);
    expect(
        &port(80),
        "ML0202",
        Some("80 is the port of Service web, whose traffic arrives at port 8080; write 8080"),
    );
    expect(&port(9090), "ML0202", Some("its ports are 5432, 8080"));
}

#[test]
fn ml0203_and_ml0204_hold_destination_rules_against_servers() {
    let rule =
        |mode: &str| destination_rule(&format!("{{host: web, trafficPolicy: {{tls: {{mode: {mode}}}}}}}"));
    expect(&rule("DISABLE"), "ML0203", Some("STRICT"));
    expect(&rule("SIMPLE"), "ML0203", Some("without their mesh certificate"));
    expect(&rule("ISTIO_MUTUAL"), "ML0203", None);
    let permissive = |text: String| text.replace("mode: STRICT", "mode: PERMISSIVE");
    expect(&permissive(rule("DISABLE")), "ML0203", None);
    let disabled = rule("ISTIO_MUTUAL").replace("mode: STRICT", "mode: DISABLE");
    expect(&disabled, "ML0203", Some("plaintext only"));
    let port = destination_rule(
        "{host: web, trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: [{port: {number: 80}}, {port: {number: 5432}, tls: {mode: ISTIO_MUTUAL}}]}}",
    );
    expect(&port, "ML0203", None);

    expect(&rule("ISTIO_MUTUAL"), "ML0204", None);
    let naked = rule("ISTIO_MUTUAL").replace("istio-injection: enabled", "istio-injection: disabled");
    expect(&naked, "ML0204", Some("every call fails"));
    let some = format!(
        "{}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: old, namespace: shop, labels: {{app: web, sidecar.istio.io/inject: \"false\"}}}}\nspec: {{containers: [{{name: a, image: a}}]}}\n",
        rule("ISTIO_MUTUAL")
    );
    let found = analyze_files(&some);
    let found: Vec<_> = found.iter().filter(|m| m.code.code == "ML0204").collect();
    assert!(!found.is_empty() && found.iter().all(|m| m.level.as_str() == "Warning"), "{found:?}");
}

#[test]
fn ml0205_names_identities_that_nobody_has() {
    let principal =
        |value: &str| policy(&format!("{{rules: [{{from: [{{source: {{principals: [\"{value}\"]}}}}]}}]}}"));
    for good in [
        "cluster.local/ns/shop/sa/web",
        "cluster.local/ns/shop/sa/default",
        "*",
        "*/sa/web",
        "cluster.local/ns/shop/*",
        "other.example/ns/a/sa/b",
        // Nothing is known of that namespace's accounts.
        "cluster.local/ns/default/sa/x",
    ] {
        expect(&principal(good), "ML0205", None);
    }
    expect(&principal("cluster.local/ns/shop/sa/wep"), "ML0205", Some("did you mean 'web'?"));
    expect(&principal("spiffe://cluster.local/ns/shop/sa/web"), "ML0205", Some("without spiffe://"));
    expect(&principal("shop/web"), "ML0205", Some("write it like 'cluster.local/ns/shop/sa/web'"));
    let account = |value: &str| {
        policy(&format!("{{rules: [{{from: [{{source: {{serviceAccounts: [\"{value}\"]}}}}]}}]}}"))
    };
    expect(&account("web"), "ML0205", None);
    expect(&account("shop/web"), "ML0205", None);
    expect(&account("shop/cart"), "ML0205", Some("ServiceAccounts of shop: default, web"));
    let found = analyze_live(&principal("cluster.local/ns/nowhere/*"));
    assert!(codes(&found).contains(&"ML0205"), "a live mesh says all: {found:?}");
}

#[test]
fn ml0206_finds_who_gets_past_rules_about_identities() {
    let permissive = |text: String| text.replace("mode: STRICT", "mode: PERMISSIVE");
    let deny = "{action: DENY, rules: [{from: [{source: {namespaces: [default]}}]}]}";
    expect(&policy(deny), "ML0206", None);
    // base refuses all but what is allowed, and nothing is.
    expect(&permissive(policy(deny)), "ML0206", None);
    let open = permissive(policy(deny)).replace(
        "metadata: {name: base, namespace: shop}\nspec: {}",
        "metadata: {name: base, namespace: shop}\nspec: {rules: [{}]}",
    );
    expect(&open, "ML0206", Some("callers in plaintext are not denied: port 5432 of shop/web"));
    let elsewhere = open.replace(
        "{from: [{source: {namespaces: [default]}}]}",
        "{from: [{source: {namespaces: [default]}}], to: [{operation: {ports: [\"9999\"]}}]}",
    );
    expect(&elsewhere, "ML0206", None);
    let allow = "{rules: [{from: [{source: {notNamespaces: [default]}}]}]}";
    expect(&policy(allow), "ML0206", None);
    expect(&permissive(policy(allow)), "ML0206", Some("callers in plaintext are allowed"));
    let named = "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}";
    expect(&policy(named), "ML0206", None);
    let found = expect(&permissive(policy(named)), "ML0206", Some("callers in plaintext are refused"));
    assert!(found.iter().all(|message| message.level.as_str() == "Info"));
    let disabled = policy(named).replace("mode: STRICT", "mode: DISABLE");
    expect(&disabled, "ML0206", Some("allows nobody on port 5432"));
    let required = "{rules: [{from: [{source: {principals: [\"*\"], notNamespaces: [default]}}]}]}";
    expect(&permissive(policy(required)), "ML0206", Some("callers in plaintext are refused"));
}

#[test]
fn ml0207_finds_http_rules_on_tcp_ports() {
    let allow = |to: &str| policy(&format!("{{rules: [{{to: [{{operation: {to}}}]}}]}}"));
    expect(&allow("{methods: [GET]}"), "ML0207", None);
    expect(&allow("{methods: [GET], ports: [\"8080\"]}"), "ML0207", None);
    expect(&allow("{methods: [GET], ports: [\"5432\"]}"), "ML0207", Some("never matches"));
    let deny = |to: &str| policy(&format!("{{action: DENY, rules: [{{to: [{{operation: {to}}}]}}]}}"));
    expect(&deny("{paths: [\"/admin*\"]}"), "ML0207", Some("port 5432 of shop/web carries TCP"));
    expect(&deny("{paths: [\"/admin*\"], ports: [\"8080\"]}"), "ML0207", None);
    expect(&deny("{ports: [\"5432\"]}"), "ML0207", None);
}

#[test]
fn ml0208_names_workloads_that_anyone_may_call() {
    expect(SHOP, "ML0208", None);
    let open = SHOP.replace(
        "metadata: {name: base, namespace: shop}\nspec: {}",
        "metadata: {name: base, namespace: shop}\nspec: {selector: {matchLabels: {app: other}}}",
    );
    expect(
        &open,
        "ML0208",
        Some("no AuthorizationPolicy holds for any workload of the namespace (shop/web)"),
    );
    let naked = open.replace("istio-injection: enabled", "istio-injection: disabled");
    expect(&naked, "ML0208", None);
    let shadow = SHOP.replace(
        "{name: base, namespace: shop}",
        "{name: base, namespace: shop, annotations: {istio.io/dry-run: \"true\"}}",
    );
    expect(&shadow, "ML0208", Some("shop/web"));
}

#[test]
fn ml0209_finds_plaintext_where_strict_is_the_rule() {
    expect(&peer_authentication("{mtls: {mode: DISABLE}}"), "ML0209", Some("namespace shop"));
    expect(&peer_authentication("{mtls: {mode: PERMISSIVE}}"), "ML0209", None);
    let port = |mode: &str| {
        peer_authentication(&format!(
            "{{selector: {{matchLabels: {{app: web}}}}, portLevelMtls: {{8080: {{mode: {mode}}}}}}}"
        ))
    };
    expect(&port("DISABLE"), "ML0209", Some("port 8080 of shop/web"));
    expect(&port("PERMISSIVE"), "ML0209", None);
    expect(&port("DISABLE").replace("mode: STRICT", "mode: PERMISSIVE"), "ML0209", None);
}

#[test]
fn ml0210_says_how_an_originating_port_is_called() {
    let both = |protocol: &str, mode: &str| {
        format!(
            "{}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{host: api.example, trafficPolicy: {{tls: {{mode: {mode}, clientCertificate: /c, privateKey: /k, caCertificates: /a}}}}}}\n",
            service_entry(&format!(
                "{{hosts: [api.example], ports: [{{number: 443, name: x, protocol: {protocol}}}], resolution: DNS}}"
            ))
        )
    };
    let found = expect(&both("HTTPS", "MUTUAL"), "ML0210", Some("http://api.example:443/"));
    assert!(found.iter().all(|m| m.level.as_str() == "Info"));
    expect(&both("TLS", "SIMPLE"), "ML0210", Some("encrypted twice"));
    expect(&both("HTTP", "MUTUAL"), "ML0210", None);
    expect(&both("HTTPS", "DISABLE"), "ML0210", None);
}

#[test]
fn ml0212_finds_allow_policies_behind_a_deny_of_everything() {
    let deny = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: all, namespace: shop}\nspec: {action: DENY, rules: [RULE]}\n";
    let allow = policy("{rules: [{from: [{source: {principals: [\"cluster.local/ns/shop/sa/web\"]}}]}]}");
    expect(&(allow.clone() + &deny.replace("RULE", "{}")), "ML0212", Some("shop/all refuses every request"));
    let some = deny.replace("RULE", "{to: [{operation: {ports: [\"1\"]}}]}");
    expect(&(allow + &some), "ML0212", None);
}

#[test]
fn findings_about_live_pods_are_about_what_made_them_and_told_once() {
    let pod = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, annotations: {{sidecar.istio.io/injekt: a}}, labels: {{app: web, pod-template-hash: h}}, ownerReferences: [{{kind: ReplicaSet, name: web-h, controller: true}}]}}\nspec: {{containers: [{{name: web, image: web}}, {{name: istio-proxy, image: a}}]}}\n"
        )
    };
    let set = "---\napiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: web-h, namespace: shop, ownerReferences: [{kind: Deployment, name: web, controller: true}]}\nspec: {template: {spec: {containers: []}}}\n";
    let found = analyze_live(&(SHOP.to_owned() + set + &pod("web-h-1") + &pod("web-h-2")));
    let origins: Vec<_> =
        found.iter().filter(|m| m.code.code == "IST0108").map(|m| m.origin.to_string()).collect();
    assert_eq!(origins, ["Deployment shop/web"], "{found:#?}");
    // The Deployment's Pods are enough for its policies.
    assert!(!codes(&found).contains(&"IST0127"), "{found:#?}");
}

#[test]
fn every_code_is_looked_for_by_a_test() {
    let own = [include_str!("main.rs"), include_str!("policies.rs"), include_str!("traffic.rs")].concat();
    for code in maille_analysis::code::CODES {
        assert!(own.contains(&format!("\"{}\"", code.code)), "no test expects {}", code.code);
    }
}
