//! Destinations that the registry does not know, or cannot be asked about (reference mtls 4.3).

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use maille_core::{MtlsMode, TrustDomain};
use maille_policy::{PolicySet, TrustContext};
use maille_proxy::snapshot::{
    DataPathConfig, DestinationCell, Direction, Inbound, Limits, ListenerSpec, MeshSettings, OutboundPolicy,
    ResolveError, Resolver, Resolving, Shared, Snapshot, SnapshotCell, Target,
};
use maille_proxy::start_workers;
use maille_telemetry::{AccessLog, OwnWorkload, Registry};

use crate::lab::{Lab, at, exchange, exchange_half_closed, get, http_backend, read_until, tcp_backend};

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

/// A registry that cannot be asked.
struct Away;

impl Resolver for Away {
    fn lookup(&self, _name: &str) -> Option<Arc<DestinationCell>> {
        None
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        let error =
            ResolveError::Unreachable { name: name.to_owned(), reason: "connection refused".to_owned() };
        Box::pin(async { Err(error) })
    }
}

fn shared(lab: &Lab) -> Shared {
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
        destinations: Arc::new(Away),
        tls: lab.authority.context("shop", "web"),
        telemetry: Registry::new(own, AccessLog::disabled()),
    }
}

#[test]
fn a_destination_that_cannot_be_looked_up_is_refused_and_never_dialled() {
    let lab = Lab::new();
    let trap = TcpListener::bind("127.0.0.1:0").expect("a port");
    trap.set_nonblocking(true).expect("a socket");
    let dialled = trap.local_addr().expect("bound");
    let config = DataPathConfig {
        workers: 2,
        listeners: vec![ListenerSpec {
            direction: Direction::Outbound,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            target: Target::Address(dialled),
        }],
        deliver_from: None,
        limits: Limits::default(),
    };
    let workers = start_workers(shared(&lab), config).expect("the data path starts");
    let address = workers.addresses()[0];
    let answer = get(address, "/");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(exchange(address, b"not http at all\n"), "");
    let dialled = trap.accept().err().map(|e| e.kind());
    assert_eq!(dialled, Some(std::io::ErrorKind::WouldBlock), "the destination was dialled");
    assert!(workers.stop(Duration::from_secs(5)), "the workers did not end");
}
