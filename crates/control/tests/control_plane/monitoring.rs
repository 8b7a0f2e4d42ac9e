//! The monitoring port: what Prometheus reads there, and where it is told to read on.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use maille_config::istio::MutualTlsMode;
use maille_control::world::{Change, Event, Scrape};
use maille_proto::flows::flows_client::FlowsClient;
use maille_proto::flows::{Decision, Flow, FlowReport, Peer, Reporter};
use maille_xds::type_urls::{INBOUND, MESH_SETTINGS};
use tracing::field::{Field, Visit};
use tracing::span;

use crate::lab::{CART, Lab, WEB, eventually, peer_authentication, pod};

/// Every complaint of promtool's linter about a page; `None` if there is no promtool.
fn promtool_says(page: &str) -> Option<String> {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match promtool {
        Ok(child) => child,
        Err(error) => {
            eprintln!("SKIPPED (needs promtool, Debian package prometheus): {error}");
            return None;
        }
    };
    promtool.stdin.take().expect("piped").write_all(page.as_bytes()).expect("written");
    let output = promtool.wait_with_output().expect("ended");
    Some(String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout))
}

#[tokio::test]
async fn metrics_have_istios_names_and_promtool_takes_them() {
    let lab = Lab::new().await;
    lab.apply(Event::PeerAuthentication(Change::Put(peer_authentication("shop", MutualTlsMode::Strict))));
    let svid = lab.svid(CART, "shop:cart").await;
    let proxy = lab.proxy(CART, svid).await;
    proxy.client.subscribe_wildcard(MESH_SETTINGS);
    proxy.client.subscribe(INBOUND, "shop/cart-1").expect("subscribes");
    eventually("inbound", || proxy.seen.get::<maille_proto::facts::Inbound>(INBOUND, "shop/cart-1")).await;
    let (_, page) = lab.http("/metrics").await;
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        &format!("istio_build{{component=\"pilot\",tag=\"{version}\"}} 1"),
        &format!("pilot_info{{version=\"{version}\"}} 1"),
        &format!("pilot_xds{{version=\"{version}\"}} 1"),
        "pilot_xds_pushes{type=\"Inbound\"} 1",
        "pilot_services 1",
        "citadel_server_csr_count 1",
        "citadel_server_success_cert_issuance_count 1",
        "citadel_server_authentication_failure_count 0",
        "citadel_server_csr_sign_err_count 0",
        "maille_meshed_workloads 2",
        "maille_namespace_mtls_mode{destination_workload_namespace=\"shop\",mode=\"STRICT\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
    }
    let number = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name} in\n{page}")).parse::<f64>().expect("a number")
    };
    for kind in ["root_cert", "cert_chain"] {
        let left = number(&format!("citadel_server_{kind}_expiry_seconds"));
        assert!(left > 86_400.0 && number(&format!("citadel_server_{kind}_expiry_timestamp")) > left);
    }
    for name in ["istiod_uptime_seconds", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(number(name) >= 0.0);
    }
    // The linter would have other names for what is Istio's.
    let istios = ["citadel_server_", "pilot_xds_pushes ", "pilot_total_xds_rejects "];
    let Some(said) = promtool_says(&page) else { return };
    let complaints: Vec<_> =
        said.lines().filter(|line| !istios.iter().any(|name| line.starts_with(name))).collect();
    assert!(complaints.is_empty(), "{said}\n{page}");
}

#[tokio::test]
async fn which_namespaces_take_plaintext_is_not_told_to_workloads() {
    let lab = Lab::new().await;
    let tells = async || {
        let (status, page) = lab.http("/metrics").await;
        assert!(status == 200 && page.contains("pilot_info{"), "{status} {page}");
        page.contains("maille_namespace_mtls_mode")
    };
    assert!(tells().await, "to whoever is no workload");
    // The test itself calls from 127.0.0.1: let that be a workload's address, then one of the root namespace.
    let mut caller = pod("snoop", "snoop", "127.0.0.1");
    lab.apply(Event::Pod(Change::Put(caller.clone())));
    assert!(!tells().await);
    lab.apply(Event::Pod(Change::Delete(caller.name.clone())));
    caller.name.namespace = "istio-system".into();
    lab.apply(Event::Pod(Change::Put(caller)));
    assert!(tells().await, "to Prometheus");
}

#[tokio::test]
async fn prometheus_is_told_where_metrics_are_and_workloads_are_not() {
    let lab = Lab::new().await;
    assert_eq!(lab.http("/sd/prometheus").await, (200, "[]".to_owned()), "nobody wants to be read");
    let mut meshed = pod("cart-1", "cart", CART);
    meshed.scrape = Some(Scrape { port: 15020, path: "/stats/prometheus".into(), scheme: "http".into() });
    lab.apply(Event::Pod(Change::Put(meshed)));
    let mut six = pod("six", "six", "fd00::7");
    six.labels.clear();
    six.scrape = Some(Scrape { port: 9102, path: "/metrics".into(), scheme: "https".into() });
    lab.apply(Event::Pod(Change::Put(six)));
    let (_, body) = lab.http("/sd/prometheus").await;
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let expected = serde_json::json!([
        {"targets": [format!("{CART}:15020")], "labels": {
            "__metrics_path__": "/stats/prometheus", "__scheme__": "http", "namespace": "shop", "pod": "cart-1",
            "workload": "cart", "app": "cart"
        }},
        {"targets": ["[fd00::7]:9102"], "labels": {
            "__metrics_path__": "/metrics", "__scheme__": "https", "namespace": "shop", "pod": "six",
            "workload": "six"
        }}
    ]);
    assert_eq!(answer, expected);
    // The test itself calls from 127.0.0.1: let that be a workload's address, then one of the root namespace.
    lab.apply(Event::Pod(Change::Put(pod("snoop", "snoop", "127.0.0.1"))));
    assert_eq!(lab.http("/sd/prometheus").await.0, 403);
    let mut prometheus = pod("snoop", "prometheus", "127.0.0.1");
    lab.apply(Event::Pod(Change::Delete(prometheus.name.clone())));
    prometheus.name.namespace = "istio-system".into();
    lab.apply(Event::Pod(Change::Put(prometheus)));
    assert_eq!(lab.http("/sd/prometheus").await.0, 200);
}

/// `kubectl port-forward` comes from the loopback interface; a Pod of the control plane's namespace does not.
#[tokio::test]
async fn identities_certificates_and_proxies_are_shown_to_no_pod_at_all() {
    let lab = Lab::new().await;
    let paths = ["/ca/issued", "/ca/revocations", "/proxies", "/facts?proxy=shop/web-1"];
    for path in paths {
        assert_ne!(lab.http(path).await.0, 403, "{path}");
    }
    for namespace in ["shop", "istio-system"] {
        let mut caller = pod("snoop", "snoop", "127.0.0.1");
        caller.name.namespace = namespace.into();
        lab.apply(Event::Pod(Change::Replace(vec![caller])));
        for path in paths.into_iter().chain(["/ca"]) {
            let (status, body) = lab.http(path).await;
            assert!(
                status == 403 && body.contains("kubectl port-forward"),
                "{namespace} {path} {status} {body}"
            );
        }
        for path in ["/metrics", "/healthz"] {
            assert_eq!(lab.http(path).await.0, 200, "{namespace} {path}");
        }
    }
}

/// Keeps the lines of one target.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
        }
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "maille::tls"
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::new();
        event.record(&mut Message(&mut line));
        self.0.lock().expect("lock").push(line);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The guide: `kubectl logs -n istio-system -l app=istiod --tail=100 | grep -i "tls"`.
#[tokio::test]
async fn what_proxies_refuse_for_tls_is_a_line_of_the_control_planes_log() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let lab = Lab::new().await;
    let svid = lab.svid(CART, "shop:cart").await;
    let channel = lab.channel(CART, Some(&svid)).await.expect("connects");
    let flow = |decision: Decision, reason: &str| Flow {
        reporter: Reporter::Destination.into(),
        source: Some(Peer { address: WEB.into(), ..Default::default() }),
        port: 8080,
        decision: decision.into(),
        reason: reason.into(),
        connections: 3,
        ..Default::default()
    };
    let plaintext = "port 8080 is STRICT and the client sent plaintext; it may have no sidecar";
    let flows = vec![
        flow(Decision::RefusedTls, plaintext),
        flow(Decision::RefusedTls, plaintext),
        flow(Decision::Denied, "no ALLOW rule matched"),
    ];
    let reports = tokio_stream::iter([FlowReport { flows, state: None }]);
    FlowsClient::new(channel).report(reports).await.expect("taken");
    let expected = format!(
        "TLS refused 3 times by the destination's proxy: shop/web (Pod shop/web-1, {WEB}) to shop/cart port 8080: \
         {plaintext}"
    );
    assert_eq!(*lines.0.lock().expect("lock"), [expected]);
    let (_, page) = lab.http("/metrics").await;
    assert!(page.contains("\nmaille_tls_refusals_reported_total 6\n"), "{page}");
}
