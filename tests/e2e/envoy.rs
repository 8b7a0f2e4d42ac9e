//! A real Envoy as the sidecar at the other end, with certificates of the mesh's authority.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::identity::Forge;
use crate::mesh::{Mesh, eventually};
use crate::protocols::{Lab, NAMESPACE};

/// Ports of Envoy: as callers' sidecar on loopback, as callee's on every address.
const ADMIN: u16 = 15_900;
const CALLERS: [(u16, &str, u16, &[&str]); 4] = [
    (15_901, "http1", 8100, &["istio-http/1.1", "istio", "http/1.1"]),
    (15_902, "http2", 8501, &["istio-h2", "istio", "h2"]),
    (15_903, "tcp", 8202, &["istio"]),
    // What Istio's Envoys offer first is not spoken here, and not selected.
    (15_904, "tcp", 8202, &["istio-peer-exchange", "istio"]),
];
const HTTP1: u16 = 15_911;
const HTTP2: u16 = 15_912;
const TCP: u16 = 15_913;

/// The Pod that Envoy runs in is Envoy's alone: no sidecar of ours, and the label that says that it takes mutual TLS.
const POD: &str = "protocols/envoy";

/// Starts Envoy in its Pod, under the account whose certificate it has.
fn start(mesh: &Mesh, configuration: &Value) -> Result<()> {
    let binary = std::env::var_os("MAILLE_ENVOY").map(PathBuf::from);
    let binary = binary.context("MAILLE_ENVOY names no program; use `cargo xtask e2e`")?.canonicalize()?;
    let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE});
    let labels = |tls: bool| match tls {
        true => {
            json!({"app": "envoy", "sidecar.istio.io/inject": "false", "security.istio.io/tlsMode": "istio"})
        }
        false => json!({"app": "envoy"}),
    };
    let port = |name: &str, number: u16| json!({"name": name, "port": number});
    let objects = [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("envoy")}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("somebody")}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata("envoy"),
            "stringData": {"envoy.json": configuration.to_string()}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata("envoy"), "spec": {
            "selector": labels(false),
            "ports": [port("http", HTTP1), port("http2", HTTP2), port("tcp", TCP)]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("envoy"), "spec": {
            "selector": {"matchLabels": labels(false)},
            "template": {"metadata": {"labels": labels(true)}, "spec": {
                "serviceAccountName": "envoy", "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "envoy", "image": "tests",
                    "command": ["/envoy/envoy", "--disable-hot-restart", "--concurrency", "1", "-l", "warning",
                        "-c", "/configuration/envoy.json"],
                    "readinessProbe": {"periodSeconds": 1, "tcpSocket": {"port": TCP}},
                    "volumeMounts": [{"name": "binary", "mountPath": "/envoy"},
                        {"name": "configuration", "mountPath": "/configuration"}]}],
                "volumes": [
                    {"name": "binary", "hostPath": {"path": binary.parent().context("a program in no folder")?}},
                    {"name": "configuration", "secret": {"secretName": "envoy"}}]}}}}),
    ];
    for object in objects {
        mesh.apply(&object.to_string())?;
    }
    mesh.kubectl(&["rollout", "status", "deployment/envoy", "-n", NAMESPACE, "--timeout=60s"])?;
    Ok(())
}

/// Certificate, key and root, inline.
struct Svid {
    chain: String,
    key: String,
    root: String,
}

impl Svid {
    fn of(forge: &Forge, account: &str) -> Result<Self> {
        let pair = forge.svid(NAMESPACE, account)?;
        Ok(Self {
            chain: std::fs::read_to_string(pair.certificate)?,
            key: std::fs::read_to_string(pair.key)?,
            root: std::fs::read_to_string(forge.root())?,
        })
    }

    /// Envoy's common TLS context, trusting the mesh's root and peers of this account only.
    fn context(&self, peer: &str, alpn: &[&str]) -> Value {
        json!({
            "alpn_protocols": alpn,
            "tls_certificates": [{
                "certificate_chain": {"inline_string": self.chain},
                "private_key": {"inline_string": self.key},
            }],
            "validation_context": {
                "trusted_ca": {"inline_string": self.root},
                "match_typed_subject_alt_names": [{
                    "san_type": "URI",
                    "matcher": {"exact": format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{peer}")},
                }],
            },
        })
    }
}

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";

fn address(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

fn http_manager(routes: &Value, codec: &str) -> Value {
    json!([{"name": "http", "typed_config": {
        "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "http", "codec_type": codec,
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": true},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": format!("{FILTERS}.http.router.v3.Router")}}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }}])
}

/// Envoy on both sides of the mesh: listeners for plaintext callers on loopback, and for Maille's sidecars on the bridge.
fn configuration(forge: &Forge, pod: &str) -> Result<Value> {
    let (caller, callee) = (Svid::of(forge, "client")?, Svid::of(forge, "envoy")?);
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    for (port, protocol, target, alpn) in CALLERS {
        let cluster = format!("to-{port}");
        let filters = match protocol {
            "tcp" => json!([{"name": "tcp", "typed_config": {
                "@type": format!("{FILTERS}.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": "tcp", "cluster": cluster}}]),
            _ => http_manager(&json!([{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]), "AUTO"),
        };
        listeners.push(json!({"name": cluster, "address": address("127.0.0.1", port),
            "filter_chains": [{"filters": filters}]}));
        let upstream_protocol =
            if protocol == "http2" { "http2_protocol_options" } else { "http_protocol_options" };
        clusters.push(json!({
            "name": cluster, "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": cluster,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(pod, target)}}]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {upstream_protocol: {}}}},
            "transport_socket": {"name": "tls", "typed_config": {
                "@type": format!("{TLS}.UpstreamTlsContext"),
                "common_tls_context": caller.context("servers", alpn),
                "sni": format!("outbound_.{target}_._.matrix.{NAMESPACE}.svc.cluster.local")}},
        }));
    }
    // Says who called, by the certificate.
    let told = json!([{"match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "from envoy\n"}},
        "response_headers_to_add": [
            {"header": {"key": "x-caller", "value": "%DOWNSTREAM_PEER_URI_SAN%"}},
            {"header": {"key": "x-spoken", "value": "%PROTOCOL% %REQUESTED_SERVER_NAME%"}}]}]);
    let echo =
        json!([{"name": "echo", "typed_config": {"@type": format!("{FILTERS}.network.echo.v3.Echo")}}]);
    for (port, filters, alpn) in [
        (HTTP1, http_manager(&told, "AUTO"), &["h2", "http/1.1"][..]),
        (HTTP2, http_manager(&told, "AUTO"), &["h2", "http/1.1"]),
        (TCP, echo, &["istio-peer-exchange", "h2", "http/1.1"]),
    ] {
        listeners.push(json!({
            "name": format!("at-{port}"), "address": address("0.0.0.0", port),
            "listener_filters": [{"name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}],
            "filter_chains": [{"filters": filters, "transport_socket": {"name": "tls", "typed_config": {
                "@type": format!("{TLS}.DownstreamTlsContext"),
                "require_client_certificate": true,
                "common_tls_context": callee.context("client", alpn)}}}],
        }));
    }
    Ok(json!({
        "admin": {"address": address("127.0.0.1", ADMIN)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }))
}

/// HTTP/1.1, HTTP/2 and TCP, under STRICT, with Envoy in the caller's place and in the callee's.
pub(crate) fn both_ways(mesh: &Mesh) -> Result<()> {
    let lab = Lab::start(mesh)?;
    let forge = Forge::of_mesh(mesh)?;
    let pod = mesh.pod_ip("protocols/servers")?;
    start(mesh, &configuration(&forge, &pod)?)?;
    envoy_calls(mesh)?;
    envoy_is_called(&lab)
}

fn envoy_calls(mesh: &Mesh) -> Result<()> {
    let own = "spiffe://cluster.local/ns/protocols/sa/client";
    let run = |command: &[&str]| {
        Ok::<_, anyhow::Error>(mesh.exec(POD, &[&["timeout", "15"], command].concat())?.stdout)
    };
    let seen = run(&["curl", "-sS", "-i", "http://127.0.0.1:15901/one"])?;
    ensure!(
        seen.starts_with("HTTP/1.1 200") && seen.contains("GET /one HTTP/1.1") && seen.contains(own),
        "HTTP/1.1 through Envoy and the sidecar: {seen}"
    );
    let url = "http://127.0.0.1:15902/";
    let seen = run(&["curl", "-sS", "-i", "--http2-prior-knowledge", url])?;
    ensure!(
        seen.contains("HTTP/2 200") && seen.contains("web"),
        "HTTP/2 through Envoy and the sidecar: {seen}"
    );
    let load = run(&["h2load", "-n", "2000", "-c", "2", "-m", "32", url])?;
    ensure!(load.contains("2000 2xx"), "many streams through Envoy and the sidecar: {load}");
    for port in ["15903", "15904"] {
        let line = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; echo ping >&3; head -n 1 <&3");
        let seen = run(&["bash", "-c", &line])?;
        ensure!(seen == "ping\n", "TCP through Envoy and the sidecar: {seen}");
    }
    Ok(())
}

fn envoy_is_called(lab: &Lab<'_>) -> Result<()> {
    let client = "x-caller: spiffe://cluster.local/ns/protocols/sa/client";
    let curl = |more: &str, port: u16| lab.run(&format!("curl -sS -i {more} http://envoy:{port}/ 2>&1"));
    let seen = curl("", HTTP1)?;
    let sni = format!("x-spoken: HTTP/1.1 outbound_.{HTTP1}_._.envoy.{NAMESPACE}.svc.cluster.local");
    ensure!(
        seen.starts_with("HTTP/1.1 200") && seen.contains(client) && seen.contains(&sni),
        "HTTP/1.1 to Envoy: {seen}"
    );
    let seen = curl("--http2-prior-knowledge", HTTP2)?;
    ensure!(
        seen.contains("HTTP/2 200") && seen.contains(client) && seen.contains("x-spoken: HTTP/2 "),
        "HTTP/2 to Envoy: {seen}"
    );
    lab.expect(&format!("exec 3<>/dev/tcp/envoy/{TCP}; echo ping >&3; head -n 1 <&3"), "ping")?;
    // The identity that the registry expects is the one that must be proved: under another account Envoy's certificate
    // is another's.
    let patch = r#"{"spec":{"template":{"spec":{"serviceAccountName":"somebody"}}}}"#;
    lab.mesh.kubectl(&["patch", "deployment", "envoy", "-n", NAMESPACE, "-p", patch])?;
    lab.mesh.kubectl(&["rollout", "status", "deployment/envoy", "-n", NAMESPACE, "--timeout=60s"])?;
    eventually(Duration::from_secs(20), || {
        let seen = curl("", HTTP1)?;
        ensure!(seen.starts_with("HTTP/1.1 503"), "a wrong identity was taken: {seen}");
        Ok(())
    })
}
