//! External authorization (reference authorization 15): a server of Envoy's protocol in another language, and servers
//! that do what they should not.

mod envoy;
mod grpc;
mod hostile;
mod plain;
mod tcp;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use maille_proxy::StaticProxy;
use serde_json::Value;

use crate::lab::{HOST, Lab, PATIENCE, Server, exchange, http_backend};

/// Where nothing listens.
pub(crate) const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// Asks about every path below `/asked`.
pub(crate) const ASKED: &str = "[{to: [{operation: {paths: ['/asked*']}}]}]";

/// What a server's file says of a provider.
pub(crate) struct Provider<'a> {
    pub(crate) at: SocketAddr,
    /// As the file has it, such as `grpc: {}, failOpen: true`.
    pub(crate) settings: &'a str,
    /// Of its port, as a Service declares it.
    pub(crate) protocol: &'a str,
    pub(crate) rules: &'a str,
    /// Further policies.
    pub(crate) policies: &'a str,
}

impl<'a> Provider<'a> {
    pub(crate) fn new(at: SocketAddr, settings: &'a str) -> Self {
        let protocol = if settings.contains("grpc") { "HTTP2" } else { "HTTP" };
        Self { at, settings, protocol, rules: ASKED, policies: "" }
    }

    pub(crate) fn facts(&self) -> String {
        let Self { at, settings, protocol, rules, policies } = self;
        format!(
            "settings: {{extensionProviders: [{{name: asked, host: authz.shop.svc.cluster.local, port: 9000, {settings}}}]}}\n\
             authorizations:\n- {{namespace: shop, name: ask, spec: {{action: CUSTOM, provider: {{name: asked}}, rules: \
             {rules}}}}}\n{policies}\
             destinations:\n  authz.shop.svc.cluster.local:\n    service:\n      namespace: shop\n      name: authz\n      \
             hostname: authz.shop.svc.cluster.local\n      addresses: [10.96.0.20]\n      \
             ports: [{{number: 9000, protocol: {protocol}}}]\n      endpoints:\n      - address: {}\n        \
             ports: [{{servicePort: 9000, targetPort: {}, tls: PLAINTEXT}}]\n",
            at.ip(),
            at.port(),
        )
    }

    /// A server that speaks plaintext too, before an application that says what arrived.
    pub(crate) fn server(&self, lab: &Lab) -> StaticProxy {
        let (backend, extra) = (http_backend(), self.facts());
        lab.server(&Server { mode: "PERMISSIVE", policy: None, backend, extra: &extra, ..Server::default() })
    }
}

/// One request on a connection of its own; `head` are further header lines.
pub(crate) fn ask(at: SocketAddr, start: &str, head: &[&str], body: &str) -> String {
    let mut text = format!("{start} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n");
    for line in head {
        text.push_str(line);
        text.push_str("\r\n");
    }
    if !body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    exchange(at, format!("{text}\r\n{body}").as_bytes())
}

/// The status line of an answer, the head lines in lower case without the date, and the body.
pub(crate) fn parts(answer: &str) -> (String, Vec<String>, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let mut lines = head.lines().map(str::to_lowercase);
    let status = lines.next().unwrap_or_default();
    let lines = lines.filter(|line| !line.starts_with("date:")).collect();
    (status, lines, body.to_owned())
}

/// gRPC and Envoy's messages for Python: in `.tools` of the workspace, or where Python finds them itself. In CI they must
/// be there; elsewhere their absence is said loudly.
fn libraries() -> Option<PathBuf> {
    let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
    let folders = std::fs::read_dir(tools).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_wanted = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("xds-protos-"))
    };
    let found = folders.filter(is_wanted).chain([PathBuf::new()]).find(|folder| {
        let imports = "import grpc, envoy.service.auth.v3.external_auth_pb2_grpc";
        let mut python = Command::new("python3");
        python.args(["-c", imports]).env("PYTHONPATH", folder).stderr(Stdio::null());
        python.status().is_ok_and(|status| status.success())
    });
    if found.is_none() {
        let help = "cargo xtask setup, or python3 -m pip install xds-protos grpcio";
        assert!(std::env::var_os("CI").is_none(), "no gRPC for python3 was found: {help}");
        eprintln!("SKIPPED (needs gRPC and Envoy's messages for python3): {help}");
    }
    found
}

/// `check_server.py`.
pub(crate) struct PythonAuthorizer {
    child: Child,
    /// Closed when the server is to end.
    input: Option<ChildStdin>,
    pub(crate) at: SocketAddr,
    checks: Receiver<String>,
}

impl PythonAuthorizer {
    /// Answers by path; see the script. `None` where Python has no gRPC.
    pub(crate) fn start(lab: &Lab, answers: &str) -> Option<Self> {
        let libraries = libraries()?;
        let file = lab.path("answers.json");
        std::fs::write(&file, answers).expect("writable");
        let script =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data_path/authorizer/check_server.py");
        let mut child = Command::new("python3")
            .arg(script)
            .arg(file)
            .env("PYTHONPATH", libraries)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, checks) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let port = checks.recv_timeout(PATIENCE).expect("the authorizer starts").parse().expect("a port");
        Some(Self { child, input, at: SocketAddr::from(([127, 0, 0, 1], port)), checks })
    }

    /// The next check it was asked for.
    pub(crate) fn check(&self) -> Value {
        let line = self.checks.recv_timeout(PATIENCE).expect("a check");
        serde_json::from_str(&line).expect("JSON")
    }

    /// Whether nothing more was asked until now. Sound after an answer: checks are printed before they are answered.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.checks.try_recv().is_err()
    }
}

impl Drop for PythonAuthorizer {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that reads a request over HTTP/1.1 and answers with the very bytes that `answer` makes of it.
pub(crate) fn raw_http(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let answer = std::sync::Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || {
                let mut stream = stream;
                while let Some(request) = read_request(&mut stream) {
                    if stream.write_all(&answer(&request)).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut all = Vec::new();
    let mut byte = [0];
    while !all.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        all.extend_from_slice(&byte);
    }
    let head = String::from_utf8_lossy(&all).to_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    all.extend_from_slice(&body);
    Some(String::from_utf8_lossy(&all).into_owned())
}
