//! The page over HTTP: a few paths, read only, for a few viewers.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use maud::{Markup, html};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::access::{Access, AccessKey, Gate};
use crate::feed::{Feed, Upstream, View};
use crate::page;
use crate::query::{Parameters, ViewQuery};

const STYLE: &str = include_str!("../assets/dashboard.css");
const SCRIPT: &str = include_str!("../assets/dashboard.js");
const ICON: &str = include_str!("../assets/favicon.svg");

/// Connections at once: some people with some tabs each.
const MAX_CONNECTIONS: usize = 64;
/// Largest head of a request.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// How long a connection may take to send one, and may stay open without.
const HEAD_PATIENCE: Duration = Duration::from_secs(15);
/// Longest address.
const MAX_ADDRESS_BYTES: usize = 4 << 10;

/// Sent with every answer: nothing but what this server itself gives is loaded or run, and nobody frames it.
const HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
         frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Serves the page on `listener` until `stop` resolves.
///
/// `whereabouts` ends the sentence that someone without the key reads: where the address with the key is found.
///
/// # Errors
/// If the listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    upstream: Arc<dyn Upstream>,
    key: AccessKey,
    whereabouts: &str,
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let address: SocketAddr = listener.local_addr()?;
    let shared = Arc::new(Shared {
        gate: Gate::new(key, address),
        feed: Feed::new(upstream),
        drawn: Drawn::default(),
        whereabouts: whereabouts.to_owned(),
    });
    let router = Router::new()
        .route("/", get(whole))
        .route("/live", get(live))
        .route("/dashboard.css", get(|| async { file("text/css; charset=utf-8", STYLE) }))
        .route("/dashboard.js", get(|| async { file("text/javascript; charset=utf-8", SCRIPT) }))
        .route("/favicon.svg", get(|| async { file("image/svg+xml", ICON) }))
        .fallback(|| async {
            refusal(StatusCode::NOT_FOUND, "There is nothing here.", &html! { a href="/" { "The page" } })
        })
        .with_state(Arc::clone(&shared))
        .layer(middleware::from_fn_with_state(shared, guard));
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let permit = Arc::clone(&room).acquire_owned().await.map_err(std::io::Error::other)?;
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors, or a client that is gone: neither ends the page.
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => return Ok(()),
        };
        while connections.try_join_next().is_some() {}
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_PATIENCE)
                .max_buf_size(MAX_HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a viewer's connection ended");
            }
            drop(permit);
        });
    }
}

struct Shared {
    gate: Gate,
    feed: Feed,
    drawn: Drawn,
    whereabouts: String,
}

/// What was drawn of the newest view, so that viewers of the same cost one drawing.
#[derive(Default)]
struct Drawn(Mutex<(u64, HashMap<String, Arc<str>>)>);

impl Drawn {
    /// Different questions whose answers are kept.
    const MOST: usize = 16;

    fn live(&self, view: &View, query: &ViewQuery) -> Arc<str> {
        let parameters = query.parameters();
        // Held while drawing: whoever asks the same meanwhile takes what comes out.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 != view.round {
            *kept = (view.round, HashMap::new());
        }
        if let Some(live) = kept.1.get(&parameters) {
            return Arc::clone(live);
        }
        let live: Arc<str> = page::live(view, query).into_string().into();
        if kept.1.len() < Self::MOST {
            kept.1.insert(parameters, Arc::clone(&live));
        }
        live
    }
}

async fn whole(State(shared): State<Arc<Shared>>, Query(parameters): Query<Parameters>) -> Response {
    let view = shared.feed.view().await;
    let live = shared.drawn.live(&view, &parameters.into());
    document(StatusCode::OK, page::page(&view, &live).into_string())
}

async fn live(State(shared): State<Arc<Shared>>, Query(parameters): Query<Parameters>) -> Response {
    let view = shared.feed.view().await;
    document(StatusCode::OK, shared.drawn.live(&view, &parameters.into()).as_ref().to_owned())
}

/// Lets in who may look, whatever the path, and gives every answer its headers.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut response = judge(&shared, request, next).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn judge(shared: &Shared, request: Request, next: Next) -> Response {
    #[derive(Deserialize)]
    struct Key {
        key: Option<String>,
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let words = html! { "It can be read (GET), and nothing else." };
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "This page changes nothing.", &words);
    }
    if request.uri().path_and_query().is_some_and(|path| path.as_str().len() > MAX_ADDRESS_BYTES) {
        return refusal(StatusCode::URI_TOO_LONG, "The address is too long.", &html! {});
    }
    let key = Query::<Key>::try_from_uri(request.uri()).ok().and_then(|Query(found)| found.key);
    match shared.gate.judge(request.headers(), key.as_deref()) {
        Access::Granted => next.run(request).await,
        Access::Exchange { cookie } => exchange(&request, &cookie),
        Access::NoKey => {
            let words = html! { "Open it with the address that has the key: " (shared.whereabouts) };
            refusal(StatusCode::FORBIDDEN, "This page needs its key.", &words)
        }
        Access::ForeignHost => {
            let words = html! { "It answers at localhost and 127.0.0.1, with its own port; a forwarded port must have the same number." };
            refusal(StatusCode::FORBIDDEN, "This page has no such name.", &words)
        }
    }
}

/// The key leaves the address for a cookie; what else the address asks for stays.
fn exchange(request: &Request, cookie: &str) -> Response {
    let wanted = Query::<Parameters>::try_from_uri(request.uri()).map(|Query(found)| ViewQuery::from(found));
    let link = wanted.unwrap_or_default().link();
    let (status, name, value) = match request.headers().get("sec-fetch-site").map(HeaderValue::as_bytes) {
        // A browser that came here by a link from elsewhere sends a strict cookie only once the page itself has asked.
        Some(b"cross-site") => (StatusCode::OK, HeaderName::from_static("refresh"), format!("0; url={link}")),
        _ => (StatusCode::SEE_OTHER, header::LOCATION, link),
    };
    let mut response = status.into_response();
    for (name, value) in [(name, value.as_str()), (header::SET_COOKIE, cookie)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn document(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// A page that says why there is none. It needs no file, for who has no key gets none.
fn refusal(status: StatusCode, why: &str, words: &Markup) -> Response {
    let markup = html! {
        (maud::DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; meta name="color-scheme" content="light dark"; title { "Maille" } }
            body { h1 { (why) } p { (words) } }
        }
    };
    document(status, markup.into_string())
}
