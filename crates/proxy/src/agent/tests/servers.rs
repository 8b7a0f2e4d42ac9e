//! The status servers, asked as a kubelet, a scraper and an intruder would.

use std::sync::Arc;

use maille_proto::facts as wire;
use maille_telemetry::{
    ConnectionLabels, Peer, Protocol, Refusal, RefusalKind, Reporter, Security, ServiceLabels,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{Lab, OWN, eventually, get, identity, request, shared, start};
use crate::agent::options::ProxyOptions;
use crate::agent::status_pages::Order;

/// An application that answers every request with what its path says.
async fn application() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            let mut head = vec![0; 2048];
            let n = stream.read(&mut head).await.unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let answer = match head.split(' ').nth(1) {
                Some("/ready") => format!("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{:<9}", peer.ip()),
                Some("/moved") => {
                    "HTTP/1.1 302 Found\r\nLocation: /ready\r\nContent-Length: 0\r\n\r\n".to_owned()
                }
                Some("/slow") => {
                    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
                    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone".to_owned()
                }
                Some("/metrics") => "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\napp_up 1.0\n".to_owned(),
                _ => "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy".to_owned(),
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn probes_and_metrics_of_the_application_go_through_the_status_port() {
    let lab = Lab::new().await;
    let port = application().await;
    let probes = format!(
        r#"{{"/app-health/cart/readyz":{{"httpGet":{{"path":"/ready","port":{port}}}}},
             "/app-health/cart/startupz":{{"httpGet":{{"path":"moved","port":{port}}}}},
             "/app-health/cart/livez":{{"httpGet":{{"path":"/broken","port":{port}}}}},
             "/app-health/cart/slow":{{"httpGet":{{"path":"/slow","port":{port}}}}},
             "/app-lifecycle/k3y/cart/prestopz":{{"httpGet":{{"path":"/slow","port":{port}}}}},
             "/app-health/db/livez":{{"tcpSocket":{{"port":{port}}}}},
             "/app-health/db/readyz":{{"tcpSocket":{{"port":1}}}}}}"#
    );
    let metrics = format!(r#"{{"scrape":"true","port":"{port}"}}"#);
    let options = ProxyOptions {
        probes: crate::agent::probes::parse(&probes).expect("valid"),
        app_metrics: crate::agent::AppMetrics::parse(&metrics).expect("valid"),
        ..lab.options()
    };
    let (agent, _) = start(options);
    let status = agent.servers.listening.status;
    for (path, code, body) in [
        ("/app-health/cart/readyz", 200, "127.0.0.6"),
        ("/app-health/cart/startupz", 200, "127.0.0.6"),
        ("/app-health/cart/livez", 503, "busy"),
        // A probe has its time-out of a second, a hook has none.
        ("/app-health/cart/slow", 500, "no answer within"),
        ("/app-lifecycle/k3y/cart/prestopz", 200, "done"),
        ("/app-lifecycle/cart/prestopz", 404, "not found"),
        ("/app-health/db/livez", 200, ""),
        ("/app-health/db/readyz", 500, "refused"),
        ("/app-health/other/livez", 404, "not found"),
    ] {
        let (was, text) = get(status, path).await;
        assert_eq!(was, code, "{path}: {text}");
        assert!(text.contains(body), "{path}: {text}");
    }
    let (code, page) = get(status, "/stats/prometheus").await;
    assert_eq!(code, 200);
    assert!(page.contains("maille_xds_connected") && page.ends_with("app_up 1.0\n"), "{page}");
    assert!(page.contains("\nistio_agent_scrapes_total 1\n"), "{page}");
    assert!(page.contains("\nistio_agent_scrape_failures_total{type=\"application\"} 0\n"), "{page}");
    let (_, own) = get(agent.servers.listening.metrics, "/stats/prometheus").await;
    assert!(own.contains("istio_build") && !own.contains("app_up"), "{own}");
}

#[tokio::test]
async fn orders_and_admin_pages_are_for_this_host_by_its_own_name() {
    let lab = Lab::new().await;
    let (mut agent, _) = lab.agent();
    shared(&agent).await;
    let (status, admin) = (agent.servers.listening.status, agent.servers.listening.admin);
    for (host, method, code) in
        [("evil.example", "POST", 403), ("localhost", "GET", 405), ("localhost:1", "POST", 200)]
    {
        assert_eq!(request(status, method, "/drain", host).await.0, code, "{method} with Host {host}");
    }
    assert_eq!(agent.orders.recv().await, Some(Order::Drain));
    assert_eq!(request(status, "POST", "/quitquitquit", "127.0.0.1").await.0, 200);
    assert_eq!(agent.orders.recv().await, Some(Order::Quit));

    assert_eq!(request(admin, "GET", "/config_dump", "rebound.example").await.0, 403);
    let (code, dump) = get(admin, "/config_dump").await;
    assert_eq!(code, 200);
    assert!(!dump.contains("PRIVATE"), "{dump}");
    let dump: wire::ConfigDump = serde_json::from_str(&dump).expect("protobuf's JSON");
    assert_eq!((dump.workload.as_str(), dump.generation > 0), (OWN, true));
    let facts = dump.facts.expect("facts");
    assert_eq!(facts.inbound.map(|inbound| inbound.mode()), Some(wire::MtlsMode::Strict));
    assert!(facts.mesh_settings.is_some());
    assert!(
        dump.held.iter().any(|held| held.r#type == "Inbound" && held.name == OWN && !held.version.is_empty())
    );
    let own = dump.certificates.and_then(|certificates| certificates.workload).expect("a certificate");
    assert!(own.chain.iter().all(|pem| pem.contains("BEGIN CERTIFICATE")) && !own.serial.is_empty());
    let (_, certs) = get(admin, "/certs").await;
    assert!(
        certs.contains("spiffe://cluster.local/ns/shop/sa/cart") && !certs.contains("PRIVATE"),
        "{certs}"
    );
    assert_eq!(request(admin, "POST", "/logging?level=debug", "localhost").await.0, 404);
    let (code, _) = get(agent.servers.listening.readiness, "/config_dump").await;
    assert_eq!(code, 404, "the readiness port has nothing else");
}

#[tokio::test]
async fn flows_reach_the_control_plane() {
    let lab = Lab::new().await;
    let (agent, telemetry) = lab.agent();
    shared(&agent).await;
    let labels = ConnectionLabels {
        reporter: Reporter::Destination,
        source: Peer::of_identity(&identity("orders"), None),
        destination: Peer::default(),
        service: Arc::new(ServiceLabels::default()),
        port: 8080,
        protocol: Protocol::Tcp,
        security: Security::MutualTls,
        mtls: true,
        key_exchange: "",
    };
    let refusal = Refusal::new(RefusalKind::NoAllowRule, None, "no ALLOW rule matched");
    let (marks, way) = (maille_telemetry::Marks::default(), maille_telemetry::Way::default());
    telemetry.worker().refused_connection(&labels, &refusal, &marks, &way);
    eventually("the flow is reported", || !lab.script.flows.lock().is_empty()).await;
    let flow = lab.script.flows.lock()[0].clone();
    assert_eq!((flow.connections, flow.port, flow.reason.as_str()), (1, 8080, "no ALLOW rule matched"));
    assert_eq!(flow.source.map(|s| s.principal).as_deref(), Some("cluster.local/ns/shop/sa/orders"));
}
