//! WebSocket (RFC 6455) with Kubernetes' channels: the first byte of each binary message names the channel.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::respond::{self, Body};
use crate::status::{ApiError, ApiResult};

/// The longest message that is read; clients send pieces of at most 32 KiB.
const MAX_MESSAGE: usize = 64 << 10;
/// How many messages may wait for a slow client.
const QUEUE: usize = 8;
/// How often a client is asked whether it is there.
const PING: Duration = Duration::from_secs(30);
/// A client that has said nothing for so long, not even in answer to a ping, is gone. Some clients do not read while
/// their own output is held up (`| less`), and are let be for a while.
const SILENCE: Duration = Duration::from_secs(900);

/// An agreed switch of protocol, before it has happened.
pub(super) struct Switch {
    /// What of the offered was chosen.
    pub(super) protocol: &'static str,
    upgrade: OnUpgrade,
}

/// Agrees to switch: chooses the first of `spoken` that the client offers, and answers 101.
pub(super) fn switch(parts: &Parts, spoken: &[&'static str]) -> ApiResult<(Response<Body>, Switch)> {
    let headers = &parts.headers;
    let wants = |name: HeaderName, value: &str| tokens(headers, &name).any(|t| t.eq_ignore_ascii_case(value));
    if !wants(CONNECTION, "upgrade") || !wants(UPGRADE, "websocket") {
        let instead = tokens(headers, &UPGRADE).next().map(|other| format!(", not to {other}"));
        return Err(ApiError::bad_request(format!(
            "Upgrade request required: this is a stream over WebSocket{} (kubectl 1.31 and later speak it)",
            instead.unwrap_or_default()
        )));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(ApiError::bad_request("Sec-WebSocket-Version must be 13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| ApiError::bad_request("the header Sec-WebSocket-Key is missing"))?;
    let offered: Vec<&str> = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    let protocol = spoken.iter().copied().find(|name| offered.contains(name)).ok_or_else(|| {
        ApiError::bad_request(format!(
            "none of the offered subprotocols [{}] is spoken here, but {}",
            offered.join(", "),
            spoken.join(", ")
        ))
    })?;
    let upgrade = parts.extensions.get::<OnUpgrade>().cloned();
    let upgrade = upgrade.ok_or_else(|| ApiError::bad_request("only HTTP/1.1 can be upgraded"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(ApiError::internal)?;
    let mut response = Response::new(respond::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok((response, Switch { protocol, upgrade }))
}

/// Whether the client offers a subprotocol.
pub(super) fn offers(parts: &Parts, protocol: &str) -> bool {
    tokens(&parts.headers, &SEC_WEBSOCKET_PROTOCOL).any(|offered| offered == protocol)
}

/// The words of a header that is a list.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

impl Switch {
    /// Waits until the client speaks WebSocket.
    pub(super) async fn done(self) -> Result<(Sender, Receiver<TokioIo<Upgraded>>), hyper::Error> {
        Ok(split(TokioIo::new(self.upgrade.await?)).await)
    }
}

/// Both directions of a connection that speaks WebSocket.
pub(super) async fn split<S>(stream: S) -> (Sender, Receiver<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        // Nothing is gathered: a message is written before the next one is taken.
        .write_buffer_size(0);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(limits)).await;
    let (sink, stream) = socket.split();
    let (queue, messages) = mpsc::channel(QUEUE);
    tokio::spawn(write(sink, messages));
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sender = Sender(queue);
    (sender.clone(), Receiver { stream, pings: sender, ping, heard: Instant::now() })
}

/// Writes what is queued until nobody can queue more, or the client is gone.
async fn write<S>(mut sink: SplitSink<WebSocketStream<S>, Message>, mut messages: mpsc::Receiver<Message>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = messages.recv().await {
        let last = message.is_close();
        if let Err(error) = sink.send(message).await {
            tracing::debug!(%error, "a WebSocket client went away");
            return;
        }
        if last {
            return;
        }
    }
}

/// The client is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Sends to the client, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Sender(mpsc::Sender<Message>);

impl Sender {
    /// Sends bytes on a channel; waits while too much is waiting to be sent.
    pub(super) async fn send(&self, channel: u8, bytes: &[u8]) -> Result<(), Gone> {
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(channel);
        message.put_slice(bytes);
        self.0.send(Message::Binary(message.freeze())).await.map_err(|_| Gone)
    }

    /// Says that all went well and nothing follows.
    pub(super) async fn close(&self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // A client that is gone need not be told.
        let _ = self.0.send(Message::Close(Some(frame))).await;
    }

    /// Waits until the client is gone or everything was closed.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Receives from the client.
pub(super) struct Receiver<S> {
    stream: SplitStream<WebSocketStream<S>>,
    pings: Sender,
    ping: Interval,
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Receiver<S> {
    /// Asks the client now and then whether it is there, without taking anything from it; never ends.
    pub(super) async fn keep_alive(&mut self) -> std::convert::Infallible {
        loop {
            self.ping.tick().await;
            // What it says meanwhile is not heard.
            self.heard = Instant::now();
            let _ = self.pings.0.try_send(Message::Ping(Bytes::new()));
        }
    }

    /// The next message with its channel; `None` when the client has closed or is gone. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            let message = tokio::select! {
                message = self.stream.next() => message?,
                _ = self.ping.tick() => {
                    if self.heard.elapsed() > SILENCE {
                        tracing::debug!("a WebSocket client has been silent for too long");
                        return None;
                    }
                    // When the queue is full, what waits there tells as well whether the client lives.
                    let _ = self.pings.0.try_send(Message::Ping(Bytes::new()));
                    continue;
                }
            };
            self.heard = Instant::now();
            match message {
                Ok(Message::Binary(mut bytes)) => {
                    if bytes.is_empty() {
                        continue;
                    }
                    let channel = bytes.split_to(1).first().copied()?;
                    return Some((channel, bytes));
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                // The chosen subprotocols are binary.
                Ok(Message::Text(_) | Message::Close(_) | Message::Frame(_)) => return None,
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return None,
                Err(error) => {
                    tracing::debug!(%error, "a WebSocket client went away");
                    return None;
                }
            }
        }
    }
}
