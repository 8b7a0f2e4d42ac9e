//! A real Envoy takes the filters as they are shown: names, fields and values are its own.
//!
//! `MAILLE_ENVOY` names the program; without it the test says loudly that it did not run.

use std::path::PathBuf;
use std::process::Command;

use maille_envoy::Dump;
use serde_json::{Value, json};

/// A public key whose private half was thrown away.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"k1","alg":"ES256","use":"sig",
    "x":"op3E-gki0_kv0WFe1gDuFG9mC5mirD2NEFy0RXliehc","y":"YvOpvLUjNHXmf50G7v9LEsP90DAeUd4NuOWXTPG3mfs"}]}"#;

/// What a proxy with every sort of policy shows; `kind` is the member that says how the provider is asked.
fn shown(kind: (&str, Value)) -> Value {
    let policy = |name: &str, action: &str, rules: Value| json!({"namespace": "shop", "name": name, "action": format!("ACTION_{action}"), "rules": rules});
    let with = |mut policy: Value, field: &str, value: Value| {
        policy[field] = value;
        policy
    };
    let by_token = json!([{
        "from": [{
            "principals": ["td-old/ns/a/sa/b", "*/sa/b"], "requestPrincipals": ["https://idp/*", "*x/S"],
            "serviceAccounts": ["b", "ops/b"], "namespaces": ["f*r"], "trustDomains": ["a.*", "td-old"],
            "ipBlocks": ["10.0.0.0/8"], "remoteIpBlocks": ["::1"]
        }],
        "to": [{"hosts": ["h", "h:*"], "methods": ["*"], "notPaths": ["/v1/{*}/x/{**}", "*.php"]}],
        "when": [
            {"key": "request.auth.claims[realm][roles]", "values": ["a", "b*"], "notValues": ["c"]},
            {"key": "request.auth.audiences", "values": ["shop"]},
            {"key": "request.headers[x-a]", "values": ["*"]},
            {"key": "connection.sni", "values": ["*.corp"]},
            {"key": "destination.ip", "values": ["10.1.0.0/16"]},
            {"key": "destination.port", "notValues": ["90"]}
        ]
    }]);
    let get = json!([{"to": [{"methods": ["GET"], "ports": ["8080"]}]}]);
    let policies = json!([
        with(policy("ask", "CUSTOM", get.clone()), "provider", json!("opa")),
        policy("mark", "AUDIT", json!([{}])),
        policy("deny", "DENY", json!([{"from": [{"notRequestPrincipals": ["*"]}]}])),
        with(policy("try-deny", "DENY", get.clone()), "dryRun", json!(true)),
        policy("deny-all", "ALLOW", json!([])),
        policy("tokens", "ALLOW", by_token),
        with(policy("try-allow", "ALLOW", get), "dryRun", json!(true)),
    ]);
    let mut provider = json!({
        "name": "opa", "host": "opa.auth.svc.cluster.local", "port": 9191, "timeoutMs": 1500, "failOpen": true,
        "statusOnError": 503, "body": {"maxRequestBytes": 100, "packAsBytes": true}
    });
    provider[kind.0] = kind.1;
    json!({"workload": "shop/web", "generation": 1, "facts": {
        "meshSettings": {
            "trustDomain": "td-new", "trustDomainAliases": ["td-old"], "rootNamespace": "istio-system",
            "extensionProviders": [provider]
        },
        "inbound": {
            "mode": "MTLS_MODE_DISABLE",
            "ports": [{"port": 8080, "protocol": "PROTOCOL_HTTP"}, {"port": 9000, "protocol": "PROTOCOL_TCP"}]
        },
        "authorizations": policies,
        "requestAuthentications": [{"namespace": "shop", "name": "idp", "jwtRules": [
            {
                "issuer": "https://z", "jwks": KEYS, "audiences": ["shop"],
                "fromHeaders": [{"name": "x-t", "prefix": "Bearer "}], "fromParams": ["t"], "fromCookies": ["c"],
                "forwardOriginalToken": true, "outputPayloadToHeader": "x-p",
                "outputClaimToHeaders": [{"header": "x-s", "claim": "sub"}], "spaceDelimitedClaims": ["roles"]
            },
            {"issuer": "https://a", "jwks": KEYS}
        ]}]
    }})
}

/// The chains of the ports, in a configuration that lacks nothing else.
fn configuration(dump: &Dump) -> Value {
    let inbound = dump.listeners.iter().find(|listener| listener["name"] == "virtualInbound");
    let chains = inbound.and_then(|inbound| inbound["filterChains"].as_array()).expect("chains");
    let own = |chain: &&Value| {
        [8080, 9000].iter().any(|port| chain["filterChainMatch"]["destinationPort"] == *port)
    };
    let chains: Vec<&Value> = chains.iter().filter(own).collect();
    assert_eq!(chains.len(), 2, "one of HTTP and one of TCP");
    let protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let names = ["outbound|9191||opa.auth.svc.cluster.local", "inbound|8080||", "inbound|9000||"];
    let clusters: Vec<Value> = names
        .iter()
        .map(|name| {
            json!({
                "name": name, "type": "STATIC", "connectTimeout": "1s",
                "loadAssignment": {"clusterName": name, "endpoints": []},
                "typedExtensionProtocolOptions": {protocol: {
                    "@type": format!("type.googleapis.com/{protocol}"),
                    "explicitHttpConfig": {"http2ProtocolOptions": {}}
                }}
            })
        })
        .collect();
    json!({"static_resources": {"clusters": clusters, "listeners": [{
        "name": "inbound", "address": {"socketAddress": {"address": "127.0.0.1", "portValue": 0}},
        "filterChains": chains
    }]}})
}

#[test]
fn envoy_takes_the_filters_of_every_sort_of_policy() {
    let Some(envoy) = std::env::var_os("MAILLE_ENVOY").map(PathBuf::from).filter(|path| path.is_file())
    else {
        eprintln!("\n*** SKIPPED: loading the filters into Envoy: MAILLE_ENVOY names no program ***\n");
        return;
    };
    let http = json!({
        "pathPrefix": "/check", "includeRequestHeaders": ["x-a", "x-p-*", "*-s"],
        "includeAdditionalHeaders": {"k": "v"}, "headersToUpstreamOnAllow": ["x-u"],
        "headersToDownstreamOnDeny": ["x-d"], "headersToDownstreamOnAllow": ["x-e"]
    });
    for kind in [("grpc", json!({})), ("http", http)] {
        let name = kind.0;
        let dump = Dump::read(shown(kind).to_string().as_bytes()).expect("a dump");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, configuration(&dump).to_string()).expect("written");
        let output = Command::new(&envoy)
            .args(["--mode", "validate", "-c"])
            .arg(&file)
            .output()
            .expect("Envoy starts");
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> =
            said.lines().filter(|line| line.contains("][error]") || line.contains("][critical]")).collect();
        assert!(output.status.success() && errors.is_empty(), "{name}: {errors:#?}\n{said}");
    }
}
