//! Renewed certificates, proved inside connections whose streams go on (design: what must always be true, 5).
//!
//! Streams of bytes may live longer than the certificates that their connection was opened with. When its own has been
//! renewed, or the called proxy's is about to end, the caller's proxy shows the certificate that it has on a stream of its
//! own, whose method no stream of an application has; the called proxy verifies it, lets the streams stand on it, and
//! answers with the certificate that it has itself, which the caller's proxy verifies. Each end cuts the streams when the
//! other's last certificate ends, as on any other connection.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode, Uri};
use maille_tls::{Binding, MAX_RENEWAL, TlsContext};
use rustls::pki_types::UnixTime;
use tokio::time::timeout;

use crate::open::{Facts, Validity, disallowed};

const METHOD: &[u8] = b"MAILLE-RENEW";
/// Verifying costs more than asking for it: no more often than so.
const APART: Duration = Duration::from_secs(1);
/// For a message that fits into one flight.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a stream shows a renewed certificate.
pub(super) fn is_renewal(method: &Method) -> bool {
    method.as_str().as_bytes() == METHOD
}

/// Shows the certificate in use. If the peer has taken it: what the peer shows of its own, if it does.
pub(super) async fn show(
    sender: &SendRequest<Bytes>,
    binding: &Binding,
    tls: &TlsContext,
) -> Option<Option<BytesMut>> {
    let message = binding.renew(tls.current().svid()).ok()?;
    let method = Method::from_bytes(METHOD).ok()?;
    let exchange = async {
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_static("http://renewal/");
        let (answer, mut send) = sender.clone().ready().await?.send_request(request, false)?;
        send.send_data(message.into(), true)?;
        answer.await
    };
    let show = async {
        let answer: Result<_, h2::Error> = exchange.await;
        let answer = answer.ok().filter(|answer| answer.status() == StatusCode::OK)?;
        Some(read(answer.into_body()).await.filter(|theirs| !theirs.is_empty()))
    };
    timeout(PATIENCE, show).await.ok().flatten()
}

/// The called side of one connection.
pub(super) struct Renewals {
    binding: Option<Binding>,
    last: Cell<Option<Instant>>,
}

impl Renewals {
    pub(super) fn new(binding: Option<Binding>) -> Rc<Self> {
        Rc::new(Self { binding, last: Cell::default() })
    }

    /// Judges what the peer shows, and answers; `facts` are of the connection and all its streams.
    pub(super) async fn judge(
        self: Rc<Self>,
        body: RecvStream,
        mut respond: SendResponse<Bytes>,
        facts: Facts,
        tls: std::sync::Arc<TlsContext>,
    ) {
        let is_too_often = self.last.get().is_some_and(|last| last.elapsed() < APART);
        self.last.set(Some(Instant::now()));
        if is_too_often {
            return respond.send_reset(Reason::ENHANCE_YOUR_CALM);
        }
        let verdict = match timeout(PATIENCE, read(body)).await {
            Ok(Some(message)) => self.accept(&message, &facts, &tls),
            Ok(None) | Err(_) => Err("it could not be read".to_owned()),
        };
        let mut response = Response::new(());
        if let Err(reason) = verdict {
            tracing::warn!(peer = %facts.peer, %reason, "a renewed certificate was refused");
            *response.status_mut() = StatusCode::FORBIDDEN;
            let _ = respond.send_response(response, true);
            return;
        }
        let own = self.binding.as_ref().and_then(|binding| binding.renew_server(tls.current().svid()).ok());
        if let Ok(mut send) = respond.send_response(response, own.is_none())
            && let Some(own) = own
        {
            let _ = send.send_data(own.into(), true);
        }
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

async fn read(mut body: RecvStream) -> Option<BytesMut> {
    let mut message = BytesMut::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes.ok()?;
        if message.len() + bytes.len() > MAX_RENEWAL {
            return None;
        }
        body.flow_control().release_capacity(bytes.len()).ok()?;
        message.extend_from_slice(&bytes);
    }
    Some(message)
}
