//! The gRPC health check (grpc.health.v1), as far as a probe needs it.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// `SERVING` in `HealthCheckResponse.status`.
const SERVING: u8 = 1;
const MAX_ANSWER: usize = 4096;

/// Asks once.
pub(crate) async fn check(address: SocketAddr, service: &str) -> Result<(), String> {
    let say = |e: &dyn std::fmt::Display| format!("grpc health check of {address}: {e}");
    let stream = TcpStream::connect(address).await.map_err(|e| say(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| say(&e))?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(encode(service)))
        .map_err(|e| say(&e))?;
    let response = sender.send_request(request).await.map_err(|e| say(&e))?;
    let status = response.headers().get("grpc-status").cloned();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| say(&e))?;
    connection.abort();
    let status = body.trailers().and_then(|t| t.get("grpc-status").cloned()).or(status);
    if let Some(status) = status.filter(|status| status != "0") {
        return Err(say(&format!("status {}", status.to_str().unwrap_or("?"))));
    }
    // A message of one field: tag 0x08 (field 1, varint), value; a missing field is UNKNOWN.
    match body.to_bytes().get(5..7) {
        Some([0x08, SERVING]) => Ok(()),
        _ => Err(say(&"not serving")),
    }
}

/// The length-prefixed `HealthCheckRequest { service = 1 }`.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        message.put_u8(u8::try_from(length).unwrap_or_default());
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or_default());
    frame.put_slice(&message);
    frame.freeze()
}
