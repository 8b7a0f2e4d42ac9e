//! Renewed certificates, proved inside connections whose streams go on (design: what must always be true, 5).
//!
//! Streams of bytes may live longer than the certificates that their connection was opened with. When its own has been
//! renewed, or the called proxy's is about to end, the caller's proxy shows the certificate that it has on a stream of its
//! own, whose method no stream of an application has; the called proxy verifies it, lets the streams stand on it, and
//! answers with the certificate that it has itself, which the caller's proxy verifies. Each end cuts the streams when the
//! other's last certificate ends, as on any other connection.
//!
//! That stream is opened with the connection and stays: a called proxy that is leaving (a successor has taken its place,
//! say) takes no new streams after its GOAWAY, and those that are open may go on for longer than any certificate. Messages
//! on it have their length before them; one of the caller's, a certificate, is answered with two: the verdict, and the
//! certificate of the called proxy, or nothing.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode, Uri};
use maille_tls::{Binding, MAX_RENEWAL, TlsContext};
use rustls::pki_types::UnixTime;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::open::{Facts, Validity, disallowed};

const METHOD: &[u8] = b"MAILLE-PROOFS";
/// Verifying costs more than asking for it: no more often than so.
const APART: Duration = Duration::from_secs(1);
/// For messages that fit into one flight, and a peer that may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of a message, before it.
const LENGTH: usize = 4;
/// Two messages, of which only one can be under way.
const MAX_LEFT: usize = 2 * (LENGTH + MAX_RENEWAL);
/// What the called proxy thinks of a certificate.
const ACCEPTED: &[u8] = b"+";
const REFUSED: &[u8] = b"-";

/// Whether a stream shows a renewed certificate.
pub(super) fn is_renewal(method: &Method) -> bool {
    method.as_str().as_bytes() == METHOD
}

/// The caller's side of the stream on which both ends show their certificates.
pub(super) struct Showing {
    send: SendStream<Bytes>,
    receive: Incoming,
}

impl Showing {
    /// Opens the stream. Early: a peer that is leaving takes no new ones.
    pub(super) async fn open(sender: &SendRequest<Bytes>) -> Option<Self> {
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(METHOD).ok()?;
        *request.uri_mut() = Uri::from_static("http://renewal/");
        let (answer, send) = sender.clone().ready().await.ok()?.send_request(request, false).ok()?;
        Some(Self { send, receive: Incoming::new(Source::Asked(answer)) })
    }

    /// Shows the certificate in use. `None`: the stream is of no use any more.
    pub(super) async fn show(&mut self, binding: &Binding, tls: &TlsContext) -> Option<Shown> {
        let Ok(message) = binding.renew(tls.current().svid()) else { return Some(Shown::Refused) };
        let exchange = async {
            write(&mut self.send, &message).await?;
            let verdict = self.receive.message().await?;
            let theirs = self.receive.message().await?;
            Some(match verdict.as_ref() == ACCEPTED {
                true if theirs.is_empty() => Shown::Accepted(None),
                true => Shown::Accepted(Some(theirs)),
                false => Shown::Refused,
            })
        };
        timeout(PATIENCE, exchange).await.ok().flatten()
    }
}

impl Drop for Showing {
    fn drop(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

/// What the peer said to a certificate.
pub(super) enum Shown {
    Refused,
    /// It stands on it from now on; and this is what it shows itself, if it does.
    Accepted(Option<BytesMut>),
}

/// The called side of one connection.
pub(super) struct Renewals {
    binding: Option<Binding>,
    last: Cell<Option<Instant>>,
    has_refused: Cell<bool>,
    serving: RefCell<Option<AbortHandle>>,
}

impl Renewals {
    pub(super) fn new(binding: Option<Binding>) -> Rc<Self> {
        Rc::new(Self {
            binding,
            last: Cell::default(),
            has_refused: Cell::default(),
            serving: RefCell::default(),
        })
    }

    /// Takes the stream on which the peer shows its certificates, in the place of the one before: a connection has one.
    /// `facts` are of the connection and all its streams.
    pub(super) fn serve(
        self: &Rc<Self>,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        facts: Facts,
        tls: Arc<TlsContext>,
    ) {
        let serving = tokio::task::spawn_local(self.clone().judge_all(body, respond, facts, tls));
        if let Some(before) = self.serving.replace(Some(serving.abort_handle())) {
            before.abort();
        }
    }

    /// Ends the stream, since nothing stands on what is shown there any more.
    pub(super) fn end(&self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }

    async fn judge_all(
        self: Rc<Self>,
        body: RecvStream,
        mut respond: SendResponse<Bytes>,
        facts: Facts,
        tls: Arc<TlsContext>,
    ) {
        let Ok(mut send) = respond.send_response(Response::new(()), false) else { return };
        let mut incoming = Incoming::new(Source::Open(body));
        while let Some(message) = incoming.message().await {
            if let Some(early) = self.last.get().and_then(|last| APART.checked_sub(last.elapsed())) {
                tokio::time::sleep(early).await;
            }
            self.last.set(Some(Instant::now()));
            let verdict = self.accept(&message, &facts, &tls);
            let (verdict, own) = match verdict {
                Ok(()) => {
                    let binding = self.binding.as_ref();
                    (ACCEPTED, binding.and_then(|own| own.renew_server(tls.current().svid()).ok()))
                }
                Err(reason) => {
                    // Once: the peer may go on showing it for as long as it likes.
                    if !self.has_refused.replace(true) {
                        tracing::warn!(peer = %facts.peer, %reason, "a renewed certificate was refused");
                    }
                    (REFUSED, None)
                }
            };
            let answer = async {
                write(&mut send, verdict).await?;
                write(&mut send, &own.unwrap_or_default()).await
            };
            if answer.await.is_none() {
                return;
            }
        }
        let _ = send.send_data(Bytes::new(), true);
    }

    fn accept(&self, message: &[u8], facts: &Facts, tls: &TlsContext) -> Result<(), String> {
        let (Some(binding), Some(identity), Some(proof)) = (&self.binding, &facts.identity, &facts.proof)
        else {
            return Err("the connection has nothing to bind it to".to_owned());
        };
        let current = tls.current();
        // It would stand on the settings of now as well.
        if let Some(refused) = disallowed(facts.agreed.as_ref(), &current) {
            return Err(refused.reason().to_owned());
        }
        let chain = current
            .accept_renewal(binding, message, identity, UnixTime::now())
            .map_err(|error| error.to_string())?;
        let leaf = chain.first().ok_or("the chain is empty")?;
        let valid = Validity::of(leaf).map_err(|error| error.to_string())?;
        proof.renew(chain.into(), valid, current.generation());
        Ok(())
    }
}

/// What comes on a stream, as messages with their lengths before them.
struct Incoming {
    source: Source,
    /// Read and not yet taken.
    left: BytesMut,
}

enum Source {
    /// The peer has not answered yet.
    Asked(ResponseFuture),
    Open(RecvStream),
}

impl Incoming {
    fn new(source: Source) -> Self {
        Self { source, left: BytesMut::new() }
    }

    /// The next message; `None` at the end, and if it is longer than any.
    async fn message(&mut self) -> Option<BytesMut> {
        loop {
            if let Some((length, rest)) = self.left.split_first_chunk() {
                let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
                if length > MAX_RENEWAL {
                    return None;
                }
                if rest.len() >= length {
                    self.left.advance(LENGTH);
                    return Some(self.left.split_to(length));
                }
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Option<()> {
        let body = match &mut self.source {
            Source::Open(body) => body,
            Source::Asked(answer) => {
                let answer = answer.await.ok().filter(|answer| answer.status() == StatusCode::OK)?;
                self.source = Source::Open(answer.into_body());
                return Some(());
            }
        };
        let bytes = body.data().await?.ok()?;
        // A peer that does not wait for its answer is none of ours.
        if self.left.len() + bytes.len() > MAX_LEFT {
            return None;
        }
        body.flow_control().release_capacity(bytes.len()).ok()?;
        self.left.extend_from_slice(&bytes);
        Some(())
    }
}

/// Sends one message, when the peer takes it.
async fn write(send: &mut SendStream<Bytes>, message: &[u8]) -> Option<()> {
    let length = u32::try_from(message.len()).ok()?.to_be_bytes();
    let mut left = Bytes::from([&length, message].concat());
    while !left.is_empty() {
        send.reserve_capacity(left.len());
        while send.capacity() == 0 {
            poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?;
        }
        let now = left.split_to(send.capacity().min(left.len()));
        send.send_data(now, false).ok()?;
    }
    Some(())
}
