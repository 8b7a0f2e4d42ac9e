//! A real Envoy 1.40 beside the proxy.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{Lab, PATIENCE};

/// One listener with one chain of filters, and a cluster `backend`.
pub(crate) struct Envoy {
    child: Child,
    pub(crate) at: SocketAddr,
}

impl Envoy {
    /// As `.tools` or MAILLE_ENVOY have it. In CI it must be there; elsewhere its absence is said loudly.
    pub(crate) fn program() -> Option<PathBuf> {
        let local = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools/envoy");
        let named = std::env::var_os("MAILLE_ENVOY").map(PathBuf::from);
        let found = [named, Some(local)].into_iter().flatten().find(|path| path.is_file());
        if found.is_none() {
            let help = "cargo xtask setup";
            assert!(std::env::var_os("CI").is_none(), "no Envoy was found: {help}");
            eprintln!("SKIPPED (needs Envoy 1.40): {help}");
        }
        found
    }

    pub(crate) fn start(lab: &Lab, backend: SocketAddr, filters: &Value) -> Option<Self> {
        Self::start_with_tls(lab, backend, filters, None, None)
    }

    /// The same, with transport sockets towards the backend and towards callers.
    pub(crate) fn start_with_tls(
        lab: &Lab,
        backend: SocketAddr,
        filters: &Value,
        upstream: Option<Value>,
        downstream: Option<Value>,
    ) -> Option<Self> {
        let program = Self::program()?;
        // Free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let socket = |at: SocketAddr| json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
        let mut config = json!({"static_resources": {
            "listeners": [{"address": socket(address), "filter_chains": [{"filters": filters}]}],
            "clusters": [{"name": "backend", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {
                "cluster_name": "backend", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(backend)}}]}]}}]}});
        let resources = &mut config["static_resources"];
        if let Some(upstream) = upstream {
            resources["clusters"][0]["transport_socket"] = upstream;
        }
        if let Some(downstream) = downstream {
            resources["listeners"][0]["filter_chains"][0]["transport_socket"] = downstream;
        }
        let file = lab.path(&format!("envoy-{}.json", address.port()));
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
        while TcpStream::connect(address).is_err() {
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
