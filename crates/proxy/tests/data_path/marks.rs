//! What policies say that do not decide, and what is logged and explained.

use std::io::Write;

use maille_proto::flows::{Flow, Protocol};
use maille_proxy::StaticProxy;

use crate::lab::{
    ALLOW_WEB, HOST, Lab, PATIENCE, Server, at, dial, exchange_half_closed, get, http_backend, read_until,
    tcp_backend,
};
use crate::log::Log;

const AUDIT: &str = "{namespace: shop, name: watch, spec: {action: AUDIT, rules: [{to: [{operation: {paths: ['/watched*']}}]}]}}";
/// Dry-run: would deny `/old`, and would allow nothing but GET.
const DRY: &str = "{namespace: shop, name: soon, dryRun: true, spec: {action: DENY, rules: [{to: [{operation: {paths: [/old]}}]}]}}, \
     {namespace: shop, name: only-get, dryRun: true, spec: {action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]}}";

fn authorizations(all: &[&str]) -> String {
    format!("authorizations: [{}]", all.join(", "))
}

/// Reference authorization 3: AUDIT never changes the decision.
#[test]
fn what_an_audit_policy_marks_is_logged_and_counted_even_when_the_mesh_logs_refusals_only() {
    let lab = Lab::new();
    let log = Log::at(&lab);
    let extra = log.yaml() + &authorizations(&[AUDIT]);
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: None,
        mode: "PERMISSIVE",
        extra: &extra,
        ..Default::default()
    });
    for path in ["/quiet", "/watched/1?token=secret", "/quiet"] {
        assert!(get(at(&server), path).starts_with("HTTP/1.1 200"), "{path}");
    }
    let text = log.until(PATIENCE, |text| text.contains("audit_policy"));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(" audited inbound HTTP \"GET /watched/1\" 200 "), "{text}");
    assert!(text.contains("audit_policy=\"ns[shop]-policy[watch]-rule[0]\""), "{text}");
    assert!(!text.contains("secret"), "{text}");
    let metrics = server.metrics();
    let counted =
        metrics.lines().find(|line| line.starts_with("maille_authz_decisions_total")).unwrap_or_default();
    assert!(counted.contains("decision=\"audit\"") && counted.ends_with(" 1"), "{metrics}");
}

fn would_refuse(flows: &[Flow]) -> Vec<(String, i32, u64)> {
    let all = flows.iter().flat_map(|flow| &flow.would_refuse);
    let mut all: Vec<_> = all.map(|w| (w.policy.clone(), w.rule, w.count)).collect();
    all.sort();
    all
}

/// Reference authorization 14.
#[test]
fn dry_runs_refuse_nothing_and_tell_what_they_would_have_refused() {
    let lab = Lab::new();
    let log = Log::at(&lab);
    let extra = format!("{}settings: {{accessLog: TEXT}}\n{}", log.yaml(), authorizations(&[DRY]));
    let server =
        lab.server(&Server { backend: http_backend(), policy: None, extra: &extra, ..Default::default() });
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    for path in ["/old", "/new", "/old"] {
        assert!(get(at(&web), path).starts_with("HTTP/1.1 200"), "{path}");
    }
    let mut stream = dial(at(&web));
    write!(stream, "POST /new HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 0\r\n\r\n").expect("open");
    assert!(read_until(&mut stream, "body 0\n").starts_with("HTTP/1.1 200"));
    let text = log.until(PATIENCE, |text| text.lines().count() >= 4);
    let posted =
        text.lines().find(|line| line.contains("\"POST /new HTTP/1.1\" 200 - via_upstream")).expect("logged");
    assert!(posted.contains("istio_dry_run_allow_shadow_engine_result=\"denied\""), "{posted}");
    assert!(posted.contains("istio_dry_run_allow_shadow_effective_policy_id=\"none\""), "{posted}");
    assert!(posted.contains("istio_dry_run_deny_shadow_engine_result=\"allowed\""), "{posted}");
    let old = text.lines().find(|line| line.contains("\"GET /old HTTP/1.1\"")).expect("logged");
    let id = "istio_dry_run_deny_shadow_effective_policy_id=\"ns[shop]-policy[soon]-rule[0]\"";
    assert!(old.contains("istio_dry_run_deny_shadow_engine_result=\"denied\"") && old.contains(id), "{old}");

    let flows = server.take_flows();
    assert_eq!(would_refuse(&flows), [(String::new(), -1, 1), ("shop/soon".to_owned(), 0, 2)]);
    let metrics = server.metrics();
    let count = |parts: &[&str]| {
        let lines = metrics.lines().filter(|line| line.starts_with("maille_authz_decisions_total"));
        lines.filter(|line| parts.iter().all(|part| line.contains(part))).count()
    };
    assert_eq!(count(&["would_deny", "action=\"DENY\"", "policy=\"soon\"", "rule=\"0\"} 2"]), 1, "{metrics}");
    assert_eq!(count(&["would_deny", "action=\"ALLOW\"", "policy=\"\"", "} 1"]), 1, "{metrics}");
    assert_eq!(count(&["would_allow", "action=\"ALLOW\"", "policy=\"only-get\"", "} 3"]), 1, "{metrics}");
}

/// What is refused anyway is nobody's would-be refusal; a workload without such policies has no marks.
#[test]
fn dry_runs_of_connections_count_what_was_let_through() {
    let lab = Lab::new();
    let dry = "{namespace: shop, name: soon, dryRun: true, spec: {action: DENY, rules: [{}]}}";
    let only = format!("{{namespace: shop, name: only, spec: {ALLOW_WEB}}}");
    let extra = authorizations(&[dry, &only]);
    let server = lab.server(&Server {
        backend: tcp_backend(b""),
        protocol: "TCP",
        policy: None,
        extra: &extra,
        ..Default::default()
    });
    let call = |proxy: &StaticProxy| exchange_half_closed(at(proxy), b"hello");
    assert_eq!(call(&lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL")), "hello");
    assert_eq!(call(&lab.client("thief", at(&server), "TCP", "ISTIO_MUTUAL")), "");
    let mut flows = Vec::new();
    let deadline = std::time::Instant::now() + PATIENCE;
    while would_refuse(&flows).is_empty() && std::time::Instant::now() < deadline {
        flows.extend(server.take_flows());
    }
    assert_eq!(would_refuse(&flows), [("shop/soon".to_owned(), 0, 1)]);
    assert!(flows.iter().all(|flow| flow.protocol() == Protocol::Tcp), "{flows:?}");
}

#[test]
fn refusals_are_explained_to_the_caller_only_when_the_mesh_says_so() {
    let lab = Lab::new();
    let mut facts = Server { backend: http_backend(), mode: "PERMISSIVE", ..Default::default() };
    let server = lab.server(&facts);
    let silent = get(at(&server), "/x");
    assert!(silent.starts_with("HTTP/1.1 403") && !silent.contains("x-maille-reason"), "{silent}");
    facts.extra = "settings: {explainInResponse: true}";
    lab.server_file(&facts);
    server.reload().expect("good facts");
    let told = get(at(&server), "/x");
    let reason = told.lines().find_map(|line| line.strip_prefix("x-maille-reason: ")).unwrap_or_default();
    assert!(reason.contains("no ALLOW rule matches") && reason.contains("shop/only"), "{told}");
    assert!(told.ends_with("RBAC: access denied"), "{told}");
    facts.extra = "";
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(!get(at(&server), "/x").contains("x-maille-reason"));
}

#[test]
fn a_log_of_everything_has_a_line_for_each_request_and_each_connection_of_opaque_bytes() {
    let lab = Lab::new();
    let log = Log::at(&lab);
    let settings = |format: &str| format!("{}settings: {{accessLog: {format}}}", log.yaml());
    let text = settings("TEXT");
    let mut facts = Server { backend: http_backend(), extra: &text, ..Default::default() };
    let backend = facts.backend;
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    assert!(get(at(&web), "/a?token=secret").starts_with("HTTP/1.1 200"));
    let line = log.until(PATIENCE, |text| !text.is_empty());
    let sni = format!("outbound_.80_._.{HOST}");
    let (_, rest) = line.trim_end().split_once("] ").expect("a time");
    assert!(rest.starts_with("\"GET /a HTTP/1.1\" 200 - via_upstream - \"-\" 0 "), "{line}");
    let place = format!("\"{HOST}\" \"{backend}\" inbound|{}|| 127.0.0.6:", backend.port());
    assert!(rest.contains(&format!(" {backend} 127.0.0.1:")), "{line}");
    assert!(rest.contains(&place) && rest.ends_with(&format!(" {sni} default")), "{line}");

    let thief = lab.client("thief", at(&server), "HTTP", "ISTIO_MUTUAL");
    assert!(get(at(&thief), "/b").starts_with("HTTP/1.1 403"));
    let line = log.until(PATIENCE, |text| text.lines().count() == 2);
    let line = line.lines().last().expect("two").to_owned();
    assert!(
        line.contains("\"GET /b HTTP/1.1\" 403 - rbac_access_denied_matched_policy[none] - \"-\" 0 19 "),
        "{line}"
    );
    assert!(line.contains(&format!("\"{HOST}\" \"-\" inbound|{}|| - ", backend.port())), "{line}");
    assert!(line.contains("source_identity=\"cluster.local/ns/shop/sa/thief\""), "{line}");

    // Hot: the same connection, another format.
    let json = settings("JSON");
    facts.extra = &json;
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(get(at(&web), "/c").starts_with("HTTP/1.1 200"));
    let line = log.until(PATIENCE, |text| text.contains("\"/c\""));
    let line: serde_json::Value = serde_json::from_str(line.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&line["response_code"], &line["method"]), (&200.into(), &"GET".into()), "{line}");
    assert_eq!(line["requested_server_name"], sni, "{line}");

    // And off again.
    let quiet = log.yaml();
    facts.extra = &quiet;
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(get(at(&web), "/d").starts_with("HTTP/1.1 200"));
    assert!(get(at(&thief), "/e").starts_with("HTTP/1.1 403"));
    let all = log.until(PATIENCE, |text| text.contains("/e"));
    assert!(!all.contains("/d") && all.contains(" refused inbound HTTP \"GET /e\" 403 "), "{all}");
    assert!(!all.contains("secret"), "{all}");
}

#[test]
fn connections_of_opaque_bytes_are_logged_with_what_they_moved() {
    let lab = Lab::new();
    let log = Log::at(&lab);
    let extra = format!("{}settings: {{accessLog: TEXT}}", log.yaml());
    let server = lab.server(&Server {
        backend: tcp_backend(b"hi "),
        protocol: "TCP",
        extra: &extra,
        ..Default::default()
    });
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    assert_eq!(exchange_half_closed(at(&web), b"hello"), "hi hello");
    let line = log.until(PATIENCE, |text| !text.is_empty());
    assert!(line.contains("] \"- - -\" 0 - - - \"-\" 5 8 "), "{line}");
    let thief = lab.client("thief", at(&server), "TCP", "ISTIO_MUTUAL");
    assert_eq!(exchange_half_closed(at(&thief), b"hello"), "");
    let text = log.until(PATIENCE, |text| text.lines().count() == 2);
    let line = text.lines().last().expect("two");
    assert!(line.contains("\"- - -\" 0 - - rbac_access_denied_matched_policy[none] \"-\" 0 0 "), "{line}");
}

#[test]
fn outgoing_requests_are_logged_under_istios_names_for_where_they_went() {
    let lab = Lab::new();
    let (log, backend) = (Log::at(&lab), http_backend());
    let file = |policy: &str| {
        let path = lab.stranger_file(backend, policy);
        let text = std::fs::read_to_string(&path).expect("readable");
        let text = text.replace("settings: {", &format!("{}settings: {{accessLog: TEXT, ", log.yaml()));
        std::fs::write(&path, text).expect("writable");
        path
    };
    let web = StaticProxy::start(&file("ALLOW_ANY")).expect("the outbound proxy starts");
    assert!(get(at(&web), "/a").starts_with("HTTP/1.1 200"));
    let line = log.until(PATIENCE, |text| !text.is_empty());
    let place = format!("\"{HOST}\" \"{backend}\" PassthroughCluster 127.0.0.1:");
    assert!(line.contains("\"GET /a HTTP/1.1\" 200 - via_upstream ") && line.contains(&place), "{line}");
    assert!(line.trim_end().ends_with(" - allow_any"), "{line}");
    file("REGISTRY_ONLY");
    web.reload().expect("good facts");
    assert!(get(at(&web), "/b").starts_with("HTTP/1.1 502"));
    let text = log.until(PATIENCE, |text| text.lines().count() == 2);
    let line = text.lines().last().expect("two");
    assert!(
        line.contains("\"GET /b HTTP/1.1\" 502 NC ") && line.contains("\"-\" BlackHoleCluster - "),
        "{line}"
    );
    assert!(line.contains(" - block_all refusal=\"unknown_destination\""), "{line}");
}
