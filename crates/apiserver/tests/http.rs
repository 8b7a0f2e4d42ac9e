//! What the wire sees: anonymous callers, limits, logs and proxied requests.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use support::{Server, eventually, kubectl};

/// Asks with curl and the kubeconfig's credentials, unless `anonymous`.
fn curl(server: &Server, anonymous: bool, arguments: &[&str], path: &str) -> (u16, String) {
    use base64::Engine;
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(server.kubeconfig()).expect("there")).expect("JSON");
    let file = |name: &str, value: &serde_json::Value| {
        let path = server.dir.path().join(name);
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(value.as_str().expect("text")).expect("base64");
        std::fs::write(&path, bytes).expect("written");
        path
    };
    let cluster = &config["clusters"][0]["cluster"];
    let user = &config["users"][0]["user"];
    let mut command = Command::new("curl");
    command
        .args(["-sS", "-m", "20", "-w", "\n%{http_code}"])
        .arg("--cacert")
        .arg(file("ca", &cluster["certificate-authority-data"]));
    if !anonymous {
        command.arg("--cert").arg(file("crt", &user["client-certificate-data"]));
        command.arg("--key").arg(file("key", &user["client-key-data"]));
    }
    let url = format!("{}{path}", cluster["server"].as_str().expect("text"));
    let output = command.args(arguments).arg(url).output().expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or(("", "0"));
    (code.parse().unwrap_or(0), body.to_owned())
}

#[test]
fn anonymous_callers_see_health_and_nothing_else() {
    let server = Server::start();
    for path in ["/healthz", "/readyz", "/livez", "/version"] {
        assert_eq!(curl(&server, true, &[], path).0, 200, "{path}");
    }
    for path in ["/", "/api", "/apis", "/openapi/v3", "/api/v1/pods", "/nothing"] {
        let (code, body) = curl(&server, true, &[], path);
        assert_eq!(code, 401, "{path}");
        assert!(body.contains("\"reason\":\"Unauthorized\""), "{body}");
    }
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(server.kubeconfig()).expect("there"));
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn bad_requests_get_a_status_that_says_why() {
    let server = Server::start();
    let maps = "/api/v1/namespaces/default/configmaps";
    let post = |content_type: &str, body: &str, path: &str| {
        curl(
            &server,
            false,
            &["-X", "POST", "-H", &format!("Content-Type: {content_type}"), "-d", body],
            path,
        )
    };
    for (content_type, body, path, code, part) in [
        ("application/json", "{", maps, 400, "decoded"),
        ("application/json", "[]", maps, 400, "one JSON object"),
        (
            "application/json",
            r#"{"metadata":{"name":"a","name":"b"}}"#,
            maps,
            400,
            "duplicate field \\\"metadata.name\\\"",
        ),
        ("application/json", r#"{"kind":"Secret","metadata":{"name":"a"}}"#, maps, 400, "does not match"),
        ("application/json", r#"{"metadata":{"name":"A"}}"#, maps, 422, "metadata.name"),
        ("application/json", r#"{"metadata":{"name":"a","namespace":"b"}}"#, maps, 400, "namespace"),
        ("application/json", "{}", "/api/v1/namespaces/nowhere/configmaps", 404, "nowhere"),
        ("application/json", "{}", "/api/v1/configmaps", 405, "does not allow"),
        ("application/cbor", "x", maps, 415, "media types"),
        ("application/json", "{}", "/api/v1/namespaces/default/nothings", 404, "could not find"),
    ] {
        let (found, answer) = post(content_type, body, path);
        assert_eq!(found, code, "{body} {answer}");
        assert!(answer.contains(part) && answer.contains("\"kind\":\"Status\""), "{part}: {answer}");
    }
    let large = server.dir.path().join("large");
    std::fs::write(&large, vec![b' '; 4 << 20]).expect("written");
    let data = format!("@{}", large.display());
    let (code, answer) = curl(
        &server,
        false,
        &["-X", "POST", "-H", "Content-Type: application/json", "--data-binary", &data],
        maps,
    );
    assert_eq!(code, 413, "{answer}");
    // YAML is read, too, and the answer has what the server made.
    let (code, answer) = post("application/yaml", "metadata:\n  name: made\ndata:\n  k: v\n", maps);
    assert_eq!(code, 201, "{answer}");
    assert!(answer.contains("\"uid\""), "{answer}");
}

#[test]
fn logs_are_read_followed_and_cut() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply("{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: default}, spec: {containers: [{name: a, image: x}, {name: b, image: x}]}}");
    let uid = server.kubectl(&["get", "pod", "one", "-o", "jsonpath={.metadata.uid}"]);
    let dir = server.dir.path().join("pods").join(uid);
    std::fs::create_dir_all(&dir).expect("made");
    let log = dir.join("a.log");
    std::fs::write(&log, "2026-01-01T00:00:00.5Z stdout F first\n2026-01-01T00:00:01Z stderr F second\n")
        .expect("written");
    assert_eq!(server.kubectl(&["logs", "one", "-c", "a"]), "first\nsecond\n");
    assert_eq!(server.kubectl(&["logs", "one", "-c", "a", "--tail=1"]), "second\n");
    assert_eq!(
        server.kubectl(&["logs", "one", "-c", "a", "--timestamps", "--tail=1"]),
        "2026-01-01T00:00:01Z second\n"
    );
    assert_eq!(server.kubectl(&["logs", "one", "-c", "a", "--since-time=2026-01-01T00:00:01Z"]), "second\n");
    assert!(
        server
            .refused(&["logs", "one", "-c", "a", "--previous"], "")
            .contains("previous terminated container")
    );
    assert!(server.refused(&["logs", "one", "-c", "zzz"], "").contains("not valid"));
    // Following ends with the container.
    let mut child = Command::new(kubectl().expect("looked for"))
        .arg("--kubeconfig")
        .arg(server.kubeconfig())
        .args(["logs", "-f", "one", "-c", "a"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut out = child.stdout.take().expect("piped");
    let mut seen = [0; 13];
    out.read_exact(&mut seen).expect("what was there");
    let mut file = std::fs::OpenOptions::new().append(true).open(&log).expect("opened");
    file.write_all(b"2026-01-01T00:00:02Z stdout F third\n").expect("written");
    let mut seen = [0; 6];
    out.read_exact(&mut seen).expect("what was added");
    assert_eq!(&seen, b"third\n");
    server.kubectl(&["delete", "pod", "one", "--grace-period=0", "--force"]);
    eventually("the stream ends", || child.try_wait().expect("asked").is_some());
}

/// The machine's own address towards a network of documentation (RFC 5737); nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[test]
fn services_and_pods_are_reached_through_the_api() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    let Some(address) = own_address() else {
        eprintln!("SKIPPED: this machine has no address but loopback, which no endpoint may have");
        return;
    };
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            let text = String::from_utf8_lossy(&head[..read]).into_owned();
            assert!(!text.to_lowercase().contains("authorization"), "{text}");
            let line = text.lines().next().unwrap_or_default().to_owned();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{line}",
                line.len()
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    server.apply(&format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-x, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{{addresses: ["{address}"], conditions: {{ready: true}}}}]
ports: [{{name: http, port: {port}}}]
"#
    ));
    for name in ["web:80", "web:http", "http:web:http", "web"] {
        let path = format!("/api/v1/namespaces/default/services/{name}/proxy/a%20b/?q=1");
        // kubectl adds its own timeout to the query.
        let line = server.kubectl(&["get", "--raw", &path]);
        assert!(line.starts_with("GET /a%20b/?q=1"), "{name}: {line}");
    }
    let (code, answer) =
        curl(&server, false, &[], "/api/v1/namespaces/default/services/kubernetes:nope/proxy/");
    assert_eq!(code, 503, "{answer}");
}
