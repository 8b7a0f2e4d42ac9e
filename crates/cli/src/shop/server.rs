//! The answering half of a shop service.

use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::tls::{self, TlsServer};

/// A body larger than this is refused: the shop's orders are small.
const LARGEST_BODY: usize = 1 << 20;

/// What the metrics port shows.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters {
    served: Arc<AtomicU64>,
}

/// Binds `port` on every address of the Pod; without IPv6, on every IPv4 address.
pub(super) async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port))
            .await
            .with_context(|| format!("cannot listen on port {port}")),
    }
}

/// Answers every request with what the service is called and what it was asked.
pub(super) async fn serve(listener: TcpListener, name: String, counters: Counters) {
    let name: Arc<str> = name.into();
    accept(listener, move |request| {
        let (name, counters) = (name.clone(), counters.clone());
        async move { answer(&name, &counters, None, request).await }
    })
    .await;
}

/// The same over TLS, for clients that have proved themselves.
pub(super) async fn serve_tls(
    listener: TcpListener,
    mut server: TlsServer,
    name: String,
    counters: Counters,
) {
    let name: Arc<str> = name.into();
    loop {
        let stream = next(&listener).await;
        let acceptor = server.acceptor();
        let (name, counters) = (name.clone(), counters.clone());
        tokio::spawn(async move {
            let Some((stream, caller)) = tls::accept(acceptor, stream).await else { return };
            let caller: Arc<str> = caller.into();
            converse(stream, move |request| {
                let (name, counters, caller) = (name.clone(), counters.clone(), caller.clone());
                async move { answer(&name, &counters, Some(&caller), request).await }
            })
            .await;
        });
    }
}

/// Serves the counters in Prometheus' text format.
pub(super) async fn serve_metrics(listener: TcpListener, name: String, counters: Counters) {
    let name: Arc<str> = name.into();
    accept(listener, move |_| {
        let (name, counters) = (name.clone(), counters.clone());
        async move {
            let served = counters.served.load(Ordering::Relaxed);
            let text = format!(
                "# HELP shop_requests_served_total Requests that the service answered.\n\
                 # TYPE shop_requests_served_total counter\n\
                 shop_requests_served_total{{service=\"{name}\"}} {served}\n"
            );
            response(StatusCode::OK, "text/plain; version=0.0.4", text)
        }
    })
    .await;
}

async fn accept<F, A>(listener: TcpListener, handler: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    loop {
        let stream = next(&listener).await;
        tokio::spawn(converse(stream, handler.clone()));
    }
}

async fn next(listener: &TcpListener) -> TcpStream {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            return stream;
        }
        // Out of descriptors, most likely: give connections time to end.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Answers the requests of one connection.
async fn converse<S, F, A>(stream: S, handler: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> A + Send + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// `caller` is who this server itself knows to have called.
async fn answer(
    name: &str,
    counters: &Counters,
    caller: Option<&str>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    if request.uri().path() == "/healthz" {
        return response(StatusCode::OK, "text/plain", "ok\n".to_owned());
    }
    let (parts, body) = request.into_parts();
    let received = match Limited::new(body, LARGEST_BODY).collect().await {
        Ok(body) => body.to_bytes().len(),
        Err(_) => {
            return response(
                StatusCode::PAYLOAD_TOO_LARGE,
                "text/plain",
                "the body is too large\n".to_owned(),
            );
        }
    };
    counters.served.fetch_add(1, Ordering::Relaxed);
    // Else the caller as the mesh proved it, in Envoy's header for it.
    let header = parts.headers.get("x-forwarded-client-cert").and_then(|value| value.to_str().ok());
    let caller = caller.or_else(|| header?.rsplit_once("URI=").map(|(_, uri)| uri));
    let body = serde_json::json!({
        "service": name,
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "caller": caller,
        "received_bytes": received,
    });
    response(StatusCode::OK, "application/json", format!("{body}\n"))
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
