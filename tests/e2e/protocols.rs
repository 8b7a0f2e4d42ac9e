//! What applications speak, through two sidecars: real servers, real clients, and every row of the reference's tables.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::mesh::{Mesh, Ran, eventually};

pub(crate) const NAMESPACE: &str = "protocols";
pub(crate) const CLIENT: &str = "protocols/client";
const NAKED: &str = "protocols/naked";

/// Programs and configuration of the Pods.
const PROGRAMS: [&str; 6] =
    ["servers.py", "probe.py", "grpc_peer.py", "websocket_peer.py", "nginx.conf", "ca_client.py"];

/// The servers, a client with a sidecar and one without; gone again when dropped.
pub(crate) struct Lab<'a> {
    pub(crate) mesh: &'a Mesh,
}

impl<'a> Lab<'a> {
    pub(crate) fn start(mesh: &'a Mesh) -> Result<Self> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures");
        let tools = std::env::var_os("MAILLE_PYTHON_LIBRARIES").map(PathBuf::from);
        let tools = tools.context("MAILLE_PYTHON_LIBRARIES names no folder; use `cargo xtask e2e`")?;
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"istio-injection": "enabled"}},
        });
        mesh.apply(&namespace.to_string())?;
        let lab = Self { mesh };
        let mut create = vec!["create", "configmap", "programs", "-n", NAMESPACE];
        let files: Vec<String> =
            PROGRAMS.iter().map(|name| format!("--from-file={}", fixtures.join(name).display())).collect();
        create.extend(files.iter().map(String::as_str));
        mesh.kubectl(&create)?;
        let yaml = std::fs::read_to_string(fixtures.join("protocols.yaml"))?;
        mesh.apply(&yaml.replace("TOOLS", &tools.display().to_string()))?;
        mesh.apply(&matrix_service().to_string())?;
        for workload in ["client", "naked", "servers"] {
            let deployment = format!("deployment/{workload}");
            mesh.kubectl(&["rollout", "status", &deployment, "-n", NAMESPACE, "--timeout=120s"])
                .with_context(|| lab.logs(workload))?;
        }
        Ok(lab)
    }

    fn logs(&self, workload: &str) -> String {
        let target = format!("deploy/{workload}");
        self.mesh
            .maille(&["logs", &target, "-n", NAMESPACE, "--tail", "20"])
            .map(|ran| ran.stdout + &ran.stderr)
            .unwrap_or_default()
    }

    /// Runs a shell line in the client's Pod; its output if it succeeds.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        let ran: Ran = self.mesh.exec(CLIENT, &["timeout", "60", "bash", "-c", line])?;
        ensure!(ran.code == 0, "`{line}` ended with {}:\n{}{}", ran.code, ran.stdout, ran.stderr);
        Ok(ran.stdout)
    }

    pub(crate) fn expect(&self, line: &str, expected: &str) -> Result<()> {
        let seen = self.run(line)?;
        ensure!(seen.contains(expected), "`{line}` printed\n{seen}\nwithout '{expected}'");
        Ok(())
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = self.mesh.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"]);
    }
}

/// Ready-made clients of ready-made servers.
pub(crate) fn real_clients(mesh: &Mesh) -> Result<()> {
    let lab = Lab::start(mesh)?;
    let all = [databases(&lab), grpc(&lab), http(&lab), matrix(&lab)];
    let failed: Vec<String> =
        all.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn databases(lab: &Lab<'_>) -> Result<()> {
    let psql = "psql -h servers -U shop -d postgres -v ON_ERROR_STOP=1 -Atc";
    lab.expect(&format!("{psql} \"select 6 * 7, count(*) from generate_series(1, 100000)\""), "42|100000")?;
    // Bulk both ways over one connection.
    let copy = "create temp table t(a text); copy t from stdin";
    lab.expect(
        &format!(
            "(echo '{copy};'; seq 1 50000; echo '\\.'; echo 'select sum(a::int) from t;') \
             | psql -h servers -U shop -d postgres -At -v ON_ERROR_STOP=1"
        ),
        "1250025000",
    )?;
    let mariadb = "mariadb --no-defaults -h servers -u shop --skip-ssl -N -e";
    lab.expect(&format!("{mariadb} \"select 6 * 7, repeat('x', 3)\""), "42\txxx")?;
    lab.expect("redis-cli -h servers set k v && redis-cli -h servers get k", "v")?;
    lab.expect("seq 1 1000 | sed 's/^/incrby sum /' | redis-cli -h servers | tail -1", "500500")?;
    // Subscribers hear without asking: the server speaks on a connection on which the client has been silent.
    lab.expect(
        "(timeout 8 redis-cli -h servers subscribe news > /data/heard &) ; \
         for i in $(seq 50); do redis-cli -h servers publish news hello >/dev/null; \
         grep -q hello /data/heard && break; sleep 0.1; done; cat /data/heard",
        "hello",
    )
}

fn grpc(lab: &Lab<'_>) -> Result<()> {
    lab.expect("python3 /programs/grpc_peer.py call servers:50051", "ok")?;
    // Detected as HTTP/2 where nothing declares it.
    lab.expect("python3 /programs/grpc_peer.py call servers:50052", "ok")
}

fn http(lab: &Lab<'_>) -> Result<()> {
    let one = "http://matrix:8100";
    lab.expect("python3 /programs/websocket_peer.py call ws://servers:8081/", "ok")?;
    lab.expect(&format!("curl -sS {one}/hello -H 'X-Case: Kept'"), "GET /hello HTTP/1.1")?;
    // Both ways in chunks, with what follows them.
    lab.expect(
        &format!("head -c 100000 /dev/zero | tr '\\0' a | curl -sS -T - {one}/up | grep -c aaaa"),
        "1",
    )?;
    lab.expect(
        &format!("curl -sS --raw -i -H 'Connection: TE' -H 'TE: trailers' {one}/trailers"),
        "x-sum: 11",
    )?;
    // An informational answer is not the answer (it is dropped on the way, as by Envoy).
    lab.expect(&format!("curl -sS -i {one}/early-hints"), "HTTP/1.1 200 OK")?;
    lab.expect(&format!("curl -sS -i -H 'Expect: 100-continue' -d x=1 {one}/"), "x=1")?;
    lab.expect(&format!("curl -sS -I {one}/head-of-a-large-page"), "content-length: 123456")?;
    // Two requests at once on one connection are answered in order.
    lab.expect(
        "exec 3<>/dev/tcp/matrix/8100; printf 'GET /a HTTP/1.1\\r\\nHost: matrix\\r\\n\\r\\nGET /b HTTP/1.1\\r\\n\
         Host: matrix\\r\\nConnection: close\\r\\n\\r\\n' >&3; grep -a -o 'GET /[ab]' <&3 | tr '\\n' ' '",
        "GET /a GET /b",
    )?;
    let web = "http://servers:8500/";
    lab.expect(&format!("nghttp -v --no-dep {web} | grep -a -c 'status: 200'"), "1")?;
    lab.expect(&format!("h2load -n 3000 -c 4 -m 32 {web} | grep -a 'status codes'"), "3000 2xx")?;
    lab.expect("h2load --h1 -n 1000 -c 8 http://matrix:8100/ | grep -a 'status codes'", "1000 2xx")
}

/// How the columns of the matrix declare a port: the name's prefix, in the order of `servers.py`; the last is in no
/// Service.
const DECLARATIONS: [&str; 6] = ["http", "http2", "tcp", "https", "auto", "none"];
const KINDS: [(&str, u16); 5] =
    [("http1", 8100), ("echo", 8200), ("banner", 8300), ("tls", 8400), ("http2", 8500)];

fn matrix_service() -> Value {
    let mut ports = Vec::new();
    for (kind, base) in KINDS {
        for (port, declaration) in (base..).zip(DECLARATIONS).filter(|(_, d)| *d != "none") {
            // A prefix that is no protocol leaves the port undeclared.
            let prefix = if declaration == "auto" { "some" } else { declaration };
            ports.push(json!({"name": format!("{prefix}-{kind}"), "port": port}));
        }
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "matrix", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "servers"}, "ports": ports},
    })
}

/// What is to happen, per mode (STRICT, PERMISSIVE, DISABLE): `+` it works, `-` it does not, `?` it hangs until a time-out,
/// `.` it is not asked (both ends would have to speak what the other does not).
///
/// Sources: reference mtls 1.3 (chain table, PA-11, PA-12), 1.4 (PA-14, PA-18), 2.1, 4.3 and G-8, G-20. A row is
/// what the application speaks; a column is how the port is declared, as in [`DECLARATIONS`].
struct Rows {
    client: &'static str,
    rows: [(&'static str, [&'static str; 6]); 5],
}

const MATRIX: [Rows; 2] = [
    Rows {
        client: CLIENT,
        rows: [
            //          http   http2  tcp    https  auto   none
            ("http1", ["+++", "...", "+++", "+++", "+++", "-++"]),
            ("http2", ["...", "+++", "+++", "+++", "+++", "-++"]),
            ("echo", ["---", "---", "+++", "+++", "+++", "-++"]),
            // PA-12: declared, it works in every mode; undeclared, the sidecars wait for the client, but between proxies of the
            // mesh, where the server may speak first after a moment.
            ("banner", ["...", "...", "+++", "+++", "++?", "???"]),
            // PA-11: TLS inside mutual TLS. G-20: on a port declared HTTP nobody can serve it.
            ("tls", ["---", "---", "+++", "+++", "+++", "-++"]),
        ],
    },
    Rows {
        client: NAKED,
        rows: [
            ("http1", ["-++", "...", "-++", "-++", "-++", "-++"]),
            ("http2", [".++", "-++", "-++", "-++", "-++", "-++"]),
            ("echo", ["---", "---", "-++", "-++", "-++", "-++"]),
            // PA-12: a silent client of a port with an inspector waits for ever.
            ("banner", ["???", "???", "??+", "??+", "???", "???"]),
            ("tls", ["---", "---", "-++", "-++", "-++", "-++"]),
        ],
    },
];

/// Client protocol × meshed or not × mode × port declaration, on real sockets.
fn matrix(lab: &Lab<'_>) -> Result<()> {
    let pod = lab.mesh.pod_ip("protocols/servers")?;
    let mut wrong = Vec::new();
    let mut asked = 0;
    for (index, mode) in ["STRICT", "PERMISSIVE", "DISABLE"].into_iter().enumerate() {
        lab.mesh.apply(&peer_authentication(mode))?;
        eventually(Duration::from_secs(20), || {
            let sees = lab.mesh.maille(&["x", "describe", "pod", &pod_name(lab)?, "-n", NAMESPACE])?;
            ensure!(sees.stdout.contains(mode), "{mode} is not in force:\n{}{}", sees.stdout, sees.stderr);
            Ok(())
        })?;
        for Rows { client, rows } in &MATRIX {
            let mut questions = Vec::new();
            let mut expected = Vec::new();
            for (kind, cells) in rows {
                let base = KINDS.iter().find(|(name, _)| name == kind).context("no such kind")?.1;
                for ((port, declaration), cell) in (base..).zip(DECLARATIONS).zip(cells) {
                    let wanted = match cell.as_bytes().get(index) {
                        Some(b'+') => "ok",
                        Some(b'-') => "fail",
                        Some(b'?') => "hang",
                        Some(b'.') => continue,
                        _ => bail!("the table's cell '{cell}' is too short"),
                    };
                    let host = if declaration == "none" { pod.as_str() } else { "matrix" };
                    questions.push(json!({"kind": kind, "host": host, "port": port}));
                    expected.push((kind, declaration, wanted));
                }
            }
            let text = Value::from(questions).to_string();
            let ran = lab.mesh.exec(client, &["python3", "/programs/probe.py", &text])?;
            let seen: Vec<(String, String)> = serde_json::from_str(&ran.stdout)
                .with_context(|| format!("probe.py printed {}{}", ran.stdout, ran.stderr))?;
            ensure!(seen.len() == expected.len(), "{} answers for {} questions", seen.len(), expected.len());
            asked += seen.len();
            for ((kind, declaration, wanted), (outcome, what)) in expected.into_iter().zip(seen) {
                if outcome != wanted {
                    wrong.push(format!(
                        "{client}, {mode}, {kind} on a port declared {declaration}: {wanted} was expected, seen \
                         {outcome} ({what})"
                    ));
                }
            }
        }
    }
    lab.mesh.kubectl(&["delete", "peerauthentication", "servers", "-n", NAMESPACE])?;
    ensure!(wrong.is_empty(), "{} of {asked} are not as the tables say:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

fn pod_name(lab: &Lab<'_>) -> Result<String> {
    let pod = lab.mesh.pod("protocols/servers")?;
    Ok(pod["metadata"]["name"].as_str().context("a Pod without a name")?.to_owned())
}

fn peer_authentication(mode: &str) -> String {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "servers", "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": {"app": "servers"}}, "mtls": {"mode": mode}},
    })
    .to_string()
}
