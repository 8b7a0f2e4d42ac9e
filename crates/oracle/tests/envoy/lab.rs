//! A network namespace with the generator's addresses, and Envoy in it.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use maille_config::istio::Action;
use maille_net::netns::NetNs;
use maille_policy::Authorization;
use maille_testkit::TestAuthority;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::policies::ADDRESSES;
use crate::translate::rbac;

/// Ports of the generator that can be listened on.
pub(crate) const PORTS: &[u16] = &[80, 443, 8080, 65535];
const ADMIN: u16 = 9901;

/// The generator's addresses that a socket can have.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let parsed = ADDRESSES.iter().map(|text| text.parse::<IpAddr>().expect("they parse"));
    let mut all: Vec<IpAddr> = parsed.map(|address| address.to_canonical()).collect();
    all.sort();
    all.dedup();
    all
}

/// Envoy, with one route per policy set, chosen by the header `x-set`.
pub(crate) struct Lab {
    pub(crate) namespace: NetNs,
    pub(crate) authority: TestAuthority,
    envoy: Child,
    _folder: TempDir,
}

impl Lab {
    pub(crate) fn start(envoy: &Path, sets: &[Vec<Authorization>]) -> Self {
        let namespace = NetNs::create(format!("maille-envoy-{}", std::process::id())).expect("a namespace");
        let inside = |program: &str| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace.name(), program]);
            command
        };
        let ip = |arguments: &[&str]| {
            let status = inside("ip").args(arguments).status().expect("ip is installed");
            assert!(status.success(), "ip {arguments:?}");
        };
        ip(&["link", "set", "lo", "up"]);
        for address in addresses() {
            ip(&["address", "add", &address.to_string(), "dev", "lo"]);
        }
        let folder = tempfile::tempdir().expect("a folder");
        let authority = TestAuthority::new();
        let server = authority.write_svid(folder.path(), "server", &authority.svid("a", "server"));
        let tls = json!({
            "certificate_chain": { "filename": server.chain },
            "private_key": { "filename": server.key },
        });
        let configuration = configuration(sets, &tls, &server.roots);
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, configuration.to_string()).expect("a file");
        let log = std::fs::File::create(folder.path().join("envoy.log")).expect("a file");
        let child = inside(&envoy.display().to_string())
            .arg("--config-path")
            .arg(&file)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("Envoy starts");
        let mut lab = Self { namespace, authority, envoy: child, _folder: folder };
        lab.wait(&|| {
            let mut text = String::new();
            let log = std::fs::File::open(file.with_file_name("envoy.log"));
            log.and_then(|mut log| log.read_to_string(&mut text)).map(|_| text).unwrap_or_default()
        });
        lab
    }

    fn wait(&mut self, log: &dyn Fn() -> String) {
        let started = Instant::now();
        let limit = Duration::from_secs(60);
        loop {
            let port = PORTS.first().copied().unwrap_or_default();
            let to = SocketAddr::new(addresses().first().copied().expect("there are some"), port);
            let connected =
                self.namespace.run(|| TcpStream::connect(to).is_ok()).expect("the namespace is there");
            if connected {
                return;
            }
            let ended = self.envoy.try_wait().expect("it is our child");
            assert!(ended.is_none() && started.elapsed() < limit, "Envoy does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.envoy.kill();
        let _ = self.envoy.wait();
        let _ = self.namespace.delete();
    }
}

fn configuration(sets: &[Vec<Authorization>], certificate: &Value, roots: &Path) -> Value {
    const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    const PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
    let routes: Vec<Value> = sets
        .iter()
        .enumerate()
        .map(|(index, policies)| {
            let mut overrides = serde_json::Map::new();
            for (name, action) in [("deny", Action::Deny), ("allow", Action::Allow)] {
                if let Some(rules) = rbac(policies, action) {
                    let rbac = json!({ "@type": PER_ROUTE, "rbac": { "rules": rules } });
                    overrides.insert(name.to_owned(), rbac);
                }
            }
            json!({
                "match": {
                    "prefix": "/",
                    "headers": [{ "name": "x-set", "string_match": { "exact": index.to_string() } }],
                },
                "direct_response": { "status": 200 },
                "typed_per_filter_config": overrides,
            })
        })
        .collect();
    // As on a sidecar's inbound listener (reference authorization 10.3 and 13).
    let manager = json!({
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "inbound",
            "use_remote_address": false,
            "normalize_path": true,
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
            "http_filters": [
                { "name": "deny", "typed_config": { "@type": RBAC } },
                { "name": "allow", "typed_config": { "@type": RBAC } },
                {
                    "name": "router",
                    "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                },
            ],
        },
    });
    let tls = json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificates": [certificate],
                "validation_context": { "trusted_ca": { "filename": roots } },
            },
        },
    });
    let listeners: Vec<Value> = PORTS
        .iter()
        .flat_map(|port| [("0.0.0.0", port), ("::", port)])
        .map(|(address, port)| {
            json!({
                "name": format!("{address}-{port}"),
                "address": { "socket_address": { "address": address, "port_value": port } },
                "listener_filters": [{
                    "name": "tls",
                    "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" },
                }],
                "filter_chains": [
                    { "filter_chain_match": { "transport_protocol": "tls" }, "transport_socket": tls, "filters": [manager] },
                    { "filter_chain_match": { "transport_protocol": "raw_buffer" }, "filters": [manager] },
                ],
            })
        })
        .collect();
    json!({
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": ADMIN } } },
        "static_resources": { "listeners": listeners },
    })
}
