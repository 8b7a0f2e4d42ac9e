//! What is recorded comes out again: metrics that promtool accepts, flows, access log lines.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maille_core::Identity;
use maille_proto::flows;
use maille_telemetry::access_log::{Coverage, Format};
use maille_telemetry::{
    AccessLog, ConnectionLabels, Marks, Names, Naming, OwnWorkload, Peer, PolicyRef, Protocol, Refusal,
    RefusalKind, Registry, Reporter, RequestLine, RequestOutcome, ResponseFlags, Security, ServiceLabels,
    Shadow, TlsReason, Transfer, Way, WorkloadLabels,
};
use parking_lot::Mutex;

fn registry(log: AccessLog) -> Arc<Registry> {
    Registry::new(OwnWorkload { cluster: "Kubernetes".into(), version: "1.2.3".into() }, log)
}

fn workload(name: &str, namespace: &str, principal: &str) -> Peer {
    Peer {
        workload: Arc::new(WorkloadLabels {
            name: name.into(),
            namespace: namespace.into(),
            principal: principal.into(),
            app: name.into(),
            canonical_name: name.into(),
            canonical_revision: "v2".into(),
        }),
        uid: format!("{namespace}/{name}-1").into(),
        address: Some([10, 244, 0, 7].into()),
    }
}

fn labels(source: Peer) -> ConnectionLabels {
    let secure = !source.workload.principal.is_empty();
    ConnectionLabels {
        reporter: Reporter::Destination,
        source,
        destination: workload("cart", "production", "cluster.local/ns/production/sa/cart"),
        service: Arc::new(ServiceLabels {
            host: "cart.production.svc.cluster.local".into(),
            name: "cart".into(),
            namespace: "production".into(),
        }),
        port: 8080,
        protocol: Protocol::Http,
        security: if secure { Security::MutualTls } else { Security::None },
        mtls: secure,
        key_exchange: "",
    }
}

fn frontend() -> Peer {
    workload("frontend", "production", "cluster.local/ns/production/sa/frontend")
}

fn outcome(code: u16) -> RequestOutcome {
    RequestOutcome {
        code,
        flags: ResponseFlags::None,
        grpc: false,
        grpc_status: None,
        duration: Duration::from_micros(700),
        request_bytes: 300,
        response_bytes: 1200,
        ..RequestOutcome::default()
    }
}

/// The value of the one line that begins with `name` and holds every part.
fn value(page: &str, name: &str, parts: &[&str]) -> f64 {
    let mut found = page.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && parts.iter().all(|p| line.contains(p))
    });
    let line = found.next().unwrap_or_else(|| panic!("no {name} with {parts:?} in\n{page}"));
    assert_eq!(found.next(), None, "two lines of {name} with {parts:?}");
    line.rsplit(' ').next().and_then(|v| v.parse().ok()).expect("a number")
}

#[test]
fn requests_and_connections_are_counted_with_istios_names_and_summed_over_workers() {
    let registry = registry(AccessLog::disabled());
    for _ in 0..2 {
        let worker = registry.worker();
        let connection = worker.connection_opened(&labels(frontend()));
        connection.edge().request(&outcome(200));
        connection.edge().request(&outcome(404));
        connection.bytes(2400, 600);
        connection.close(ResponseFlags::DownstreamDisconnect);
    }
    let page = registry.render_prometheus();
    let from = "source_principal=\"spiffe://cluster.local/ns/production/sa/frontend\"";
    assert_eq!(value(&page, "istio_requests_total", &[from, "response_code=\"200\""]), 2.0);
    assert_eq!(
        value(&page, "istio_requests_total", &["response_code=\"404\"", "request_protocol=\"http\""]),
        2.0
    );
    let bucket = "istio_request_duration_milliseconds_bucket";
    assert_eq!(value(&page, bucket, &["response_code=\"200\"", "le=\"0.5\""]), 0.0);
    assert_eq!(value(&page, bucket, &["response_code=\"200\"", "le=\"1\""]), 2.0);
    assert_eq!(value(&page, "istio_request_duration_milliseconds_sum", &["response_code=\"200\""]), 1.4);
    assert_eq!(value(&page, "istio_request_bytes_sum", &["response_code=\"200\""]), 600.0);
    assert_eq!(value(&page, "istio_response_bytes_count", &["response_code=\"200\""]), 2.0);
    assert_eq!(
        value(
            &page,
            "istio_tcp_connections_opened_total",
            &["request_protocol=\"tcp\"", "response_flags=\"-\""]
        ),
        2.0
    );
    assert_eq!(value(&page, "istio_tcp_connections_closed_total", &["response_flags=\"DC\""]), 2.0);
    assert_eq!(value(&page, "istio_tcp_sent_bytes_total", &["response_flags=\"-\""]), 4800.0);
    let all = value(&page, "istio_requests_total", &["response_code=\"200\""]);
    assert_eq!(all, 2.0);
}

#[test]
fn refused_plaintext_shows_up_as_opened_and_closed_without_security() {
    let registry = registry(AccessLog::disabled());
    let worker = registry.worker();
    let caller = Peer::of_address([10, 244, 0, 9].into());
    worker.refused_connection(
        &labels(caller),
        &Refusal::new(RefusalKind::Plaintext, None, "plaintext under STRICT"),
        &Marks::default(),
        &Way::default(),
    );
    let page = registry.render_prometheus();
    let parts =
        ["connection_security_policy=\"none\"", "response_flags=\"NR\"", "source_workload=\"unknown\""];
    assert_eq!(value(&page, "istio_tcp_connections_opened_total", &parts), 1.0);
    assert_eq!(value(&page, "istio_tcp_connections_closed_total", &parts), 1.0);
    assert_eq!(
        value(&page, "maille_refusals_total", &["reason=\"plaintext\"", "direction=\"inbound\""]),
        1.0
    );
    let flows = registry.take_flows();
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0].decision(), flows::Decision::RefusedTls);
    assert_eq!(flows[0].source.as_ref().map(|s| s.address.as_str()), Some("10.244.0.9"));
}

/// Reference cli-and-telemetry 3.1: all labels, and no other.
#[test]
fn every_metric_has_exactly_istios_labels() {
    let registry = registry(AccessLog::disabled());
    let connection = registry.worker().connection_opened(&labels(frontend()));
    connection.edge().request(&outcome(200));
    connection.bytes(1, 1);
    let ends = [
        "app",
        "canonical_revision",
        "canonical_service",
        "cluster",
        "principal",
        "version",
        "workload",
        "workload_namespace",
    ];
    let mut tcp: Vec<String> = ["source", "destination"]
        .iter()
        .flat_map(|end| ends.iter().map(move |l| format!("{end}_{l}")))
        .collect();
    tcp.extend(
        [
            "connection_security_policy",
            "destination_service",
            "destination_service_name",
            "destination_service_namespace",
            "reporter",
            "request_protocol",
            "response_flags",
        ]
        .map(str::to_owned),
    );
    let mut http = tcp.clone();
    http.extend(["grpc_response_status", "response_code"].map(str::to_owned));
    tcp.sort_unstable();
    http.sort_unstable();
    assert_eq!((tcp.len(), http.len()), (23, 25));
    let page = registry.render_prometheus();
    for (name, expected) in [
        ("istio_requests_total", &http),
        ("istio_request_duration_milliseconds_count", &http),
        ("istio_request_bytes_sum", &http),
        ("istio_response_bytes_sum", &http),
        ("istio_tcp_connections_opened_total", &tcp),
        ("istio_tcp_connections_closed_total", &tcp),
        ("istio_tcp_sent_bytes_total", &tcp),
        ("istio_tcp_received_bytes_total", &tcp),
    ] {
        let line = page.lines().find(|l| l.starts_with(&format!("{name}{{"))).expect(name);
        let inside = line.split(['{', '}']).nth(1).expect("labels");
        let mut found: Vec<_> =
            inside.split(',').filter_map(|part| part.split_once('=')).map(|p| p.0).collect();
        found.sort_unstable();
        assert_eq!(&found, expected, "{name}");
    }
    value(&page, "istio_build", &["component=\"proxy\"", "tag=\"1.2.3\""]);
}

/// Reference cli-and-telemetry 3.1: `unknown`, but `latest` for the revision, `0` for no answer, and `-` for no flags.
#[test]
fn what_is_not_known_is_said_as_istio_says_it() {
    let registry = registry(AccessLog::disabled());
    let edge = registry.worker().edge(&labels(Peer::of_address([10, 244, 0, 9].into())));
    edge.request(&outcome(0));
    let page = registry.render_prometheus();
    let unknown =
        ["workload", "workload_namespace", "principal", "app", "version", "canonical_service", "cluster"];
    let mut parts: Vec<String> = unknown.iter().map(|l| format!("source_{l}=\"unknown\"")).collect();
    parts.push("source_canonical_revision=\"latest\"".into());
    parts.extend(
        ["response_code=\"0\"", "grpc_response_status=\"\"", "response_flags=\"-\""].map(str::to_owned),
    );
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    assert_eq!(value(&page, "istio_requests_total", &parts), 1.0);
    let named = ["destination_cluster=\"Kubernetes\"", "destination_version=\"v2\""];
    assert_eq!(value(&page, "istio_requests_total", &named), 1.0);
}

#[test]
fn grpc_requests_carry_their_status_and_tell_from_http() {
    let registry = registry(AccessLog::disabled());
    let edge = registry.worker().edge(&labels(frontend()));
    edge.request(&RequestOutcome { grpc: true, grpc_status: Some(7), ..outcome(200) });
    edge.request(&outcome(200));
    let page = registry.render_prometheus();
    let grpc = ["request_protocol=\"grpc\"", "grpc_response_status=\"7\"", "response_code=\"200\""];
    assert_eq!(value(&page, "istio_requests_total", &grpc), 1.0);
    let http = ["request_protocol=\"http\"", "grpc_response_status=\"\""];
    assert_eq!(value(&page, "istio_requests_total", &http), 1.0);
}

/// Somebody who failed to prove who they are is not to be taken for one who does not try.
#[test]
fn a_failed_handshake_is_counted_with_flag_and_reason_and_not_as_plaintext() {
    let registry = registry(AccessLog::disabled());
    let worker = registry.worker();
    let refusal = Refusal {
        tls: Some(TlsReason::UntrustedCa),
        ..Refusal::new(RefusalKind::TlsHandshake, None, "another mesh's")
    };
    let caller = workload("rogue", "legacy", "");
    worker.refused_connection(&labels(caller.clone()), &refusal, &Marks::default(), &Way::default());
    worker.refused_connection(
        &labels(caller),
        &Refusal::new(RefusalKind::Plaintext, None, "plaintext"),
        &Marks::default(),
        &Way::default(),
    );
    let page = registry.render_prometheus();
    for name in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
        let failed = ["response_flags=\"TLS_FAILURE\"", "connection_security_policy=\"unknown\""];
        assert_eq!(value(&page, name, &failed), 1.0);
        let plain = ["response_flags=\"NR\"", "connection_security_policy=\"none\""];
        assert_eq!(value(&page, name, &plain), 1.0);
    }
    for reason in ["untrusted_ca", "plaintext"] {
        let parts = [
            "direction=\"inbound\"",
            &format!("reason=\"{reason}\""),
            "source_workload=\"rogue\"",
            "source_workload_namespace=\"legacy\"",
            "destination_workload=\"cart\"",
            "destination_workload_namespace=\"production\"",
        ];
        assert_eq!(value(&page, "maille_mtls_rejected_total", &parts), 1.0, "{reason}");
    }
}

/// Knows one address once it is told to.
#[derive(Default)]
struct Registered(std::sync::atomic::AtomicBool);

impl Names for Registered {
    fn name(&self, address: std::net::IpAddr, principal: &str) -> Naming {
        let known = self.0.load(std::sync::atomic::Ordering::SeqCst) && principal.is_empty();
        match known && address == std::net::IpAddr::from([10, 244, 0, 9]) {
            true => Naming::Named(workload("legacy-client", "legacy", "").workload),
            false => Naming::Pending,
        }
    }
}

#[test]
fn a_caller_counted_before_its_name_was_known_is_named_afterwards() {
    let registry = registry(AccessLog::disabled());
    let names = Arc::new(Registered::default());
    registry.set_names(names.clone());
    let worker = registry.worker();
    let caller = || Peer::of_address([10, 244, 0, 9].into());
    let open = worker.connection_opened(&labels(caller()));
    worker.refused_connection(
        &labels(caller()),
        &Refusal::new(RefusalKind::Plaintext, None, ""),
        &Marks::default(),
        &Way::default(),
    );
    drop(worker.connection_opened(&labels(Peer::of_address([192, 0, 2, 1].into()))));
    let opened = "istio_tcp_connections_opened_total";
    let page = registry.render_prometheus();
    assert_eq!(value(&page, opened, &["source_workload=\"unknown\"", "response_flags=\"-\""]), 2.0);

    names.0.store(true, std::sync::atomic::Ordering::SeqCst);
    for round in 0..40 {
        let page = registry.render_prometheus();
        let named = "source_workload=\"legacy-client\"";
        assert_eq!(value(&page, opened, &[named, "response_flags=\"-\""]), 1.0, "{round}");
        assert_eq!(value(&page, opened, &[named, "response_flags=\"NR\""]), 1.0);
        assert_eq!(value(&page, "maille_mtls_rejected_total", &[named]), 1.0);
        assert_eq!(value(&page, opened, &["source_workload=\"unknown\""]), 1.0, "the stranger stays unknown");
    }
    open.edge().request(&outcome(200));
    drop(open);
    // One more that comes without a name: its counts join those that have it.
    drop(worker.connection_opened(&labels(caller())));
    drop(worker.connection_opened(&labels(workload("legacy-client", "legacy", ""))));
    for _ in 0..2 {
        let page = registry.render_prometheus();
        let named = ["source_workload=\"legacy-client\"", "response_flags=\"-\""];
        assert_eq!(value(&page, opened, &named), 3.0);
        assert_eq!(value(&page, "istio_requests_total", &named[..1]), 1.0);
    }
}

#[test]
fn strangers_without_a_name_do_not_fill_the_table() {
    let registry = registry(AccessLog::disabled());
    registry.set_names(Arc::new(Registered::default()));
    let worker = registry.worker();
    for round in 0..100u8 {
        for n in 0..100u8 {
            drop(worker.connection_opened(&labels(Peer::of_address([192, 0, round, n].into()))));
        }
        let page = registry.render_prometheus();
        let expected = (f64::from(round) + 1.0) * 100.0;
        let opened = value(&page, "istio_tcp_connections_opened_total", &["source_workload=\"unknown\""]);
        assert_eq!(opened, expected);
        assert_eq!(value(&page, "maille_label_sets_overflowed_total", &[]), 0.0);
    }
}

#[test]
fn certificates_say_when_they_end() {
    let registry = registry(AccessLog::disabled());
    assert!(!registry.render_prometheus().contains("cert_expiry"), "nothing before the first");
    let now = std::time::SystemTime::now();
    registry.gauges().identity("cluster.local/ns/production/sa/cart".into());
    registry.gauges().certificate_loaded(now + Duration::from_secs(3600));
    registry.gauges().roots_loaded(now + Duration::from_secs(90_000));
    let page = registry.render_prometheus();
    let left = |name: &str, part: &str| value(&page, name, &[part]);
    assert!(
        (3500.0..=3600.0).contains(&left("istio_agent_cert_expiry_seconds", "resource_name=\"default\""))
    );
    assert!(left("istio_agent_cert_expiry_seconds", "resource_name=\"ROOTCA\"") > 89_000.0);
    let leaf = value(
        &page,
        "maille_cert_expiry_timestamp_seconds",
        &["kind=\"leaf\"", "identity=\"cluster.local/ns/production/sa/cart\""],
    );
    assert!(left("maille_cert_expiry_timestamp_seconds", "kind=\"root\"") - leaf > 80_000.0);
}

#[test]
fn a_client_never_claims_a_security_policy() {
    let registry = registry(AccessLog::disabled());
    let edge = registry.worker().edge(&ConnectionLabels { reporter: Reporter::Source, ..labels(frontend()) });
    edge.request(&outcome(200));
    let page = registry.render_prometheus();
    value(&page, "istio_requests_total", &["reporter=\"source\"", "connection_security_policy=\"unknown\""]);
    assert!(registry.take_flows()[0].mtls, "its flows know");
}

#[test]
fn flows_are_deltas_and_refusals_are_flows_of_their_own() {
    let registry = registry(AccessLog::disabled());
    let worker = registry.worker();
    let connection = worker.connection_opened(&labels(frontend()));
    connection.edge().request(&outcome(200));
    connection.edge().request(&outcome(503));
    let policy = PolicyRef { namespace: "production", name: "deny-delete", rule: 3 };
    let refusal = Refusal::new(RefusalKind::DenyRule, Some(policy), "method DELETE is denied");
    let request = RequestLine { method: "DELETE", authority: "cart", path: "/x", ..RequestLine::default() };
    worker.refused_request(connection.edge(), &request, &outcome(403), &refusal);

    let mut flows = registry.take_flows();
    flows.sort_by_key(|f| f.decision);
    assert_eq!(flows.len(), 2);
    let allowed = &flows[0];
    assert_eq!((allowed.connections, allowed.requests, allowed.rule), (1, 2, -1));
    assert_eq!(allowed.responses, [0, 1, 0, 0, 1]);
    assert_eq!((allowed.bytes_sent, allowed.bytes_received, allowed.duration_us), (2400, 600, 1400));
    assert_eq!(allowed.protocol(), flows::Protocol::Http);
    let denied = &flows[1];
    assert_eq!(denied.decision(), flows::Decision::Denied);
    assert_eq!((denied.policy.as_str(), denied.rule), ("production/deny-delete", 3));
    assert_eq!((denied.requests, denied.reason.as_str()), (1, "method DELETE is denied"));

    assert_eq!(registry.take_flows(), []);
    connection.edge().request(&outcome(200));
    let flows = registry.take_flows();
    assert_eq!((flows.len(), flows[0].requests, flows[0].connections), (1, 1, 0));
}

#[test]
fn what_a_rule_allows_is_a_flow_that_names_it_and_the_same_metrics() {
    let registry = registry(AccessLog::disabled());
    let worker = registry.worker();
    let connection = worker.connection_opened(&labels(frontend()));
    connection.edge().request(&outcome(200));
    let rule = PolicyRef { namespace: "production", name: "allow-frontend", rule: 1 };
    worker.allowed_by(connection.edge(), rule).request(&outcome(200));

    let flows = registry.take_flows();
    let named =
        flows.iter().find(|flow| flow.policy == "production/allow-frontend").expect("a flow names the rule");
    assert_eq!((named.decision(), named.rule, named.requests), (flows::Decision::Allowed, 1, 1));
    let page = registry.render_prometheus();
    assert_eq!(value(&page, "istio_requests_total", &["response_code=\"200\""]), 2.0);
}

#[test]
fn an_open_connection_that_policy_cuts_is_closed_once_and_says_why() {
    let registry = registry(AccessLog::disabled());
    let worker = registry.worker();
    let connection = worker.connection_opened(&labels(frontend()));
    let refusal = Refusal::new(RefusalKind::PolicyChanged, None, "no ALLOW rule matches any more");
    worker.connection_cut(connection, &refusal, &Marks::default(), &Way::default(), Transfer::default());
    let page = registry.render_prometheus();
    assert_eq!(value(&page, "istio_tcp_connections_closed_total", &["response_flags=\"LR\""]), 1.0);
    assert_eq!(value(&page, "maille_refusals_total", &["reason=\"policy_changed\""]), 1.0);
}

#[test]
fn too_many_callers_end_up_under_other_and_that_is_counted() {
    let registry = registry(AccessLog::disabled());
    let worker = registry.worker();
    for n in 0..5000 {
        let peer = workload(&format!("caller-{n}"), "flood", "");
        drop(worker.connection_opened(&labels(peer)));
    }
    let page = registry.render_prometheus();
    let lines = page.lines().filter(|l| l.starts_with("istio_tcp_connections_opened_total{")).count();
    assert!(lines <= 1100, "{lines} series");
    assert!(value(&page, "istio_tcp_connections_opened_total", &["source_workload=\"other\""]) > 3000.0);
    assert!(value(&page, "maille_label_sets_overflowed_total", &[]) > 3000.0);
    assert!(registry.take_flows().len() <= 2100);
    assert!(value(&page, "maille_flows_overflowed_total", &[]) > 2000.0);
}

#[test]
fn the_page_is_what_promtool_expects() {
    let registry = registry(AccessLog::disabled());
    let worker = registry.worker();
    let mut odd = frontend();
    odd.workload = Arc::new(WorkloadLabels { name: "a\"b\\c\nd".into(), ..(*odd.workload).clone() });
    let connection = worker.connection_opened(&labels(odd));
    connection.edge().request(&RequestOutcome { grpc: true, grpc_status: Some(0), ..outcome(200) });
    worker.refused_connection(
        &labels(frontend()),
        &Refusal::new(RefusalKind::TlsHandshake, None, "no certificate"),
        &Marks::default(),
        &Way::default(),
    );
    registry.gauges().identity("cluster.local/ns/production/sa/cart".into());
    registry.gauges().certificate_renewed(std::time::SystemTime::now(), std::time::SystemTime::now());
    registry.gauges().roots_loaded(std::time::SystemTime::now());
    registry.gauges().xds_updated(std::time::SystemTime::now());
    let page = registry.render_prometheus();
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
            return;
        }
    };
    promtool.stdin.take().expect("piped").write_all(page.as_bytes()).expect("written");
    let output = promtool.wait_with_output().expect("ended");
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    // Istio's own name: the linter would have it in seconds.
    let complaints: Vec<_> =
        said.lines().filter(|line| !line.contains("istio_request_duration_milliseconds")).collect();
    assert!(complaints.is_empty(), "{said}\n{page}");
}

/// A log reader that can be looked at.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn first(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let text = String::from_utf8_lossy(&self.0.lock()).into_owned();
            if let Some((line, _)) = text.split_once('\n') {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "no line was written");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn refuse(log: AccessLog) {
    let registry = registry(log);
    let worker = registry.worker();
    let caller = Identity::parse_principal("cluster.local/ns/development/sa/dev").expect("valid");
    let peer = Peer::of_identity(&caller, Some([10, 244, 0, 9].into()));
    let edge = worker.edge(&labels(peer));
    let reason = "no ALLOW rule matched; nearest production/cart rule 0: method GET, was \"DELETE\"";
    let request = RequestLine {
        method: "DELETE",
        authority: "cart",
        path: "/a\" forged=\"1?token=secret",
        ..RequestLine::default()
    };
    worker.refused_request(
        &edge,
        &request,
        &outcome(403),
        &Refusal::new(RefusalKind::NoAllowRule, None, reason),
    );
}

#[test]
fn a_refusal_is_one_json_line_that_says_who_what_and_why() {
    let lines = Lines::default();
    refuse(AccessLog::to(lines.clone(), Format::Json, "production/cart-1").expect("thread"));
    let line: serde_json::Value = serde_json::from_str(&lines.first()).expect("JSON");
    for (key, expected) in [
        ("event", "refused"),
        ("pod", "production/cart-1"),
        ("direction", "inbound"),
        ("refusal", "no_allow_rule"),
        ("response_code_details", "rbac_access_denied_matched_policy[none]"),
        ("response_flags", "-"),
        ("source_identity", "cluster.local/ns/development/sa/dev"),
        ("source_address", "10.244.0.9"),
        ("path", "/a\" forged=\"1"),
    ] {
        assert_eq!(line[key], expected, "{key} in {line}");
    }
    assert_eq!((line["response_code"].as_u64(), line["policy"].is_null()), (Some(403), true));
    assert!(!line.to_string().contains("secret"), "query strings carry tokens");
}

#[test]
fn a_text_line_cannot_be_forged_by_a_caller() {
    let lines = Lines::default();
    refuse(AccessLog::to(lines.clone(), Format::Text, "production/cart-1").expect("thread"));
    let line = lines.first();
    assert!(
        line.contains(" refused inbound HTTP \"DELETE /a\\\" forged=\\\"1\" 403 - rbac_access"),
        "{line}"
    );
    assert!(line.contains("source_identity=\"cluster.local/ns/development/sa/dev\""), "{line}");
    assert!(!line.contains("secret"), "{line}");
}

/// A reader that does not read.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let (release, stuck) = std::sync::mpsc::channel();
    let log = AccessLog::to(Stuck(stuck), Format::Text, "a/b").expect("thread");
    let registry = registry(log.clone());
    let worker = registry.worker();
    for _ in 0..3000 {
        worker.refused_connection(
            &labels(frontend()),
            &Refusal::new(RefusalKind::Plaintext, None, "plaintext"),
            &Marks::default(),
            &Way::default(),
        );
    }
    assert!(log.dropped() > 1000, "{}", log.dropped());
    let page = registry.render_prometheus();
    assert!(value(&page, "maille_access_log_lines_dropped_total", &[]) > 1000.0);
    drop(release);
}

fn audit_rule() -> PolicyRef<'static> {
    PolicyRef { namespace: "production", name: "watch", rule: 2 }
}

/// One allowed request with everything that a line can hold, and one connection, logged as the mesh says.
fn everything(coverage: Coverage, marks: Marks<'_>) -> Vec<String> {
    let lines = Lines::default();
    let log = AccessLog::to(lines.clone(), Format::Text, "production/cart-1").expect("thread");
    let registry = registry(log);
    let worker = registry.worker();
    worker.cover(coverage);
    let edge = worker.edge(&labels(frontend()));
    let at = |last: u8, port: u16| Some(std::net::SocketAddr::from(([10, 244, 0, last], port)));
    let way = Way {
        upstream: at(7, 8080),
        upstream_local: None,
        downstream_local: at(7, 8080),
        downstream_remote: at(9, 51000),
        server_name: "outbound_.80_._.cart.production.svc.cluster.local",
    };
    let line = RequestLine {
        method: "GET",
        authority: "cart",
        path: "/items?access_token=secret",
        protocol: "HTTP/1.1",
        forwarded_for: "203.0.113.9",
        user_agent: "curl/8",
        request_id: "",
        marks,
        way,
    };
    let outcome = RequestOutcome {
        request_head_bytes: 280,
        response_head_bytes: 1000,
        upstream_time: Some(Duration::from_millis(5)),
        duration: Duration::from_millis(7),
        ..outcome(200)
    };
    worker.log_request(&edge, &line, &outcome);
    let transfer =
        Transfer { received: 11, sent: 22, duration: Duration::from_millis(3), ..Transfer::default() };
    worker.log_connection(&labels(frontend()), &Marks::default(), &way, transfer);
    worker.refused_connection(
        &labels(frontend()),
        &Refusal::new(RefusalKind::Plaintext, None, "the end"),
        &Marks::default(),
        &way,
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let text = String::from_utf8_lossy(&lines.0.lock()).into_owned();
        if text.contains("the end") && text.ends_with('\n') {
            return text.lines().map(str::to_owned).collect();
        }
        assert!(Instant::now() < deadline, "the last line was not written: {text}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reference cli-and-telemetry 4.1: fields and their order; no query string.
#[test]
fn what_goes_its_way_is_istios_default_line_and_nothing_else() {
    let lines = everything(Coverage::Everything(Format::Text), Marks::default());
    let (time, rest) = lines[0].split_once("] ").expect("a time");
    assert!(time.starts_with("[20") && time.ends_with('Z') && time.len() == 25, "{time}");
    assert_eq!(
        rest,
        "\"GET /items HTTP/1.1\" 200 - via_upstream - \"-\" 20 200 7 5 \"203.0.113.9\" \"curl/8\" \"-\" \"cart\" \
         \"10.244.0.7:8080\" inbound|8080|| - 10.244.0.7:8080 10.244.0.9:51000 \
         outbound_.80_._.cart.production.svc.cluster.local default"
    );
    let (_, rest) = lines[1].split_once("] ").expect("a time");
    assert_eq!(
        rest,
        "\"- - -\" 0 - - - \"-\" 11 22 3 - \"-\" \"-\" \"-\" \"-\" \"10.244.0.7:8080\" inbound|8080|| - \
         10.244.0.7:8080 10.244.0.9:51000 outbound_.80_._.cart.production.svc.cluster.local -"
    );
    assert!(lines[2].contains("] \"- - -\" 0 NR - filter_chain_not_found \"-\" 0 0 0 "), "{}", lines[2]);
    assert!(
        lines[2].contains(" refusal=\"plaintext\" ") && lines[2].contains("reason=\"the end\""),
        "{}",
        lines[2]
    );
}

#[test]
fn json_lines_of_everything_have_istios_keys_with_numbers_as_numbers() {
    let lines = everything(Coverage::Everything(Format::Json), Marks::default());
    let line: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
    let keys = "start_time method path protocol response_code response_flags response_code_details \
         connection_termination_details upstream_transport_failure_reason bytes_received bytes_sent duration \
         upstream_service_time x_forwarded_for user_agent request_id authority upstream_host upstream_cluster \
         upstream_local_address downstream_local_address downstream_remote_address requested_server_name route_name";
    for key in keys.split_whitespace() {
        assert!(line.get(key).is_some(), "{key} is missing in {line}");
    }
    assert_eq!((&line["response_code"], &line["duration"]), (&200.into(), &7.into()));
    assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&20.into(), &200.into()));
    assert_eq!((&line["path"], &line["event"]), (&"/items".into(), &"request".into()));
    assert!(line["request_id"].is_null() && line.get("audit_policy").is_none(), "{line}");
    assert!(!lines.join("").contains("secret"), "query strings carry tokens");
}

#[test]
fn quiet_logs_hold_refusals_and_what_an_audit_policy_marks() {
    assert_eq!(everything(Coverage::Refusals, Marks::default()).len(), 1);
    let marked = Marks { audit: Some(audit_rule()), ..Marks::default() };
    let lines = everything(Coverage::Refusals, marked);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains(" audited inbound HTTP \"GET /items\" 200 "), "{}", lines[0]);
    assert!(lines[0].contains("audit_policy=\"ns[production]-policy[watch]-rule[2]\""), "{}", lines[0]);
}

/// Reference authorization 14.
#[test]
fn dry_run_results_are_logged_counted_and_told_per_pair_within_a_bound() {
    let denied = PolicyRef { namespace: "production", name: "soon", rule: 0 };
    let marks = Marks {
        audit: None,
        shadow_allow: Some(Shadow { allowed: false, policy: None }),
        shadow_deny: Some(Shadow { allowed: false, policy: Some(denied) }),
    };
    let line = everything(Coverage::Everything(Format::Text), marks).swap_remove(0);
    for part in [
        "istio_dry_run_allow_shadow_engine_result=\"denied\"",
        "istio_dry_run_allow_shadow_effective_policy_id=\"none\"",
        "istio_dry_run_deny_shadow_engine_result=\"denied\"",
        "istio_dry_run_deny_shadow_effective_policy_id=\"ns[production]-policy[soon]-rule[0]\"",
    ] {
        assert!(line.contains(part), "{part} is missing in {line}");
    }

    let registry = registry(AccessLog::disabled());
    let worker = registry.worker();
    let edge = worker.edge(&labels(frontend()));
    for _ in 0..3 {
        worker.marked(Reporter::Destination, &marks);
        edge.would_refuse(Some(denied));
        edge.request(&outcome(200));
    }
    edge.would_refuse(None);
    let flows = registry.take_flows();
    let told: Vec<_> = flows[0].would_refuse.iter().map(|w| (w.policy.as_str(), w.rule, w.count)).collect();
    assert_eq!(told, [("production/soon", 0, 3), ("", -1, 1)]);
    let page = registry.render_prometheus();
    let parts = ["decision=\"would_deny\"", "action=\"DENY\"", "policy=\"soon\"", "rule=\"0\""];
    assert_eq!(value(&page, "maille_authz_decisions_total", &parts), 3.0);

    for number in 0..100 {
        edge.would_refuse(Some(PolicyRef { rule: number, ..denied }));
    }
    edge.request(&outcome(200));
    let flows = registry.take_flows();
    let told = &flows[0].would_refuse;
    assert!(told.len() <= 17, "{}", told.len());
    assert_eq!(told.iter().map(|w| w.count).sum::<u64>(), 100);
}
