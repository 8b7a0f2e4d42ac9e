//! The road of a connection to the own workload.

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::BytesMut;
use maille_telemetry::{Marks, Protocol, RefusalKind, ResponseFlags, TlsReason, Way};
use maille_tls::alpn::{Carried, carried};
use maille_tls::{HandshakeError, Negotiated, ServerAlpn};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, server};

use crate::balance::{Timed, What, limits_of_opaque};
use crate::chain::{self, Chain, Transport};
use crate::connect::connect;
use crate::http::inbound::InboundHttp;
use crate::http::pace::TooMuch;
use crate::http::{serve::serve_http, xfcc};
use crate::marks::Marked;
use crate::open::{Carries, Entry, Facts, Open, Proof, Validity};
use crate::record::{self, Refused};
use crate::snapshot::ListenerSpec;
use crate::sniff::{self, Detected, Prefixed};
use crate::stream::Stream;
use crate::tcp::Passage;
use crate::tunnel::ByteStream;
use crate::worker::Worker;
use crate::{authorizer, original, tunnel};

/// Accept → original destination → sniff → TLS → identity → CUSTOM → AUDIT, dry-run, DENY and ALLOW → protocol → forward
/// → record.
pub(crate) async fn serve(worker: &Rc<Worker>, socket: TcpStream, spec: &ListenerSpec) {
    let Ok(peer) = socket.peer_addr() else { return };
    let Some(destination) = original::destination(&socket, spec) else { return };
    let arrival = Arrival { worker, peer, destination };
    // Asked for now, so that telemetry can name the caller when the handshake is done.
    worker.destinations.workload_at(peer.ip());
    let Some((detected, stream)) = arrival.sniff(socket).await else { return };
    match arrival.choose(&detected) {
        Chain::MutualHttp => {
            let accepted = arrival.accept_tls(stream, detected, Carried::Http1).await;
            let Some((stream, facts)) = accepted else { return };
            arrival.http(Stream::Accepted(Box::new(stream)), facts).await;
        }
        Chain::MutualTcp => {
            let accepted = arrival.accept_tls(stream, detected, Carried::Tcp).await;
            let Some((stream, facts)) = accepted else { return };
            let stream = Stream::Accepted(Box::new(stream));
            match stream.is_of_many() {
                true => arrival.streams(stream, facts).await,
                false => arrival.tcp(stream, facts).await,
            }
        }
        Chain::PlainHttp => arrival.http(Stream::Plain(stream), arrival.anonymous(detected)).await,
        Chain::PlainTcp => arrival.tcp(Stream::Plain(stream), arrival.anonymous(detected)).await,
        Chain::Refuse => arrival.refuse_chain(&detected),
    }
}

struct Arrival<'a> {
    worker: &'a Rc<Worker>,
    peer: SocketAddr,
    destination: SocketAddr,
}

impl Arrival<'_> {
    /// The first bytes, as far as the port's inspectors want them; `None` if there is nothing to serve.
    async fn sniff(&self, mut socket: TcpStream) -> Option<(Detected, Prefixed<TcpStream>)> {
        let snapshot = self.worker.snapshot();
        let port = self.destination.port();
        let wanted = chain::inspectors(snapshot.inbound.mode_of(port), snapshot.inbound.protocol_of(port));
        let limit = snapshot.settings.protocol_detection_timeout;
        drop(snapshot);
        let mut prefix = BytesMut::new();
        let detected = {
            let detection = sniff::detect(&mut socket, &mut prefix, wanted, limit);
            self.worker.undetected.wait(detection).await
        };
        match detected {
            Some(Ok(Detected::Closed) | Err(_)) => None,
            Some(Ok(detected)) => Some((detected, Prefixed::new(prefix, socket))),
            None => {
                let reason = "too many connections wait for their first bytes; this was the oldest";
                self.refuse(Refused::new(RefusalKind::Overload, reason.to_owned()));
                None
            }
        }
    }

    /// By the facts of now, not of when the first byte was awaited.
    fn choose(&self, detected: &Detected) -> Chain {
        let snapshot = self.worker.snapshot();
        let port = self.destination.port();
        let transport = match detected {
            Detected::Tls { alpn, .. } => Transport::Tls(alpn),
            Detected::Http => Transport::Raw { is_http: true },
            Detected::Raw | Detected::Closed => Transport::Raw { is_http: false },
        };
        chain::choose(snapshot.inbound.mode_of(port), snapshot.inbound.protocol_of(port), transport)
    }

    /// Terminates TLS with the own certificate; the client must prove an identity. If it offers many streams of what the
    /// chain serves, it gets them.
    async fn accept_tls(
        &self,
        stream: Prefixed<TcpStream>,
        detected: Detected,
        serves: Carried,
    ) -> Option<(server::TlsStream<Prefixed<TcpStream>>, Facts)> {
        let Detected::Tls { alpn, sni } = detected else { return None };
        let current = self.worker.shared.tls.current();
        let alpn = match carried(&alpn) == Some(serves) {
            true => ServerAlpn::Many,
            false => ServerAlpn::choose(&alpn),
        };
        let acceptor = TlsAcceptor::from(current.server_config(alpn));
        let limit = self.worker.config.limits.handshake;
        let accepted = match timeout(limit, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                let error = HandshakeError::from_io(&error);
                Err((error.to_string(), record::tls_reason(&error)))
            }
            Err(_) => Err((format!("the TLS handshake took longer than {limit:?}"), TlsReason::Timeout)),
        };
        let verified = accepted.and_then(|stream| {
            let session = stream.get_ref().1;
            let identity = maille_tls::peer_of_server(session)
                .map_err(|error| (error.to_string(), record::tls_reason(&error)))?;
            let chain: Rc<[_]> = session.peer_certificates().unwrap_or_default().into();
            let none = || ("the client showed no certificate".to_owned(), TlsReason::NoClientCertificate);
            let leaf = chain.first().ok_or_else(none)?;
            let unreadable = |error: maille_pki::Error| (error.to_string(), TlsReason::BadCertificate);
            let valid = Validity::of(leaf).map_err(unreadable)?;
            Ok((stream, identity, Proof::new(chain, valid, current.generation())))
        });
        match verified {
            Ok((stream, identity, proof)) => {
                let negotiated = Negotiated::of(stream.get_ref().1);
                let Negotiated { key_exchange, version } = negotiated;
                self.worker.recorder.handshake("server", key_exchange, version);
                let (identity, proof, agreed) = (Some(identity), Some(proof), Some(negotiated));
                let facts = Facts { identity, sni, agreed, proof, ..self.facts() };
                Some((stream, facts))
            }
            Err((reason, tls)) => {
                self.refuse(Refused::new(RefusalKind::TlsHandshake, reason).with_tls(Some(tls)));
                None
            }
        }
    }

    async fn http(&self, stream: Stream, facts: Facts) {
        let worker = self.worker;
        let negotiated = match &stream {
            Stream::Accepted(tls) => tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec),
            Stream::Plain(_) | Stream::Connected(_) | Stream::Carried(_) => None,
        };
        let mut stream = stream;
        let mut prefix = BytesMut::new();
        let is_http2 = match negotiated.as_deref() {
            Some(maille_tls::alpn::H2 | maille_tls::alpn::MAILLE_1) => true,
            Some(_) => false,
            None => match worker.undetected.wait(sniff::is_http2(&mut stream, &mut prefix)).await {
                Some(Ok(is_http2)) => is_http2,
                Some(Err(_)) | None => return,
            },
        };
        let own = worker.shared.tls.current();
        let element = facts.identity.as_ref().and_then(|identity| {
            let leaf = facts.proof.as_ref()?.chain.first()?;
            xfcc::element(own.svid().identity(), identity, leaf)
        });
        let Some(entry) = self.enter(facts, Carries::Http) else { return };
        let labels = self.labels(&entry.open.facts, Protocol::Http);
        let connection = worker.recorder.connection_opened(&labels);
        let open = entry.open.clone();
        let is_of_many = stream.is_of_many();
        let stream = Prefixed::new(prefix, stream);
        let handler = Rc::new(InboundHttp::new(worker.clone(), open.clone(), connection, element));
        let ended = if is_of_many {
            let handler = Rc::new(tunnel::Requests::new(handler));
            serve_http(worker, stream, is_http2, Some(open), handler).await
        } else {
            serve_http(worker, stream, is_http2, Some(open), handler).await
        };
        match ended {
            Some(TooMuch::TakenBack) => {
                let reason = "the caller takes back nearly every request as soon as it has sent it";
                self.refuse(Refused::new(RefusalKind::Overload, reason.to_owned()));
            }
            Some(TooMuch::SlowHead) => {
                let limit = worker.config.limits.request_head;
                let reason = format!("the head of a request was not complete after {limit:?}");
                self.refuse(Refused::new(RefusalKind::BadRequest, reason));
            }
            Some(TooMuch::Idle) | None => {}
        }
    }

    async fn tcp(&self, mut stream: Stream, facts: Facts) {
        let Some(entry) = self.enter(facts, Carries::Tcp) else { return };
        let labels = self.labels(&entry.open.facts, Protocol::Tcp);
        let facts = &entry.open.facts;
        // Decided before anything flows either way; Istio waits for the caller's first byte, and a server that speaks
        // first is heard by callers it refuses.
        let asked = match entry.open.ask(&self.worker.snapshot()) {
            Some(ask) => authorizer::ask_tcp(self.worker, ask, facts).await,
            None => Ok(()),
        };
        if let Err(refused) = asked {
            let (refusal, way) = (refused.refusal(), facts.way());
            return self.worker.recorder.refused_connection(&labels, &refusal, &Marks::default(), &way);
        }
        let (marks, decided) = entry.open.with_policy(|policy| {
            let decision = policy.decide_tcp();
            let refused = Refused::unless_allowed(policy, None, &decision);
            (Marked::of_tcp(policy), refused.map_or_else(|| Ok(decision.policy.cloned()), Err))
        });
        let noted = marks.as_ref().map(|marks| marks.borrow()).unwrap_or_default();
        self.worker.recorder.marked(labels.reporter, &noted);
        let refuse = |refused: Refused| {
            let (refusal, way) = (refused.refusal(), facts.way());
            self.worker.recorder.refused_connection(&labels, &refusal, &noted, &way);
        };
        let allowed_by = match decided {
            Ok(rule) => rule,
            Err(refused) => return refuse(refused),
        };
        let upstream = self.worker.delivery(self.destination);
        let _counted = match upstream.terms.as_ref().map(|terms| terms.take(What::Connection)) {
            Some(None) => {
                let reason = "as many connections to the application are open as maxConnections allows";
                let refused = Refused::new(RefusalKind::Overload, reason.to_owned());
                return refuse(refused.with_flags(ResponseFlags::UpstreamOverflow));
            }
            counted => counted,
        };
        match connect(self.worker, &upstream, maille_tls::ClientAlpn::Tcp).await {
            Ok(mut connected) => {
                let allowed_by = allowed_by.as_ref().map(record::policy_ref);
                let connection = self.worker.recorder.connection_allowed(&labels, allowed_by);
                let passage = Passage {
                    connection,
                    open: Some(&*entry.open),
                    server: None,
                    way: Way {
                        upstream: Some(upstream.address),
                        upstream_local: connected.local(self.worker),
                        ..facts.way()
                    },
                    marks: marks.as_deref(),
                    explain: &|_: &std::io::Error| None,
                };
                let (idle, age) = limits_of_opaque(upstream.terms.as_deref());
                let mut timed = Timed::new(&mut connected.stream, idle, age);
                passage.run(self.worker, &mut stream, &mut timed).await;
            }
            Err(error) => {
                refuse(Refused::new(error.kind(), error.to_string()).with_flags(error.flags()));
            }
        }
    }

    /// Each stream is served as the connection that it would else have been.
    async fn streams(&self, stream: Stream, facts: Facts) {
        let Some(entry) = self.enter(facts, Carries::Streams) else { return };
        if let Some(proof) = &entry.open.facts.proof {
            proof.can_be_renewed();
        }
        let (peer, destination) = (self.peer, self.destination);
        let each = |stream: ByteStream| {
            let Some(counted) = self.worker.admit_stream() else { return };
            let (worker, facts) = (self.worker.clone(), entry.open.facts.clone());
            tokio::task::spawn_local(async move {
                let arrival = Arrival { worker: &worker, peer, destination };
                arrival.tcp(Stream::Carried(Box::new(stream)), facts).await;
                drop(counted);
            });
        };
        tunnel::serve_streams(self.worker, stream, entry.open.clone(), each).await;
    }

    /// From here on the connection is judged whenever facts change. `None`: facts changed meanwhile, and it is
    /// not wanted any more.
    fn enter(&self, facts: Facts, carries: Carries) -> Option<Entry> {
        let snapshot = self.worker.snapshot();
        let policy = snapshot.policy.on_connection(&facts.attributes());
        let entry = self.worker.open.enter(Open::new(facts, carries, policy));
        let unproven = || entry.open.unproven(&self.worker.shared.tls);
        match entry.open.refused_mode(&snapshot).or_else(unproven) {
            None => Some(entry),
            Some(refused) => {
                self.refuse(refused);
                None
            }
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            identity: None,
            peer: self.peer,
            destination: self.destination,
            sni: None,
            agreed: None,
            proof: None,
        }
    }

    /// A caller without an identity, which may have sent a server name all the same.
    fn anonymous(&self, detected: Detected) -> Facts {
        match detected {
            Detected::Tls { sni, .. } => Facts { sni, ..self.facts() },
            _ => self.facts(),
        }
    }

    fn refuse_chain(&self, detected: &Detected) {
        let port = self.destination.port();
        let reason = match detected {
            Detected::Tls { .. } => format!(
                "port {port} is PERMISSIVE and HTTP: TLS is served to mesh clients only, and none of the ALPN values \
                 offered is the mesh's"
            ),
            _ => format!("port {port} is STRICT and the client sent plaintext; it may have no sidecar"),
        };
        self.refuse(Refused::new(RefusalKind::Plaintext, reason));
    }

    fn refuse(&self, refused: Refused) {
        let facts = self.facts();
        let labels = self.labels(&facts, Protocol::Tcp);
        self.worker.recorder.refused_connection(&labels, &refused.refusal(), &Marks::default(), &facts.way());
    }

    fn labels(&self, facts: &Facts, protocol: Protocol) -> maille_telemetry::ConnectionLabels {
        let snapshot = self.worker.snapshot();
        let own = self.worker.shared.tls.current();
        let identity = facts.identity.as_ref();
        let caller = self.worker.destinations.workload_at(self.peer.ip());
        let labels = record::inbound_labels(
            &snapshot.inbound,
            own.svid().identity(),
            caller.as_deref(),
            self.peer,
            self.destination,
            identity,
            protocol,
        );
        let key_exchange = facts.agreed.map_or("", |agreed| agreed.key_exchange);
        maille_telemetry::ConnectionLabels { key_exchange, ..labels }
    }
}
