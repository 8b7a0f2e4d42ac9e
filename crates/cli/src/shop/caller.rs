//! The calling half of a shop service.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for one answer; the mesh refuses at once, so this is for what hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// One call: a method and an `http` URL.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: Method,
    url: Uri,
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("'{text}' is not \"METHOD http://HOST[:PORT]/PATH\"");
        let (method, url) = text.split_once(' ').ok_or_else(shape)?;
        let method = method.parse().map_err(|_| shape())?;
        let url: Uri = url.trim().parse().map_err(|_| shape())?;
        if url.scheme_str() != Some("http") || url.host().is_none() {
            return Err(shape());
        }
        Ok(Self { method, url })
    }
}

/// Makes the call again and again over a kept connection, and prints each change of outcome.
pub(super) async fn repeat(call: Call, interval: Duration) {
    let mut connection = None;
    let mut last = String::new();
    loop {
        let outcome = match timeout(PATIENCE, once(&call, &mut connection)).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => {
                connection = None;
                error
            }
            Err(_) => {
                connection = None;
                format!("no answer within {} s", PATIENCE.as_secs())
            }
        };
        if outcome != last {
            println!("{} {} -> {outcome}", call.method, call.url);
            last = outcome;
        }
        tokio::time::sleep(interval).await;
    }
}

type Connection = Option<SendRequest<Full<Bytes>>>;

async fn once(call: &Call, connection: &mut Connection) -> Result<String, String> {
    let host = call.url.host().unwrap_or_default();
    let port = call.url.port_u16().unwrap_or(80);
    let mut sender = match connection.take() {
        Some(open) if open.is_ready() => open,
        _ => connect(host, port).await?,
    };
    let body = if call.method == Method::GET { Bytes::new() } else { Bytes::from_static(b"{\"item\":1}") };
    let authority = call.url.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let request = Request::builder()
        .method(&call.method)
        .uri(call.url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str))
        .header(header::HOST, authority)
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| reason(&error))?;
    let status = response.status();
    response.into_body().collect().await.map_err(|error| reason(&error))?;
    *connection = Some(sender);
    Ok(status.to_string())
}

async fn connect(host: &str, port: u16) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream =
        TcpStream::connect((host, port)).await.map_err(|error| format!("cannot connect: {error}"))?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| reason(&error))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// The innermost cause, which says what happened on the wire.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    format!("connection ended: {innermost}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_a_method_and_an_http_url() {
        let call: Call = "POST http://orders:8080/api/v1/orders/1".parse().expect("valid");
        assert_eq!((call.method, call.url.port_u16()), (Method::POST, Some(8080)));
        for bad in ["http://orders/", "GET orders", "GET https://orders/", "GET  ", ""] {
            assert!(bad.parse::<Call>().is_err(), "{bad:?}");
        }
    }
}
