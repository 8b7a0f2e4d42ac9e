//! A real Envoy, configured as Istio configures it, answers the cases as expected, but for those that say otherwise.
//!
//! Needs the program that `MAILLE_ENVOY` names.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use maille_config::istio::JwtRule;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Case, Cases};

#[test]
fn envoy_and_the_table_agree() {
    let Some(program) = envoy() else { return };
    let cases = Cases::load();
    let mut configs = cases.configs();
    let (unknown, known): (Vec<&Case>, Vec<&Case>) =
        cases.cases.iter().partition(|case| case.unknown_to_envoy);
    configs.retain(|name, _| unknown.iter().all(|case| case.config != *name));
    let envoy = Envoy::start(&program, &configs.iter().map(|(n, r)| (*n, r.as_slice())).collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for case in known {
        let agrees = compare(case, &envoy.ask(case));
        match (&case.stricter, agrees) {
            (None, Ok(())) | (Some(_), Err(_)) => {}
            (None, Err(difference)) => wrong.push(format!("{}: {difference}", case.name)),
            (Some(why), Ok(())) => wrong.push(format!("{}: Envoy does so too ({why})", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.cases.len(), wrong.join("\n"));
}

fn envoy() -> Option<PathBuf> {
    let path = std::env::var_os("MAILLE_ENVOY").map(PathBuf::from).filter(|path| path.is_file());
    if path.is_none() {
        assert!(std::env::var_os("CI").is_none(), "MAILLE_ENVOY names no program");
        eprintln!("\n*** SKIPPED: comparison of tokens with Envoy: MAILLE_ENVOY names no program ***\n");
    }
    path
}

fn compare(case: &Case, answer: &Answer) -> Result<(), String> {
    let body = || String::from_utf8_lossy(&answer.body).into_owned();
    if answer.status != case.status {
        return Err(format!("{} {:?} instead of {} {:?}", answer.status, body(), case.status, case.body));
    }
    if case.status != 200 {
        let expected = case.body.as_deref().unwrap_or_default();
        if body() != expected {
            return Err(format!("{:?} instead of {expected:?}", body()));
        }
        let challenge = answer.challenge.as_deref().unwrap_or_default();
        let path = case.path.get(..256).unwrap_or(&case.path);
        let expected = format!("Bearer realm=\"http://app.example{path}\", error=\"invalid_token\"");
        return if challenge == expected { Ok(()) } else { Err(format!("www-authenticate {challenge}")) };
    }
    // What the application saw comes back as the body.
    let seen = body();
    let mut lines = seen.lines();
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let expected = case.upstream.as_deref().unwrap_or(&case.path);
    if path != expected && !same_parameters(path, expected) {
        return Err(format!("path {path} instead of {expected}"));
    }
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
    for (name, value) in &case.forwarded {
        let values: Vec<&str> = headers.iter().filter(|(other, _)| other == name).map(|(_, v)| *v).collect();
        if values != [value] {
            return Err(format!("{name} is {values:?} instead of {value}"));
        }
    }
    match case.absent.iter().find(|name| headers.iter().any(|(other, _)| other == *name)) {
        Some(name) => Err(format!("{name} is there")),
        None => Ok(()),
    }
}

/// Envoy writes the parameters that are left in another order, and decoded.
fn same_parameters(a: &str, b: &str) -> bool {
    let parts = |path: &str| {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut all: Vec<String> = query.split('&').map(|part| part.replace("%41", "A")).collect();
        all.sort();
        (path.to_owned(), all)
    };
    parts(a) == parts(b)
}

struct Answer {
    status: u16,
    challenge: Option<String>,
    body: Vec<u8>,
}

struct Envoy {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    fn start(program: &Path, configs: &[(&str, &[JwtRule])]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let application = application();
        let address = free();
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, configuration(configs, address, application).to_string()).expect("a file");
        let log_file = folder.path().join("envoy.log");
        let log = std::fs::File::create(&log_file).expect("a file");
        let child = Command::new(program)
            .arg("--config-path")
            .arg(&file)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("Envoy starts");
        let mut envoy = Self { child, address, _folder: folder };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = envoy.child.try_wait().expect("it is our child").is_some();
            let log = || std::fs::read_to_string(&log_file).unwrap_or_default();
            assert!(
                !ended && started.elapsed() < Duration::from_secs(60),
                "Envoy does not listen: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        envoy
    }

    fn ask(&self, case: &Case) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("Envoy listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        let mut head = format!(
            "{} {} HTTP/1.1\r\nhost: app.example\r\nx-config: {}\r\nconnection: close\r\n",
            case.method, case.path, case.config
        );
        for (name, value) in &case.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).expect("Envoy reads");
        let mut reader = BufReader::new(stream);
        let lines = head_of(&mut reader);
        let status = lines.first().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let header = |name: &str| {
            let headers = lines.iter().filter_map(|line| line.split_once(": "));
            headers.filter(|(other, _)| *other == name).map(|(_, value)| value.to_owned()).next()
        };
        let mut body = Vec::new();
        reader.read_to_end(&mut body).expect("Envoy ends its answer");
        Answer { status: status.expect("a status"), challenge: header("www-authenticate"), body }
    }
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("it is bound")
}

fn head_of(reader: &mut impl BufRead) -> Vec<String> {
    let mut lines = Vec::new();
    for line in reader.split(b'\n') {
        let line = line.expect("the head is whole");
        let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    lines
}

/// Answers every request with the head that it saw; ends with the process.
fn application() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                loop {
                    let head = head_of(&mut reader).join("\n");
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
                    if head.is_empty() || reader.get_mut().write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// As istio `pilot/pkg/security/authn/policy_applier.go` writes it; the configuration is chosen by a header.
fn configuration(configs: &[(&str, &[JwtRule])], listen: SocketAddr, application: SocketAddr) -> Value {
    let mut providers = serde_json::Map::new();
    let mut rules = Vec::new();
    for (config, of_config) in configs {
        let mut sorted = of_config.to_vec();
        sorted.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        let names: Vec<String> = (0..sorted.len()).map(|index| format!("{config}-{index}")).collect();
        providers.extend(names.iter().cloned().zip(sorted.iter().map(provider)));
        let named = |name: &String| json!({ "provider_name": name });
        let or_missing = |name: &String| json!({ "requires_any": { "requirements": [named(name), { "allow_missing": {} }] } });
        let each: Vec<Value> = names.iter().map(or_missing).collect();
        let requires = match each.as_slice() {
            [one] => one.clone(),
            _ => {
                let mut any: Vec<Value> = names.iter().map(named).collect();
                any.push(json!({ "requires_all": { "requirements": each } }));
                json!({ "requires_any": { "requirements": any } })
            }
        };
        let chosen = json!([{ "name": "x-config", "string_match": { "exact": config } }]);
        rules.push(json!({ "match": { "prefix": "/", "headers": chosen }, "requires": requires }));
    }
    let socket = |address: SocketAddr| {
        let address = json!({ "address": address.ip().to_string(), "port_value": address.port() });
        json!({ "socket_address": address })
    };
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inbound",
        // Answers end when they are sent.
        "delayed_close_timeout": "0s",
        "route_config": { "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "application" } }],
        }] },
        "http_filters": [
            { "name": "tokens", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
                "providers": providers,
                "rules": rules,
                "bypass_cors_preflight": true,
            } },
            { "name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            } },
        ],
    });
    let endpoint = json!({ "endpoint": { "address": socket(application) } });
    json!({ "static_resources": {
        "listeners": [{
            "name": "inbound",
            "address": socket(listen),
            "filter_chains": [{ "filters": [{ "name": "http", "typed_config": manager }] }],
        }],
        "clusters": [{
            "name": "application",
            "connect_timeout": "5s",
            "load_assignment": { "cluster_name": "application", "endpoints": [{ "lb_endpoints": [endpoint] }] },
        }],
    } })
}

fn provider(rule: &JwtRule) -> Value {
    let claims: Vec<Value> = rule
        .output_claim_to_headers
        .iter()
        .map(|output| json!({ "header_name": output.header, "claim_name": output.claim }))
        .collect();
    let headers: Vec<Value> = rule
        .from_headers
        .iter()
        .map(|from| json!({ "name": from.name, "value_prefix": from.prefix }))
        .collect();
    json!({
        "issuer": rule.issuer,
        "audiences": rule.audiences,
        "forward": rule.forward_original_token,
        "forward_payload_header": rule.output_payload_to_header,
        "payload_in_metadata": "payload",
        "normalize_payload_in_metadata": { "space_delimited_claims": ["permission", "scope"] },
        "claim_to_headers": claims,
        "from_headers": headers,
        "from_params": rule.from_params,
        "from_cookies": rule.from_cookies,
        "local_jwks": { "inline_string": rule.jwks },
    })
}
