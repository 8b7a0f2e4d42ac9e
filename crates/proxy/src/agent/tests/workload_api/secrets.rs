//! Envoy's secret discovery on the same socket.

use std::net::TcpListener;
use std::process::Stdio;

use futures::stream;
use maille_proto::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use maille_proto::secret::{DiscoveryRequest, Secret, data_source, secret};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;

use super::*;

/// What a stream is answered to one question.
async fn ask(lab: &Lab, name: &str) -> Result<Secret, tonic::Status> {
    let mut client = SecretDiscoveryServiceClient::new(dial(lab.socket()).await);
    let request = DiscoveryRequest { resource_names: vec![name.to_owned()], ..Default::default() };
    let requests = futures::StreamExt::chain(stream::iter([request]), stream::pending());
    let mut answers = within(client.stream_secrets(requests)).await?.into_inner();
    let answer = within(answers.message()).await?.expect("an answer");
    Ok(Secret::decode(answer.resources[0].value.as_slice()).expect("a secret"))
}

fn text(source: Option<maille_proto::secret::DataSource>) -> String {
    match source.and_then(|source| source.specifier) {
        Some(data_source::Specifier::InlineBytes(bytes)) => String::from_utf8(bytes).expect("PEM"),
        other => panic!("not inline: {other:?}"),
    }
}

#[tokio::test]
async fn certificate_roots_and_files_are_served_by_istios_names() {
    let lab = Lab::new().await;
    let (agent, _) = start(lab.with_workload_api());
    shared(&agent).await;
    let Some(secret::Type::TlsCertificate(own)) = ask(&lab, "default").await.expect("there").r#type else {
        panic!("no certificate");
    };
    assert!(lab.script.issued.lock().len() == 2 && text(own.private_key).contains("PRIVATE KEY"));
    let roots = |secret: Secret| match secret.r#type {
        Some(secret::Type::ValidationContext(context)) => text(context.trusted_ca),
        other => panic!("no roots: {other:?}"),
    };
    for name in ["ROOTCA", "spiffe://cluster.local"] {
        assert_eq!(roots(ask(&lab, name).await.expect("there")), lab.script.authority.roots_pem(), "{name}");
    }
    let other = authority_of("other.example");
    std::fs::write(lab.file("ca.pem"), other.roots_pem()).expect("written");
    // The state directory is this test's files; another place is not the proxy's own.
    let elsewhere = tempfile::tempdir_in("/tmp").expect("a directory");
    let file = |name: &str| elsewhere.path().join(name).display().to_string();
    std::fs::write(file("ca.pem"), format!("{}secret\n", other.roots_pem())).expect("written");
    assert_eq!(
        roots(ask(&lab, &format!("file-root:{}", file("ca.pem"))).await.expect("there")),
        other.roots_pem()
    );
    std::fs::write(file("cert.pem"), text(own.certificate_chain)).expect("written");
    let key = maille_pki::generate_key().expect("key");
    std::fs::write(file("key.pem"), key.to_pem().as_bytes()).expect("written");
    let pair = format!("file-cert:{}~{}", file("cert.pem"), file("key.pem"));
    let refused = ask(&lab, &pair).await.expect_err("they do not belong together");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");

    let own_files = lab.file("ca.pem");
    for (name, code) in [
        (format!("file-root:{}", own_files.display()), Code::PermissionDenied),
        (format!("file-root:{}", lab.file("token").display()), Code::PermissionDenied),
        ("file-root:/proc/self/environ".to_owned(), Code::PermissionDenied),
        ("file-root:/dev/zero".to_owned(), Code::PermissionDenied),
        ("file-root:/etc".to_owned(), Code::NotFound),
        ("file-root:/nowhere".to_owned(), Code::NotFound),
        ("file-root:relative".to_owned(), Code::InvalidArgument),
        ("file-cert:/a".to_owned(), Code::InvalidArgument),
        ("spiffe://unknown.example".to_owned(), Code::Unavailable),
        ("others".to_owned(), Code::NotFound),
    ] {
        let refused = ask(&lab, &name).await.expect_err(&name);
        assert_eq!(refused.code(), code, "{name}: {refused}");
    }
}

struct Envoy {
    _child: Child,
    at: SocketAddr,
    admin: SocketAddr,
}

/// Serves mutual TLS with what it gets by SDS from the socket.
fn envoy(lab: &Lab) -> Option<Envoy> {
    let local = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools/envoy");
    let named = std::env::var_os("MAILLE_ENVOY").map(PathBuf::from);
    let Some(program) = [named, Some(local)].into_iter().flatten().find(|path| path.is_file()) else {
        assert!(std::env::var_os("CI").is_none(), "no Envoy was found: cargo xtask setup");
        eprintln!("SKIPPED (needs Envoy 1.40): cargo xtask setup");
        return None;
    };
    let free = || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let (at, admin) = (free(), free());
    let address =
        |at: SocketAddr| json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
    let secret = |name: &str| {
        json!({"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": {
            "api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "workload"}}]}}})
    };
    let types = "type.googleapis.com/envoy.extensions";
    let manager = json!({"name": "http", "typed_config": {
        "@type": format!("{types}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "in",
        "http_filters": [{"name": "router", "typed_config": {"@type": format!("{types}.filters.http.router.v3.Router")}}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "served by Envoy"}}}]}]}}});
    let tls = json!({"name": "tls", "typed_config": {
        "@type": format!("{types}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": {
            "alpn_protocols": ["http/1.1"],
            "tls_certificate_sds_secret_configs": [secret("default")],
            "validation_context_sds_secret_config": secret("ROOTCA")}}});
    let http2 = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": format!("{types}.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}}}});
    let config: Value = json!({
        "node": {"id": "cart", "cluster": "cart"},
        "admin": {"address": address(admin)},
        "static_resources": {
            "listeners": [{"address": address(at), "filter_chains": [{"filters": [manager], "transport_socket": tls}]}],
            "clusters": [{"name": "workload", "type": "STATIC", "connect_timeout": "5s",
                "typed_extension_protocol_options": http2,
                "load_assignment": {"cluster_name": "workload", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": {"pipe": {"path": lab.socket().display().to_string()}}}}]}]}}]}});
    let file = lab.file("envoy.json");
    std::fs::write(&file, config.to_string()).expect("written");
    let child = Command::new(program)
        .arg("-c")
        .arg(file)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "error"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("Envoy starts");
    Some(Envoy { _child: child, at, admin })
}

/// One request as a workload of the mesh; the serial number of Envoy's certificate.
async fn call(shared: &Shared, at: SocketAddr) -> Option<String> {
    let current = shared.tls.current();
    let names: Arc<[String]> = Arc::from([identity("cart").uri()]);
    let config = current.client_config(maille_tls::ClientAlpn::Tcp, &names).expect("client config");
    let mut config = (*config).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = tokio::net::TcpStream::connect(at).await.ok()?;
    let name = maille_tls::outbound_sni(80, "", "cart.shop.svc.cluster.local").expect("sni");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    let chain = stream.get_ref().1.peer_certificates().expect("shown").to_vec();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.ok()?;
    let mut answer = Vec::new();
    // Envoy closes without TLS's goodbye.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.ends_with("served by Envoy"), "{answer}");
    Some(leaf_facts(&chain[0]).expect("a certificate").serial)
}

#[tokio::test]
async fn envoy_gets_its_certificate_by_sds_serves_with_it_and_follows_a_renewal_on_the_same_streams() {
    let lab = Lab::new().await;
    lab.set_trust(None);
    *lab.script.ttl.lock() = Some(Duration::from_secs(10));
    let (agent, _) = start(lab.with_workload_api());
    let shared = shared(&agent).await;
    let Some(envoy) = envoy(&lab) else { return };
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut seen: Vec<String> = Vec::new();
    while seen.len() < 2 {
        assert!(Instant::now() < deadline, "certificates that Envoy served with: {seen:?}");
        if let Some(serial) = call(&shared, envoy.at).await
            && !seen.contains(&serial)
        {
            seen.push(serial);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let issued = lab.script.issued.lock().clone();
    assert!(seen.iter().all(|serial| issued.contains(serial)), "{seen:?} of {issued:?}");
    let own = shared.tls.current().svid().serial().to_owned();
    assert!(!seen.contains(&own), "Envoy has a key of its own");
    let (_, stats) = get(envoy.admin, "/stats?filter=cluster.workload.upstream_rq_total").await;
    // One stream for the certificate, one for the roots.
    assert!(stats.contains("cluster.workload.upstream_rq_total: 2\n"), "{stats}");
}
