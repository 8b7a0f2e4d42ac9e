//! Destinations that the registry does not know, or cannot be asked about (reference mtls 4.3).

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use maille_core::{MtlsMode, TrustDomain};
use maille_policy::{PolicySet, TrustContext};
use maille_proxy::snapshot::{
    AnyAddress, DataPathConfig, Destination, DestinationCell, DirectWorkload, Direction, Inbound, Limits,
    ListenerSpec, MeshSettings, OutboundPolicy, ResolveError, Resolver, Resolving, Shared, Snapshot,
    SnapshotCell, Target, Workload,
};
use maille_proxy::{Memory, Workers, start_workers};
use maille_telemetry::{AccessLog, OwnWorkload, Registry};

use crate::lab::{
    Lab, at, dial, exchange, exchange_half_closed, get, http_backend, line_backend, read_until, tcp_backend,
};

#[test]
fn allow_any_passes_through_what_it_does_not_know() {
    let lab = Lab::new();
    let http = lab.stranger(http_backend(), "ALLOW_ANY");
    let answer = get(at(&http), "/out");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("GET /out"), "{answer}");
    assert!(http.metrics().contains("PassthroughCluster"), "{}", http.metrics());
    let tcp = lab.stranger(tcp_backend(b"220 first\n"), "ALLOW_ANY");
    // The server speaks first and the caller waits for it.
    let mut stream = crate::lab::dial(at(&tcp));
    assert_eq!(read_until(&mut stream, "\n"), "220 first\n");
}

/// OT-1, OT-2, OT-3.
#[test]
fn registry_only_answers_502_or_closes() {
    let lab = Lab::new();
    let http = lab.stranger(http_backend(), "REGISTRY_ONLY");
    let answer = get(at(&http), "/");
    assert!(answer.starts_with("HTTP/1.1 502") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(http.metrics().contains("BlackHoleCluster"), "{}", http.metrics());
    let tcp = lab.stranger(tcp_backend(b"first"), "REGISTRY_ONLY");
    assert_eq!(exchange_half_closed(at(&tcp), b"hello"), "");
}

/// A registry that cannot be asked about anything but this.
#[derive(Default)]
struct Away(HashMap<String, Arc<DestinationCell>>);

impl Away {
    fn but(known: impl IntoIterator<Item = (String, Destination)>) -> Self {
        Self(
            known
                .into_iter()
                .map(|(name, is)| (name, Arc::new(DestinationCell::new(Arc::new(is)))))
                .collect(),
        )
    }
}

impl Resolver for Away {
    fn lookup(&self, name: &str) -> Option<Arc<DestinationCell>> {
        self.0.get(name).cloned()
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        let error =
            ResolveError::Unreachable { name: name.to_owned(), reason: "connection refused".to_owned() };
        Box::pin(async { Err(error) })
    }
}

fn shared(lab: &Lab, destinations: Arc<Away>) -> Shared {
    let domain = TrustDomain::parse("cluster.local").expect("a domain");
    let context = TrustContext {
        trust_domain: domain.clone(),
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
    };
    let snapshot = Snapshot {
        settings: MeshSettings {
            trust_domain: domain,
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            outbound_policy: OutboundPolicy::AllowAny,
            path_normalization: maille_policy::path::Normalization::Base,
            protocol_detection_timeout: None,
            cluster_domain: "cluster.local".to_owned(),
            extension_providers: [].into(),
            access_log: maille_telemetry::access_log::Coverage::Refusals,
            deliver_to_localhost: false,
            explain_in_response: false,
            keeps_expired_tcp: false,
            tls: Default::default(),
        },
        inbound: Arc::new(Inbound {
            workload: Arc::default(),
            mode: MtlsMode::Strict,
            port_modes: HashMap::new(),
            ports: HashMap::new(),
        }),
        policy: Arc::new(PolicySet::compile(&[], &context).0),
        authentication: Arc::new(maille_policy::authentication::Authentication::compile(&[]).0),
        generation: 0,
    };
    let own = OwnWorkload { cluster: "Kubernetes".to_owned(), version: "test".to_owned() };
    Shared {
        snapshot: Arc::new(SnapshotCell::new(snapshot)),
        destinations,
        tls: lab.authority.context("shop", "web"),
        telemetry: Registry::new(own, AccessLog::disabled()),
    }
}

/// A data path of which everything goes to `dialled`.
fn toward(dialled: SocketAddr, lab: &Lab, destinations: Arc<Away>) -> Workers {
    let config = DataPathConfig {
        workers: 2,
        listeners: vec![ListenerSpec {
            direction: Direction::Outbound,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            target: Target::Address(dialled),
        }],
        deliver_from: None,
        limits: Limits::default(),
        memory: Memory::default(),
    };
    start_workers(shared(lab, destinations), config).expect("the data path starts")
}

#[test]
fn a_destination_that_cannot_be_looked_up_is_refused_and_never_dialled() {
    let lab = Lab::new();
    let trap = TcpListener::bind("127.0.0.1:0").expect("a port");
    trap.set_nonblocking(true).expect("a socket");
    let workers = toward(trap.local_addr().expect("bound"), &lab, Arc::default());
    let address = workers.addresses()[0];
    let answer = get(address, "/");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(exchange(address, b"not http at all\n"), "");
    let dialled = trap.accept().err().map(|e| e.kind());
    assert_eq!(dialled, Some(std::io::ErrorKind::WouldBlock), "the destination was dialled");
    assert!(workers.stop(Duration::from_secs(5)), "the workers did not end");
}

/// What its port means elsewhere is nothing to a workload with a sidecar: no entry stands in for it.
#[test]
fn a_workload_with_a_sidecar_is_reached_though_its_port_cannot_be_asked_about() {
    let lab = Lab::new();
    let backend = line_backend();
    for (meshed, expected) in [(true, "hello\n"), (false, "")] {
        let workload = Arc::new(Workload { meshed, addresses: vec![backend.ip()], ..Workload::default() });
        let direct = DirectWorkload { workload, headless_ports: Vec::new() };
        let known = Away::but([(backend.ip().to_string(), Destination::Workload(direct))]);
        let workers = toward(backend, &lab, Arc::new(known));
        let answer = exchange_half_closed(workers.addresses()[0], b"hello\n");
        assert_eq!(answer, expected, "meshed: {meshed}");
        assert!(workers.stop(Duration::from_secs(5)), "the workers did not end");
    }
}

/// A connection that goes on is a use of what its port means with each of its requests: the agent forgets what nobody uses.
#[test]
fn what_a_port_means_is_used_by_every_request_of_a_connection() {
    let lab = Lab::new();
    let backend = http_backend();
    let any = AnyAddress { http: true, ..AnyAddress::default() };
    let port = format!("*:{}", backend.port());
    let known =
        [(backend.ip().to_string(), Destination::Unknown), (port.clone(), Destination::AnyAddress(any))];
    let known = Arc::new(Away::but(known));
    let workers = toward(backend, &lab, known.clone());
    let mut stream = dial(workers.addresses()[0]);
    let mut ask = || {
        let request = format!("GET / HTTP/1.1\r\nhost: {backend}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("open");
        let answer = read_until(&mut stream, "\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        known.0[&port].last_used_s()
    };
    let first = ask();
    std::thread::sleep(Duration::from_millis(1100));
    assert!(ask() > first);
    drop(stream);
    assert!(workers.stop(Duration::from_secs(5)), "the workers did not end");
}
