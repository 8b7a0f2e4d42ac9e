//! Findings about tokens, authorizers, gateways, methods, ports and namespaces of policies.

use super::support::{analyze_live, codes, expect};
use super::{SHOP, peer_authentication, policy};

#[test]
fn policies_for_gateways_are_said_to_be_in_force_nowhere() {
    let attached = "{targetRefs: [{kind: Service, group: \"\", name: web}], rules: [{}]}";
    let found = expect(&policy(attached), "ML0108", Some("nothing enforces the policy"));
    assert!(found.iter().all(|m| m.level.as_str() == "Warning"), "{found:#?}");
    let tokens = "{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: edge}, jwtRules: [{issuer: \"https://idp\"}]}";
    expect(&request_authentication(tokens), "ML0108", Some("spec.targetRef"));
    expect(&request_authentication("{selector: {matchLabels: {app: web}}}"), "ML0108", None);
}

fn request_authentication(spec: &str) -> String {
    format!(
        "{SHOP}apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: ra, namespace: shop}}\nspec: {spec}\n"
    )
}

/// The shop with a RequestAuthentication and a policy.
fn tokens(authentication: &str, spec: &str) -> String {
    format!(
        "{}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n",
        request_authentication(authentication)
    )
}

const IDP: &str = "{selector: {matchLabels: {app: web}}, jwtRules: [{issuer: \"https://idp\"}]}";

#[test]
fn ist0127_names_request_authentications_that_select_nothing() {
    expect(&request_authentication(IDP), "IST0127", None);
    expect(&request_authentication("{jwtRules: [{issuer: \"https://idp\"}]}"), "IST0127", None);
    expect(&request_authentication(&IDP.replace("web", "wep")), "IST0127", Some("has the labels app=wep"));
    let elsewhere = request_authentication("{}").replace("{name: ra, namespace: shop}", "{name: ra}");
    expect(&elsewhere, "IST0127", Some("in namespace default: nobody looks at the tokens"));
    let mesh_wide = elsewhere.replace("{name: ra}", "{name: ra, namespace: istio-system}");
    expect(&mesh_wide, "IST0127", None);
}

#[test]
fn ml0213_names_providers_that_the_mesh_does_not_have() {
    let asking = policy("{action: CUSTOM, provider: {name: doorman}, rules: [{}]}");
    let with = |names: &[&str]| {
        let providers = names.iter().map(|name| {
            format!(
                "    - {{name: {name}, envoyExtAuthzGrpc: {{service: a.auth.svc.cluster.local, port: 1}}}}\n"
            )
        });
        format!(
            "{asking}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    extensionProviders:\n{}",
            providers.collect::<String>()
        )
    };
    expect(&asking, "ML0213", None);
    assert!(
        codes(&analyze_live(&asking)).contains(&"ML0213"),
        "a mesh without configuration has no providers"
    );
    expect(&with(&["doorman"]), "ML0213", None);
    expect(&with(&["dorman"]), "ML0213", Some("did you mean 'dorman'?"));
    let found = expect(&with(&["porter", "usher"]), "ML0213", Some("known are porter, usher"));
    assert!(found.iter().all(|m| m.level.as_str() == "Error"));
    expect(&with(&[]), "ML0213", Some("which names none"));
    // A bad configuration is another finding, and says where.
    let bad = with(&["Doorman"]);
    expect(&bad, "ML0213", None);
    let found =
        expect(&bad, "IST0106", Some("extensionProviders[0].name: 'Doorman' is no name of a provider"));
    let line = bad.lines().position(|line| line.contains("Doorman")).map(|index| index + 1);
    assert_eq!(found[0].reference.as_deref().and_then(|r| r.rsplit(':').next()?.parse().ok()), line);
}

#[test]
fn ml0221_finds_ports_about_which_nobody_is_asked() {
    let asking = |kind: &str, rule: &str| {
        format!(
            "{}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    extensionProviders: [{{name: a, {kind}: {{service: a.auth.svc.cluster.local, port: 1}}}}]\n",
            policy(&format!("{{action: CUSTOM, provider: {{name: a}}, rules: [{rule}]}}"))
        )
    };
    let path = "{to: [{operation: {paths: [/x]}}]}";
    expect(
        &asking("envoyExtAuthzHttp", "{}"),
        "ML0221",
        Some("port 5432 of shop/web carry TCP and pass unasked"),
    );
    expect(&asking("envoyExtAuthzHttp", path), "ML0221", Some("provider 'a'"));
    expect(&asking("envoyExtAuthzHttp", path), "ML0207", None);
    expect(&asking("envoyExtAuthzHttp", "{to: [{operation: {ports: [\"8080\"]}}]}"), "ML0221", None);
    expect(&asking("envoyExtAuthzGrpc", "{}"), "ML0221", None);
    expect(&asking("envoyExtAuthzGrpc", path), "ML0207", Some("asks about everything else"));
}

#[test]
fn ml0214_finds_workloads_with_several_providers() {
    let second = |provider: &str, selector: &str| {
        format!(
            "{}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: q, namespace: shop}}\nspec: {{action: CUSTOM, selector: {{matchLabels: {{app: {selector}}}}}, provider: {{name: {provider}}}, rules: [{{}}]}}\n",
            policy("{action: CUSTOM, provider: {name: a}, rules: [{}]}")
        )
    };
    let found = expect(
        &second("b", "web"),
        "ML0214",
        Some("for shop/web there are several: this policy asks 'a', shop/q asks 'b'"),
    );
    assert_eq!(found.len(), 2, "both policies are refused: {found:#?}");
    expect(&second("a", "web"), "ML0214", None);
    expect(&second("b", "other"), "ML0214", None);
}

#[test]
fn ml0215_finds_rules_about_tokens_that_nobody_looks_at() {
    let from = |principal: &str| {
        format!("{{rules: [{{from: [{{source: {{requestPrincipals: [\"{principal}\"]}}}}]}}]}}")
    };
    expect(&policy(&from("*")), "ML0215", Some("no RequestAuthentication holds for shop/web"));
    expect(&policy("{rules: [{from: [{source: {namespaces: [shop]}}]}]}"), "ML0215", None);
    let deny = "{action: DENY, rules: [{from: [{source: {notRequestPrincipals: [\"*\"]}}]}]}";
    expect(&policy(deny), "ML0215", Some("every request counts as one without a token"));
    let claims = "{rules: [{when: [{key: \"request.auth.claims[groups]\", values: [a]}]}]}";
    expect(&policy(claims), "ML0215", Some("allows nobody"));
    expect(&tokens(IDP, claims), "ML0215", None);
    for principal in ["*", "https://idp/*", "https://idp/u1", "*idp/u1", "*u1", "https*"] {
        expect(&tokens(IDP, &from(principal)), "ML0215", None);
    }
    expect(&tokens(IDP, &from("https://idq/*")), "ML0215", Some("did you mean 'https://idp/…'?"));
    expect(&tokens(IDP, &from("https://idp*")), "ML0215", Some("write 'https://idp/*'"));
    expect(&tokens(IDP, &from("https://other.example/*")), "ML0215", Some("issuers are 'https://idp'"));
    let any = "{jwtRules: [{jwksUri: \"https://idp/keys\"}]}";
    expect(&tokens(any, &from("https://other.example/*")), "ML0215", None);
    let elsewhere = IDP.replace("app: web", "app: cart");
    expect(&tokens(&elsewhere, &from("https://idp/*")), "ML0215", Some("no RequestAuthentication holds"));
}

#[test]
fn ml0216_finds_keys_that_anyone_on_the_way_can_replace() {
    let rule = |rule: &str| request_authentication(&format!("{{jwtRules: [{{{rule}}}]}}"));
    expect(&rule("issuer: a, jwksUri: \"http://idp/keys\""), "ML0216", Some("http://idp/keys in plaintext"));
    expect(&rule("issuer: a, jwksUri: \"HTTP://idp/keys\""), "ML0216", Some("plaintext"));
    expect(&rule("issuer: \"http://idp\""), "ML0216", Some("http://idp in plaintext"));
    expect(&rule("issuer: \"http://idp\", jwksUri: \"https://idp/keys\""), "ML0216", None);
    expect(&rule("issuer: \"http://idp\", jwks: '{\"keys\": []}'"), "ML0216", None);
    expect(&rule("issuer: \"https://idp\""), "ML0216", None);
}

#[test]
fn ml0217_finds_methods_that_no_request_has() {
    for (method, expected) in [
        ("GET", None),
        ("*", None),
        ("P*", None),
        ("*T", None),
        ("PROPFIND", None),
        ("GTE", Some("did you mean 'GET'?")),
        ("get", Some("compared with case; write 'GET'")),
        ("Post", Some("write 'POST'")),
        ("po*", Some("write 'PO*'")),
        ("X*", Some("no HTTP method is 'X*'")),
        ("FETCHALL", Some("no HTTP method is 'FETCHALL'")),
    ] {
        for field in ["methods", "notMethods"] {
            let text = policy(&format!("{{rules: [{{to: [{{operation: {{{field}: [\"{method}\"]}}}}]}}]}}"));
            expect(&text, "ML0217", expected);
        }
        let when =
            format!("{{rules: [{{when: [{{key: \"request.headers[:method]\", values: [\"{method}\"]}}]}}]}}");
        expect(&policy(&when), "ML0217", expected);
    }
}

#[test]
fn ml0218_finds_ports_of_services_in_policies() {
    for (port, expected) in [
        (
            "80",
            Some(
                "80 is the port of Service shop/web, and policies see the workload's: connections to shop/web arrive at port 8080",
            ),
        ),
        ("8080", None),
        ("5432", None),
        ("9999", None),
    ] {
        for field in ["ports", "notPorts"] {
            let text = policy(&format!("{{rules: [{{to: [{{operation: {{{field}: [\"{port}\"]}}}}]}}]}}"));
            expect(&text, "ML0218", expected);
        }
        let when = format!("{{rules: [{{when: [{{key: destination.port, values: [\"{port}\"]}}]}}]}}");
        expect(&policy(&when), "ML0218", expected);
    }
    let listening = policy("{rules: [{to: [{operation: {ports: [\"80\"]}}]}]}")
        .replace("ports: [{containerPort: 8080}]", "ports: [{containerPort: 8080}, {containerPort: 80}]");
    expect(&listening, "ML0218", None);
}

#[test]
fn ml0219_finds_objects_whose_namespace_is_missing() {
    let misplaced = policy("{}").replace("{name: p, namespace: shop}", "{name: p, namespace: shpo}");
    expect(&misplaced, "ML0219", Some("there is no namespace 'shpo' for the object; did you mean 'shop'?"));
    let two = format!(
        "{misplaced}---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: a, namespace: shpo}}\n"
    );
    let found = expect(&two, "ML0219", Some("and one more object"));
    assert_eq!(found.len(), 1, "said once: {found:#?}");
    expect(&policy("{}"), "ML0219", None);
    expect(&policy("{}").replace("{name: p, namespace: shop}", "{name: p}"), "ML0219", None);
    // A single file is for a mesh that has its namespaces.
    let alone = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {}\n";
    expect(alone, "ML0219", None);
}

#[test]
fn ml0220_says_that_requests_without_a_token_pass() {
    let found = expect(
        &request_authentication(IDP),
        "ML0220",
        Some("no AuthorizationPolicy for shop/web looks at tokens"),
    );
    assert!(found.iter().all(|m| m.level.as_str() == "Info"));
    let asking = "{rules: [{from: [{source: {requestPrincipals: [\"*\"]}}]}]}";
    expect(&tokens(IDP, asking), "ML0220", None);
    expect(&tokens(IDP, &asking.replace("{rules", "{action: AUDIT, rules")), "ML0220", Some("shop/web"));
    expect(
        &tokens(IDP, &asking.replace("{rules", "{selector: {matchLabels: {app: x}}, rules")),
        "ML0220",
        Some("shop/web"),
    );
    expect(&request_authentication("{selector: {matchLabels: {app: web}}}"), "ML0220", None);
}

#[test]
fn ist0171_tells_what_the_control_plane_found() {
    let with = |status: &str| {
        policy("{}")
            + &format!(
                "status: {{conditions: [{{type: Attached, status: \"{status}\", reason: NoGateways, message: nothing enforces it}}]}}\n"
            )
    };
    let found = analyze_live(&with("False"));
    let told: Vec<_> = found.iter().filter(|m| m.code.code == "IST0171").map(|m| m.text.as_str()).collect();
    assert_eq!(told, ["the condition Attached is False (NoGateways): nothing enforces it"]);
    assert!(!codes(&analyze_live(&with("True"))).contains(&"IST0171"));
    // What a file says of its status is nobody's finding.
    expect(&with("False"), "IST0171", None);
}

#[test]
fn a_dry_run_belongs_to_policies() {
    let annotated = |kind: &str| {
        SHOP.replace(
            &format!("kind: {kind}\nmetadata: {{"),
            &format!("kind: {kind}\nmetadata: {{annotations: {{istio.io/dry-run: \"true\"}}, "),
        )
    };
    for kind in ["Namespace", "Service", "Deployment"] {
        expect(&annotated(kind), "IST0107", Some("it belongs to a AuthorizationPolicy"));
    }
    expect(&annotated("PeerAuthentication"), "IST0106", Some("has no dry run, and would be in force"));
    expect(&annotated("AuthorizationPolicy"), "IST0107", None);
    expect(&annotated("AuthorizationPolicy"), "IST0106", None);
}

/// One says that a policy is ignored, the other what it does: never both.
#[test]
fn ml0201_and_ml0209_do_not_contradict_each_other() {
    let two = |first: &str, second: &str| {
        format!(
            "{}---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: q, namespace: shop}}\nspec: {second}\n",
            peer_authentication(first)
        )
    };
    let (strict, disable) = ("{mtls: {mode: STRICT}}", "{mtls: {mode: DISABLE}}");
    expect(&two(strict, disable), "ML0201", Some("ignored"));
    expect(&two(strict, disable), "ML0209", None);
    expect(&two(disable, strict), "ML0209", Some("namespace shop"));
    let select =
        |labels: &str, mode: &str| format!("{{selector: {{matchLabels: {labels}}}, mtls: {{mode: {mode}}}}}");
    let (web, cart) = ("{app: web}", "{app: cart}");
    expect(&two(&select(web, "STRICT"), &select(web, "DISABLE")), "ML0209", None);
    expect(&two(&select(web, "DISABLE"), &select(web, "STRICT")), "ML0209", Some("shop/web"));
    expect(&two(&select(cart, "STRICT"), &select(cart, "DISABLE")), "ML0209", None);
    expect(&two(&select(web, "STRICT"), &select(cart, "DISABLE")), "ML0209", Some("the selected workloads"));
}

#[test]
fn an_audit_protects_nothing_and_rules_of_other_actions_get_wider_on_tcp() {
    let open = SHOP.replace("kind: AuthorizationPolicy\nmetadata: {name: base, namespace: shop}\nspec: {}", "kind: AuthorizationPolicy\nmetadata: {name: base, namespace: shop}\nspec: {action: AUDIT, rules: [{}]}");
    expect(&open, "ML0208", Some("no AuthorizationPolicy holds"));
    for (action, expected) in
        [("AUDIT", "marks everything else"), ("CUSTOM, provider: {name: a}", "asks about everything else")]
    {
        let text =
            policy(&format!("{{action: {action}, rules: [{{to: [{{operation: {{paths: [/x]}}}}]}}]}}"));
        expect(&text, "ML0207", Some(expected));
    }
}

#[test]
fn ml0227_names_revocations_that_revoke_nobody() {
    let list = |json: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio-ca-revocations, namespace: istio-system}}\ndata:\n  revocations.json: |\n    {json}\n"
        )
    };
    let cart = "spiffe://cluster.local/ns/shop/sa/cart";
    for (json, expected) in [
        ("[]".to_owned(), None),
        (r#"[{"serial":"0A:1B","reason":"leaked"}]"#.to_owned(), None),
        (format!(r#"[{{"identity":"{cart}","before":"2026-01-31T12:00:00Z","by":"ann"}}]"#), None),
        ("{}".to_owned(), Some("no JSON array")),
        (r#"[{"serial":"a1"},{"serail":"a2"}]"#.to_owned(), Some("[1] revokes nobody: 'serail'")),
        (r#"[{"serial":"xyz"}]"#.to_owned(), Some("hexadecimal")),
        (r#"[{"identity":"cart"}]"#.to_owned(), Some("no SPIFFE ID")),
        (format!(r#"[{{"identity":"{cart}","serial":"a1"}}]"#), Some("both")),
        (r#"[{"serial":"a1","before":"2026-01-31T12:00:00Z"}]"#.to_owned(), Some("'before'")),
        (r#"[{"reason":"why"}]"#.to_owned(), Some("neither")),
    ] {
        expect(&list(&json), "ML0227", expected);
    }
    let elsewhere = list("{}").replace("istio-system", "shop");
    expect(&elsewhere, "ML0227", None);
    expect(&list("[]").replace("revocations.json", "revocations"), "ML0227", Some("not there"));
}
