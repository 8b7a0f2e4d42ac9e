//! A network namespace with the generator's addresses, and Envoy in it.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use maille_net::netns::NetNs;
use maille_testkit::TestAuthority;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::policies::ADDRESSES;

/// Ports of the generator that can be listened on.
pub(crate) const PORTS: &[u16] = &[80, 443, 8080, 65535];

/// The generator's addresses that a socket can have.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let parsed = ADDRESSES.iter().map(|text| text.parse::<IpAddr>().expect("they parse"));
    let mut all: Vec<IpAddr> = parsed.map(|address| address.to_canonical()).collect();
    all.sort();
    all.dedup();
    all
}

/// Envoy, in a namespace of its own.
pub(crate) struct Lab {
    pub(crate) namespace: NetNs,
    pub(crate) authority: TestAuthority,
    envoy: Child,
    _folder: TempDir,
}

impl Lab {
    /// Starts Envoy with the configuration, which is told the TLS settings of a server that demands client certificates;
    /// returns when something listens at `ready` (put that listener last).
    pub(crate) fn start(
        envoy: &Path,
        name: &str,
        ready: SocketAddr,
        configuration: &dyn Fn(&Value) -> Value,
    ) -> Self {
        let namespace = NetNs::create(format!("maille-{name}-{}", std::process::id())).expect("a namespace");
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
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": {
                    "tls_certificates": [{
                        "certificate_chain": { "filename": server.chain },
                        "private_key": { "filename": server.key },
                    }],
                    "validation_context": { "trusted_ca": { "filename": server.roots } },
                },
            },
        });
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, configuration(&tls).to_string()).expect("a file");
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
        lab.wait(ready, &|| {
            let mut text = String::new();
            let log = std::fs::File::open(file.with_file_name("envoy.log"));
            log.and_then(|mut log| log.read_to_string(&mut text)).map(|_| text).unwrap_or_default()
        });
        lab
    }

    fn wait(&mut self, ready: SocketAddr, log: &dyn Fn() -> String) {
        let started = Instant::now();
        // Much configuration on a busy machine.
        let limit = Duration::from_secs(180);
        loop {
            let connect = move || TcpStream::connect(ready).is_ok();
            if self.namespace.run(connect).expect("the namespace is there") {
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

/// Envoy's form of a socket address.
pub(crate) fn tcp_address(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

/// A static cluster of one endpoint on loopback.
pub(crate) fn cluster(name: &str, port: u16) -> Value {
    json!({
        "name": name,
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": tcp_address("127.0.0.1", port) } }
        ]}]},
    })
}

/// The last of the HTTP filters.
pub(crate) fn router() -> Value {
    json!({
        "name": "router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    })
}

/// As on a sidecar's inbound listener (reference authorization 10.3 and 13), with one virtual host. `on_reply` names
/// headers of every answer that Envoy makes itself.
pub(crate) fn http_manager(routes: Value, filters: Value, on_reply: Value) -> Value {
    let mut manager = json!({
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "inbound",
            "use_remote_address": false,
            "normalize_path": true,
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
            "http_filters": filters,
        },
    });
    if let Some(headers) = on_reply.as_array() {
        manager["typed_config"]["local_reply_config"] = json!({ "mappers": [{
            "filter": { "status_code_filter": { "comparison": {
                "op": "GE", "value": { "default_value": 100, "runtime_key": "maille.every_status" },
            }}},
            "headers_to_add": headers,
        }]});
    }
    manager
}
