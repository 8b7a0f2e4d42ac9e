//! The same questions, answers and requests through a real Envoy 1.40 as Istio configures it: what the provider is
//! asked, what the application gets and what the caller is told must be the same.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Provider, PythonAuthorizer, ask, parts, raw_http};
use crate::lab::{Lab, PATIENCE, Server, at};

/// What only Envoy adds, or what is different in every request.
const NOISE: [&str; 8] = [
    "server:",
    "date:",
    "connection:",
    "x-request-id:",
    "x-forwarded-proto:",
    "x-envoy-upstream-service-time:",
    "x-envoy-expected-rq-timeout-ms:",
    "x-envoy-internal:",
];

/// An Envoy with one HTTP filter before the router.
struct Envoy {
    child: Child,
    at: SocketAddr,
}

impl Envoy {
    fn start(
        lab: &Lab,
        filter: &Value,
        provider: SocketAddr,
        is_grpc: bool,
        backend: SocketAddr,
    ) -> Option<Self> {
        let program = crate::envoy::Envoy::program()?;
        // Free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let socket = |at: SocketAddr| json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
        let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
        let cluster = |name: &str, at: SocketAddr, http2: bool| {
            let mut cluster = json!({"name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": {
                "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(at)}}]}]}});
            if http2 {
                cluster["typed_extension_protocol_options"] = json!({
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": typed("upstreams.http.v3.HttpProtocolOptions"),
                        "explicit_http_config": {"http2_protocol_options": {}}}});
            }
            cluster
        };
        let manager = json!({
            "@type": typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "inbound", "normalize_path": true,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "backend"}}]}]},
            "http_filters": [
                {"name": "envoy.filters.http.ext_authz", "typed_config": filter},
                {"name": "envoy.filters.http.router",
                 "typed_config": {"@type": typed("filters.http.router.v3.Router")}}]});
        let config = json!({"static_resources": {
            "listeners": [{"address": socket(address), "filter_chains": [{"filters": [
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
            "clusters": [cluster("backend", backend, false), cluster("authz", provider, is_grpc)]}});
        let file = lab.path("envoy.json");
        std::fs::write(&file, config.to_string()).expect("writable");
        let child = Command::new(program)
            .arg("-c")
            .arg(file)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "error"])
            .stderr(Stdio::null())
            .spawn()
            .expect("Envoy starts");
        let envoy = Self { child, at: address };
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "Envoy does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(envoy)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An application with headers of its own, whose body is the request that it got.
fn backend() -> SocketAddr {
    raw_http(|request| {
        let head = "x-r1: old\r\nx-r2: old\r\nx-r2: older\r\n";
        format!("HTTP/1.1 200 OK\r\n{head}content-length: {}\r\n\r\n{request}", request.len()).into_bytes()
    })
}

/// What of an answer has to be the same, in an order that says nothing.
fn essence(answer: &str) -> String {
    let (status, headers, body) = parts(answer);
    let settled = |mut lines: Vec<String>, also: &[&str]| {
        lines.retain(|line| !NOISE.iter().chain(also).any(|noise| line.starts_with(noise)));
        // Of fields with the same name the order counts.
        lines.sort_by_key(|line| line.split(':').next().map(str::to_owned));
        lines.join("\n")
    };
    match body.split_once("\r\n\r\n") {
        Some((head, rest)) if status.ends_with("200 ok") => {
            let mut lines = head.lines().map(str::to_owned);
            let start = lines.next().unwrap_or_default();
            let got = settled(lines.map(|line| line.to_lowercase()).collect(), &["content-length: 0"]);
            format!("{status}\n{}\n{start}\n{got}\n{rest}", settled(headers, &["content-length:"]))
        }
        _ => {
            // Envoy says of an empty answer that it is empty; so does hyper, except where a status says so.
            format!("{status}\n{}\n{body}", settled(headers, &["content-length: 0"]))
        }
    }
}

/// A check without what differs between any two.
fn settled(mut check: Value) -> Value {
    let attributes = &mut check["check"]["attributes"];
    attributes["source"]["address"]["socketAddress"]["portValue"] = Value::Null;
    attributes["destination"]["address"]["socketAddress"]["portValue"] = Value::Null;
    attributes["request"]["time"] = Value::Null;
    let http = &mut attributes["request"]["http"];
    http["id"] = Value::Null;
    if let Some(headers) = http["headers"].as_object_mut() {
        headers.retain(|name, _| name != "x-request-id" && name != "x-forwarded-proto");
    }
    check["check"].clone()
}

/// Numbers without rhyme, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        let index = self.below(of.len() as u64);
        of[usize::try_from(index).expect("an index")]
    }

    fn option(&mut self, names: &[&str]) -> Value {
        let mut option = json!({"header": {
            "key": self.pick(names), "value": self.pick(&["new", "newer", "", "a, b"])}});
        if self.below(2) == 0 {
            option["append"] = json!(self.below(2) == 0);
        }
        if self.below(2) == 0 {
            option["appendAction"] = json!(self.below(4));
        }
        option
    }

    fn options(&mut self, names: &[&str]) -> Vec<Value> {
        (0..self.below(4)).map(|_| self.option(names)).collect()
    }

    fn answer(&mut self) -> Value {
        const SENT: [&str; 5] = ["x-a", "X-B", "x-c", "cookie", "x-new"];
        const RETURNED: [&str; 4] = ["x-r1", "x-r2", "X-New", "set-cookie"];
        let status =
            json!({"code": self.pick(&["0", "0", "0", "7", "16"]).parse::<i32>().expect("a number")});
        let told = |dice: &mut Self| {
            json!({
                "status": {"code": dice.pick(&["0", "401", "302", "429", "503"]).parse::<i32>().expect("a number")},
                "headers": dice.options(&["x-r1", "Set-Cookie", "location", "content-type"]),
                "body": dice.pick(&["", "no", "{\"a\": 1}"])})
        };
        match self.below(5) {
            0 => json!({"status": status}),
            1 => json!({"status": status, "deniedResponse": told(self)}),
            2 => json!({"status": status, "errorResponse": told(self)}),
            _ => {
                let removed =
                    |dice: &mut Self| dice.pick(&["x-b", "X-A", "host", ":path", "x-none"]).to_owned();
                let parameter = |dice: &mut Self| json!({"key": dice.pick(&["a", "b", "z"]), "value": dice.pick(&["1", "%20", ""])});
                json!({"status": status, "okResponse": {
                    "headers": self.options(&SENT),
                    "headersToRemove": (0..self.below(3)).map(|_| removed(self)).collect::<Vec<_>>(),
                    "responseHeadersToAdd": self.options(&RETURNED),
                    "queryParametersToSet": (0..self.below(3)).map(|_| parameter(self)).collect::<Vec<_>>(),
                    "queryParametersToRemove": (0..self.below(2)).map(|_| self.pick(&["a", "c"])).collect::<Vec<_>>()}})
            }
        }
    }
}

#[test]
fn the_grpc_form_is_envoys() {
    let lab = Lab::new();
    let mut dice = Dice(40);
    let paths: Vec<String> = (0..300)
        .map(|number| {
            format!(
                "/asked/{number}{}",
                dice.pick(&["", "?", "?a=1", "?b=2&a=1&a=3&c&d=", "?x=%2F&&y", "?&", "?a&"])
            )
        })
        .collect();
    let answers: serde_json::Map<String, Value> =
        paths.iter().map(|path| (path.clone(), dice.answer())).collect();
    let Some(authorizer) = PythonAuthorizer::start(&lab, &json!(answers).to_string()) else { return };
    let backend = backend();
    let filter = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "status_on_error": {"code": 502},
        "with_request_body": {"max_request_bytes": 6, "allow_partial_message": true},
        "grpc_service": {"timeout": "20s", "envoy_grpc": {
            "cluster_name": "authz", "authority": "authz.shop.svc.cluster.local"}}});
    let Some(envoy) = Envoy::start(&lab, &filter, authorizer.at, true, backend) else { return };
    let settings = "timeoutMs: 20000, statusOnError: 502, body: {maxRequestBytes: 6, allowPartialMessage: true}, grpc: {}";
    let extra = Provider::new(authorizer.at, settings).facts();
    let server =
        lab.server(&Server { mode: "PERMISSIVE", policy: None, backend, extra: &extra, ..Server::default() });
    let mut differences = String::new();
    for path in &paths {
        let mut lines = vec![
            "x-a: old",
            "x-b: old",
            "x-b: older",
            "cookie: a=1",
            "cookie: b=2",
            "x-envoy-auth-partial-body: true",
        ];
        if dice.below(4) == 0 {
            lines.push("content-type: application/grpc");
        }
        let body = dice.pick(&["", "short", "longer than six"]);
        let start = format!("{} {path}", if body.is_empty() { "GET" } else { "POST" });
        let [envoys, ours] = [envoy.at, at(&server)].map(|subject| {
            let answer = ask(subject, &start, &lines, body);
            (essence(&answer), settled(authorizer.check()))
        });
        let answer = &answers[path];
        if envoys.0 != ours.0 {
            let (envoys, ours) = (&envoys.0, &ours.0);
            let _ = writeln!(differences, "{start} {lines:?}\n{answer}\nEnvoy: {envoys}\nhere: {ours}\n");
        }
        if envoys.1 != ours.1 {
            let _ = writeln!(differences, "{start} {lines:?}\nEnvoy asks {}\nhere {}\n", envoys.1, ours.1);
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn the_http_form_is_envoys() {
    let lab = Lab::new();
    let backend = backend();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let provider = raw_http({
        let asked = asked.clone();
        move |request| {
            asked.lock().expect("unpoisoned").push(request.to_owned());
            let code = request.split("/code-").nth(1).and_then(|rest| rest.get(..3)).unwrap_or("200");
            let head = "x-a: 1\r\nx-a: 2\r\nX-Up: new\r\nx-r1: 1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nlocation: /l\r\n\
                        www-authenticate: Basic\r\ncontent-type: text/html\r\nx-envoy-auth-headers-to-remove: x-b, X-C\r\n";
            let body = if ["204", "304"].contains(&code) { "\r\n" } else { "content-length: 4\r\n\r\nsaid" };
            format!("HTTP/1.1 {code} Said\r\n{head}{body}").into_bytes()
        }
    });
    let list = |names: &[&str]| {
        let pattern = |name: &&str| match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(suffix), _) => json!({"suffix": suffix, "ignore_case": true}),
            (None, Some(prefix)) => json!({"prefix": prefix, "ignore_case": true}),
            (None, None) => json!({"exact": name, "ignore_case": true}),
        };
        (!names.is_empty()).then(|| json!({"patterns": names.iter().map(pattern).collect::<Vec<_>>()}))
    };
    let variants: [(&str, [&[&str]; 4]); 3] = [
        ("", [&[], &[], &[], &[]]),
        ("/pre", [&["X-A", "*-two"], &["x-up", "set-cookie"], &["x-a"], &["x-r*", "set-cookie"]]),
        ("/pre/fix", [&["x*", "cookie"], &["x-a", "host"], &["set-*"], &["*-a"]]),
    ];
    let mut differences = String::new();
    for (prefix, [shown, upstream, on_deny, on_allow]) in variants {
        let filter = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
            "transport_api_version": "V3",
            "allowed_headers": list(shown),
            "with_request_body": {"max_request_bytes": 6, "allow_partial_message": true},
            "http_service": {
                "path_prefix": prefix,
                "server_uri": {"uri": "http://authz.shop.svc.cluster.local", "cluster": "authz", "timeout": "20s"},
                "authorization_request": {"headers_to_add": [{"key": "x-more", "value": "added"}]},
                "authorization_response": {"allowed_upstream_headers": list(upstream),
                    "allowed_client_headers": list(on_deny), "allowed_client_headers_on_success": list(on_allow)}}});
        let Some(envoy) = Envoy::start(&lab, &filter, provider, false, backend) else { return };
        let settings = format!(
            "timeoutMs: 20000, body: {{maxRequestBytes: 6, allowPartialMessage: true}}, http: {{pathPrefix: '{prefix}', \
             includeRequestHeaders: {shown:?}, includeAdditionalHeaders: {{x-more: added}}, \
             headersToUpstreamOnAllow: {upstream:?}, headersToDownstreamOnDeny: {on_deny:?}, \
             headersToDownstreamOnAllow: {on_allow:?}}}"
        );
        let extra = Provider::new(provider, &settings).facts();
        let server = lab.server(&Server {
            mode: "PERMISSIVE",
            policy: None,
            backend,
            extra: &extra,
            ..Server::default()
        });
        for code in [200, 201, 204, 301, 302, 304, 400, 401, 403, 404, 429, 500, 503] {
            for (start, body) in
                [("GET", ""), ("POST", "short"), ("POST", "longer than six"), ("OPTIONS", "")]
            {
                for content_type in ["text/plain", "application/grpc+proto"] {
                    let lines = [
                        "x-a: old",
                        "X-B: old",
                        "x-c: old",
                        "x-two: 1",
                        "x-two: 2",
                        "cookie: c=1",
                        "authorization: Bearer x",
                    ];
                    let content_type = format!("content-type: {content_type}");
                    let lines: Vec<&str> = lines.into_iter().chain([content_type.as_str()]).collect();
                    let start = format!("{start} /asked/code-{code}?a=1&b");
                    let [envoys, ours] = [envoy.at, at(&server)].map(|subject| {
                        let answer = essence(&ask(subject, &start, &lines, body));
                        let question = asked.lock().expect("unpoisoned").pop().expect("a check");
                        (answer, essence(&format!("HTTP/1.1 200 OK\r\n\r\n{question}")))
                    });
                    if envoys != ours {
                        let _ = writeln!(
                            differences,
                            "{start} {body} {content_type} {prefix}\nEnvoy: {envoys:?}\nhere: {ours:?}\n"
                        );
                    }
                }
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
}
