//! One set of workers after the other on the same sockets, under load.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use maille_core::{MtlsMode, TrustDomain};
use maille_policy::authentication::Authentication;
use maille_policy::{PolicySet, TrustContext};
use maille_telemetry::{AccessLog, OwnWorkload, Registry};

use super::*;
use crate::memory::Memory;
use crate::snapshot::{
    AnyAddress, Destination, DestinationCell, Inbound, Limits, MeshSettings, OutboundPolicy, Resolver,
    Resolving, Snapshot, SnapshotCell, Target,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Nobody is known, but somebody takes requests on every port.
struct NobodyKnown;

impl Resolver for NobodyKnown {
    fn lookup(&self, name: &str) -> Option<Arc<DestinationCell>> {
        let known = match name.starts_with("*:") {
            true => Destination::AnyAddress(AnyAddress { http: true, ..AnyAddress::default() }),
            false => Destination::Unknown,
        };
        Some(Arc::new(DestinationCell::new(Arc::new(known))))
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        let known = self.lookup(name);
        Box::pin(async move { Ok(known.expect("everything is unknown")) })
    }
}

fn shared() -> Shared {
    let domain = TrustDomain::parse("cluster.local").expect("a domain");
    let root_namespace = "istio-system".to_owned();
    let context = TrustContext {
        trust_domain: domain.clone(),
        aliases: Vec::new(),
        root_namespace: root_namespace.clone(),
    };
    let snapshot = Snapshot {
        settings: MeshSettings {
            trust_domain: domain,
            trust_domain_aliases: Vec::new(),
            root_namespace,
            outbound_policy: OutboundPolicy::AllowAny,
            path_normalization: maille_policy::path::Normalization::Base,
            protocol_detection_timeout: None,
            cluster_domain: "cluster.local".to_owned(),
            extension_providers: [].into(),
            access_log: maille_telemetry::access_log::Coverage::Refusals,
            deliver_to_localhost: false,
            tls: Default::default(),
            explain_in_response: false,
            keeps_expired_tcp: false,
        },
        inbound: Arc::new(Inbound {
            workload: Arc::default(),
            mode: MtlsMode::Permissive,
            port_modes: HashMap::new(),
            ports: HashMap::new(),
        }),
        policy: Arc::new(PolicySet::compile(&[], &context).0),
        authentication: Arc::new(Authentication::compile(&[]).0),
        generation: 0,
    };
    let own = OwnWorkload { cluster: "Kubernetes".to_owned(), version: "test".to_owned() };
    Shared {
        snapshot: Arc::new(SnapshotCell::new(snapshot)),
        destinations: Arc::new(NobodyKnown),
        tls: maille_testkit::TestAuthority::new().context("shop", "web"),
        telemetry: Registry::new(own, AccessLog::disabled()),
    }
}

/// Answers each request after a millisecond, or after half a second, on as many connections as there are.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let (mut line, mut pause) = (String::new(), 1);
                while reader.read_line(&mut line).is_ok_and(|count| count > 0) {
                    if line.starts_with("GET /slow ") {
                        pause = 500;
                    }
                    if line == "\r\n" {
                        thread::sleep(Duration::from_millis(pause));
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        if reader.get_mut().write_all(answer).is_err() {
                            return;
                        }
                    }
                    line.clear();
                }
            });
        }
    });
    address
}

fn config(backend: SocketAddr, at: [SocketAddr; 2], workers: usize) -> DataPathConfig {
    let listener = |direction, address| ListenerSpec { direction, address, target: Target::Address(backend) };
    DataPathConfig {
        workers,
        listeners: vec![listener(Direction::Inbound, at[0]), listener(Direction::Outbound, at[1])],
        deliver_from: None,
        limits: Limits::default(),
        memory: Memory::default(),
    }
}

/// A caller with a connection that it keeps as long as it may.
struct Caller {
    to: SocketAddr,
    kept: Option<BufReader<TcpStream>>,
}

impl Caller {
    /// One request; an answer that ends the connection is obeyed, everything else that goes wrong is an error.
    fn ask(&mut self) -> std::io::Result<()> {
        let stream = self.send("/")?;
        self.finish(stream)
    }

    fn send(&mut self, path: &str) -> std::io::Result<BufReader<TcpStream>> {
        let mut stream = match self.kept.take() {
            Some(kept) => kept,
            None => {
                let stream = TcpStream::connect(self.to)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                BufReader::new(stream)
            }
        };
        stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())?;
        Ok(stream)
    }

    fn finish(&mut self, mut stream: BufReader<TcpStream>) -> std::io::Result<()> {
        let (mut line, mut is_last, mut is_fine) = (String::new(), false, false);
        loop {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            is_fine |= line.starts_with("HTTP/1.1 200");
            is_last |= line.eq_ignore_ascii_case("connection: close\r\n");
            if line == "\r\n" {
                break;
            }
        }
        let mut body = [0; 2];
        stream.read_exact(&mut body)?;
        if !is_fine {
            return Err(std::io::Error::other("not answered as the application did"));
        }
        if !is_last {
            self.kept = Some(stream);
        }
        Ok(())
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn workers_follow_each_other_on_the_same_sockets_without_a_lost_request() {
    let backend = backend();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut workers = start_workers(shared(), config(backend, [any, any], 2)).expect("started");
    let [inbound, outbound] = workers.addresses()[..] else { panic!("two listeners") };
    let is_over = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..8)
        .map(|number| {
            let (is_over, asked) = (is_over.clone(), asked.clone());
            let mut caller = Caller { to: if number % 2 == 0 { inbound } else { outbound }, kept: None };
            thread::spawn(move || {
                let mut failures = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    if let Err(error) = caller.ask() {
                        failures.push(error.to_string());
                    }
                    // Some never keep a connection, so that there are always new ones.
                    if number < 2 {
                        caller.kept = None;
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                failures
            })
        })
        .collect();
    // As many as before, fewer, and more: each socket is accepted from, however many threads there are.
    for count in [2, 1, 3, 2] {
        let so_far = asked.load(Ordering::Relaxed);
        eventually("requests flow", || asked.load(Ordering::Relaxed) > so_far + 100);
        let next =
            start_workers_on(shared(), config(backend, [inbound, outbound], count), workers.give_listeners())
                .expect("the next ones start");
        workers.hand_over();
        eventually("the old ones are left", || workers.open_connections() == 0);
        assert!(workers.stop(PATIENCE), "the old ones end");
        workers = next;
    }
    is_over.store(true, Ordering::Relaxed);
    let failures: Vec<_> = callers.into_iter().flat_map(|caller| caller.join().expect("a caller")).collect();
    assert!(failures.is_empty(), "{} of {}: {failures:?}", failures.len(), asked.load(Ordering::Relaxed));
}

#[test]
fn a_drain_answers_on_unused_connections_before_it_closes_them() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let workers = start_workers(shared(), config(backend(), [any, any], 1)).expect("started");
    let [inbound, outbound] = workers.addresses()[..] else { panic!("two listeners") };
    let mut early = Caller { to: inbound, kept: None };
    let mut idle = Caller { to: inbound, kept: None };
    let mut out = Caller { to: outbound, kept: None };
    for caller in [&mut early, &mut idle, &mut out] {
        caller.ask().expect("answered");
        assert!(caller.kept.is_some(), "kept alive");
    }
    // LC-1: what is under way is finished.
    let mut slow = Caller { to: inbound, kept: None };
    slow.ask().expect("answered");
    let under_way = slow.send("/slow").expect("sent");
    workers.drain();
    // The order travels by another road than the requests.
    eventually("new ones are taken, for one answer", || {
        let mut late = Caller { to: inbound, kept: None };
        late.ask().expect("answered");
        late.kept.is_none()
    });
    early.ask().expect("a connection that was kept is answered once more");
    assert!(early.kept.is_none(), "and told that this was the last");
    let mut unused = idle.kept.take().expect("nobody has closed it").into_inner();
    workers.refuse_inbound();
    let mut rest = Vec::new();
    unused.read_to_end(&mut rest).expect("closed in order");
    assert!(rest.is_empty());
    slow.finish(under_way).expect("the answer comes");
    eventually("new ones are refused", || TcpStream::connect(inbound).is_err());
    out.ask().expect("outbound goes on");
    assert!(out.kept.is_some(), "as if nothing were");
    drop(out);
    eventually("nothing is open", || workers.open_connections() == 0);
}

#[test]
fn every_worker_gives_memory_back_again_and_again() {
    static THREADS: Mutex<Vec<ThreadId>> = Mutex::new(Vec::new());
    let backend = backend();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = config(backend, [any, any], 2);
    config.memory.give_back = || THREADS.lock().unwrap().push(thread::current().id());
    let workers = start_workers(shared(), config).expect("started");
    eventually("two workers do it twice", || {
        let all = THREADS.lock().unwrap();
        let count = |one: &ThreadId| all.iter().filter(|other| *other == one).count();
        let often: HashSet<_> = all.iter().filter(|one| count(one) >= 2).collect();
        often.len() == 2
    });
    assert!(workers.stop(PATIENCE));
}
