//! Questions over real sockets, a scripted registry, and a resolver beyond.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use maille_proto::facts as wire;
use maille_telemetry::{AccessLog, OwnWorkload, Registry};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Dns, DnsOptions};
use crate::snapshot::{Destination, DestinationCell, ResolveError, Resolver, Resolving};

/// A registry; what it does not hold is unknown, or cannot be asked for.
#[derive(Default)]
struct Script {
    known: Mutex<HashMap<String, Arc<DestinationCell>>>,
    asked: Mutex<Vec<String>>,
    away: AtomicBool,
}

impl Script {
    fn add(&self, name: &str, service: wire::Service) {
        let kind = Some(wire::destination::Kind::Service(service));
        let found = crate::facts::destination(&wire::Destination { kind }).expect("valid");
        self.known.lock().insert(name.to_owned(), Arc::new(DestinationCell::new(Arc::new(found))));
    }
}

impl Resolver for Script {
    fn lookup(&self, _: &str) -> Option<Arc<DestinationCell>> {
        None
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        self.asked.lock().push(name.to_owned());
        let found = self.known.lock().get(name).cloned();
        let away = self.away.load(Ordering::Relaxed);
        Box::pin(async move {
            match found {
                Some(found) => Ok(found),
                None if away => {
                    Err(ResolveError::Unreachable { name: name.to_owned(), reason: "gone".into() })
                }
                None => Ok(Arc::new(DestinationCell::new(Arc::new(Destination::Unknown)))),
            }
        })
    }
}

/// A server, its registry, and a resolver that answers every name with its own address, 203.0.113.9.
struct Lab {
    registry: Arc<Script>,
    telemetry: Arc<Registry>,
    has_facts: Arc<AtomicBool>,
    at: SocketAddr,
    _resolv_conf: tempfile::NamedTempFile,
}

impl Lab {
    async fn new() -> Self {
        let resolver = serve_elsewhere().await;
        let mut resolv_conf = tempfile::NamedTempFile::new().expect("a file");
        writeln!(resolv_conf, "search shop.svc.cluster.local svc.cluster.local\nnameserver {resolver}")
            .expect("written");
        let own = OwnWorkload { cluster: "Kubernetes".into(), version: "test".into() };
        let telemetry = Registry::new(own, AccessLog::disabled());
        let (registry, has_facts) = (Arc::new(Script::default()), Arc::new(AtomicBool::new(true)));
        let facts = has_facts.clone();
        let dns = retry_ports(|| {
            let facts = facts.clone();
            Dns::bind(DnsOptions {
                address: ([127, 0, 0, 1], 0).into(),
                resolv_conf: resolv_conf.path(),
                registry: registry.clone(),
                cluster_domain: Box::new(move || {
                    facts.load(Ordering::Relaxed).then(|| "cluster.local".to_owned())
                }),
                telemetry: telemetry.clone(),
            })
        });
        let at = dns.address();
        tokio::spawn(dns.run());
        Self { registry, telemetry, has_facts, at, _resolv_conf: resolv_conf }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Told {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        socket.connect(self.at).await.expect("connected");
        socket.send(&query(name, kind)).await.expect("sent");
        let mut buffer = vec![0; 4096];
        let length = tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await;
        told(&buffer[..length.expect("an answer").expect("received")])
    }

    async fn ask_over_tcp(&self, name: &str, kind: RecordType) -> Told {
        let mut stream = TcpStream::connect(self.at).await.expect("connected");
        let query = query(name, kind);
        stream.write_u16(query.len().try_into().expect("short")).await.expect("sent");
        stream.write_all(&query).await.expect("sent");
        let mut answer = vec![0; stream.read_u16().await.expect("an answer").into()];
        stream.read_exact(&mut answer).await.expect("an answer");
        told(&answer)
    }
}

/// Code, addresses, alias, and whether it was said with authority.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    code: ResponseCode,
    addresses: Vec<IpAddr>,
    alias: Option<String>,
    authoritative: bool,
}

fn told(bytes: &[u8]) -> Told {
    let message = Message::from_vec(bytes).expect("an answer");
    assert_eq!(message.metadata.id, 4711);
    let mut addresses: Vec<IpAddr> = message.answers.iter().filter_map(|r| r.data.ip_addr()).collect();
    addresses.sort_unstable();
    let alias = message.answers.iter().find_map(|r| match &r.data {
        RData::CNAME(alias) => Some(alias.0.to_ascii()),
        _ => None,
    });
    let authoritative = message.metadata.authoritative;
    Told { code: message.metadata.response_code, addresses, alias, authoritative }
}

fn own(addresses: &[&str]) -> Told {
    let addresses = addresses.iter().map(|a| a.parse().expect("an address")).collect();
    Told { code: ResponseCode::NoError, addresses, alias: None, authoritative: true }
}

fn elsewhere() -> Told {
    Told { authoritative: false, ..own(&["203.0.113.9"]) }
}

fn servfail() -> Told {
    Told { code: ResponseCode::ServFail, authoritative: false, ..own(&[]) }
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query.to_vec().expect("bytes")
}

/// The kernel chooses a port for datagrams; somebody else may have it for connections.
fn retry_ports<T, E: std::fmt::Display>(mut bind: impl FnMut() -> Result<T, E>) -> T {
    for _ in 0..100 {
        match bind() {
            Ok(bound) => return bound,
            Err(error) => println!("another port: {error}"),
        }
    }
    panic!("no port is free for both");
}

async fn serve_elsewhere() -> SocketAddr {
    let (udp, tcp) = retry_ports(|| {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0")?;
        let tcp = std::net::TcpListener::bind(udp.local_addr()?)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok::<_, std::io::Error>((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
    });
    let at = udp.local_addr().expect("bound");
    let answer = |query: &[u8]| {
        let asked = Message::from_vec(query).expect("a query");
        assert_ne!(asked.metadata.id, 4711, "the application's id is not shown");
        let mut response = Message::response(asked.metadata.id, OpCode::Query);
        let name = asked.queries[0].name().clone();
        response.add_queries(asked.queries);
        let data = RData::A(hickory_proto::rr::rdata::A([203, 0, 113, 9].into()));
        response.add_answer(hickory_proto::rr::Record::from_rdata(name, 60, data));
        response.to_vec().expect("bytes")
    };
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            // An answer to something else comes first, as a forger would try.
            let mut forged = answer(&buffer[..length]);
            forged[0] ^= 0xff;
            let _ = udp.send_to(&forged, from).await;
            let _ = udp.send_to(&answer(&buffer[..length]), from).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut query = vec![0; stream.read_u16().await.expect("a query").into()];
            stream.read_exact(&mut query).await.expect("a query");
            let answer = answer(&query);
            stream.write_u16(answer.len().try_into().expect("short")).await.expect("sent");
            stream.write_all(&answer).await.expect("sent");
        }
    });
    at
}

fn entry(hostname: &str, addresses: &[&str]) -> wire::Service {
    wire::Service {
        hostname: hostname.into(),
        namespace: "shop".into(),
        name: "entry".into(),
        addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        service_entry: "shop/entry".into(),
        external: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn names_of_the_registry_have_its_addresses_in_each_family() {
    let lab = Lab::new().await;
    lab.registry.add("db1.corp", entry("db1.corp", &["240.240.0.1", "2001:2::1"]));
    lab.registry.add("db2.corp", entry("db2.corp", &["240.240.0.2"]));
    assert_eq!(lab.ask("db1.corp.", RecordType::A).await, own(&["240.240.0.1"]));
    assert_eq!(lab.ask("DB1.corp.", RecordType::AAAA).await, own(&["2001:2::1"]));
    assert_eq!(lab.ask("db2.corp.", RecordType::AAAA).await, own(&[]), "known, without such an address");
    assert_eq!(lab.ask_over_tcp("db2.corp.", RecordType::A).await, own(&["240.240.0.2"]));
    let metrics = lab.telemetry.render_prometheus();
    assert!(metrics.contains("istio_agent_dns_requests_total 4"), "{metrics}");
    assert!(metrics.contains("istio_agent_dns_upstream_requests_total 0"), "{metrics}");
}

#[tokio::test]
async fn a_name_below_the_first_search_domain_is_an_alias_of_the_name_itself() {
    let lab = Lab::new().await;
    lab.registry.add("db1.corp", entry("db1.corp", &["240.240.0.1"]));
    let alias = Told { alias: Some("db1.corp.".into()), ..own(&["240.240.0.1"]) };
    assert_eq!(lab.ask("db1.corp.shop.svc.cluster.local.", RecordType::A).await, alias);
    let other = lab.ask("db1.corp.svc.cluster.local.", RecordType::A).await;
    assert_eq!(other, elsewhere(), "resolvers stop at the first");
}

#[tokio::test]
async fn a_headless_service_is_its_endpoints_and_one_without_is_left_to_the_cluster() {
    let lab = Lab::new().await;
    let endpoint = |address: &str| wire::Endpoint { address: address.into(), ..Default::default() };
    let headless = |endpoints: &[&str]| wire::Service {
        headless: true,
        service_entry: String::new(),
        external: false,
        endpoints: endpoints.iter().map(|a| endpoint(a)).collect(),
        ..entry("db.shop.svc.cluster.local", &[])
    };
    lab.registry.add("db.shop", headless(&["10.244.1.1", "10.244.1.2", "fd00:10:244::101"]));
    lab.registry.add("no-ports.shop", headless(&[]));
    assert_eq!(lab.ask("db.shop.", RecordType::A).await, own(&["10.244.1.1", "10.244.1.2"]));
    assert_eq!(lab.ask("db.shop.", RecordType::AAAA).await, own(&["fd00:10:244::101"]));
    assert_eq!(lab.ask("no-ports.shop.", RecordType::A).await, elsewhere());
    lab.registry.add("v4.shop", headless(&["10.244.1.1"]));
    assert_eq!(
        lab.ask("v4.shop.", RecordType::AAAA).await,
        elsewhere(),
        "whose other addresses only it knows"
    );
}

#[tokio::test]
async fn what_the_registry_does_not_know_is_asked_of_the_resolvers() {
    let lab = Lab::new().await;
    lab.registry.add("free.example", entry("free.example", &[]));
    assert_eq!(lab.ask("www.example.com.", RecordType::A).await, elsewhere());
    assert_eq!(lab.ask_over_tcp("www.example.com.", RecordType::A).await, elsewhere());
    assert_eq!(lab.ask("free.example.", RecordType::A).await, elsewhere(), "an entry without addresses");
    lab.registry.asked.lock().clear();
    assert_eq!(lab.ask("_http._tcp.www.example.com.", RecordType::SRV).await, elsewhere());
    assert_eq!(lab.ask("10.0.0.1.", RecordType::A).await, elsewhere());
    assert!(lab.registry.asked.lock().is_empty(), "the registry has addresses of host names only");
}

#[tokio::test]
async fn without_the_control_plane_only_the_clusters_names_are_asked_elsewhere() {
    let lab = Lab::new().await;
    lab.registry.add("db1.corp", entry("db1.corp", &["240.240.0.1"]));
    lab.registry.away.store(true, Ordering::Relaxed);
    assert_eq!(lab.ask("db1.corp.", RecordType::A).await, own(&["240.240.0.1"]), "what is held stays good");
    assert_eq!(lab.ask("db2.corp.", RecordType::A).await, servfail());
    assert_eq!(lab.ask("cart.shop.svc.cluster.local.", RecordType::A).await, elsewhere());
}

#[tokio::test]
async fn before_the_first_facts_nothing_is_known() {
    let lab = Lab::new().await;
    lab.has_facts.store(false, Ordering::Relaxed);
    assert_eq!(lab.ask("www.example.com.", RecordType::A).await, servfail());
    lab.has_facts.store(true, Ordering::Relaxed);
    assert_eq!(lab.ask("www.example.com.", RecordType::A).await, elsewhere());
}

/// On Linux, `SO_REUSEADDR` on both sides lets any user bind a port of datagrams again, and get them.
#[tokio::test]
async fn nobody_else_can_bind_the_port_of_datagrams_again() {
    use socket2::{Domain, Protocol, Socket, Type};
    let lab = Lab::new().await;
    let thief = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("a socket");
    thief.set_reuse_address(true).expect("set");
    let stolen = thief.bind(&lab.at.into()).map_err(|error| error.kind());
    assert_eq!(stolen, Err(std::io::ErrorKind::AddrInUse));

    let next = super::bind(lab.at).expect("the own next process shares the port");
    assert_eq!(next.0.local_addr().expect("bound"), lab.at);
}
