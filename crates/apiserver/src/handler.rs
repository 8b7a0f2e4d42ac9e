//! One request: who, what, may they, do it.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::{Api, Caller};
use crate::auth::authz::{self, Attributes};
use crate::auth::{authn, reviews};
use crate::negotiate::{self, Shape};
use crate::request::{self, Query, Route, Target};
use crate::resources;
use crate::respond::{self, Body};
use crate::status::{ApiError, ApiResult};
use crate::streams;
use crate::verbs::watch::Watch;
use crate::verbs::write::{self, PatchKind, Written};
use crate::verbs::{delete, read};
use crate::{body, connect, discovery, json, logs, openapi, scale};

/// Bodies as they come.
pub(crate) type Incoming = hyper::body::Incoming;

/// Answers a request. `certificate` is the user of the connection, if it showed one.
pub(crate) async fn handle(
    api: Arc<Api>,
    certificate: Option<Arc<Caller>>,
    request: Request<Incoming>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut body = Some(body);
    match answer(&api, certificate.as_deref(), &parts, &mut body).await {
        Ok(response) => response,
        Err(error) => {
            if error.code >= 500 {
                tracing::warn!(method = %parts.method, path = parts.uri.path(), %error, "request failed");
            }
            // Some clients (curl before 8) take an answer for broken that comes while they may still send.
            if let Some(unread) = body.take() {
                body::discard(unread).await;
            }
            respond::failure(&error)
        }
    }
}

async fn answer(
    api: &Arc<Api>,
    certificate: Option<&Caller>,
    parts: &Parts,
    body: &mut Option<Incoming>,
) -> ApiResult<Response<Body>> {
    let path = parts.uri.path();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let route = request::route(path);
    // Health and version are for everyone.
    if let Ok(Route::Plain(name)) = &route
        && !name.is_empty()
    {
        return plain(api, name, &query);
    }
    let caller = authn::caller(api, certificate, &parts.headers)?.ok_or_else(ApiError::unauthorized)?;
    match route? {
        Route::Plain(_) => {
            let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
            for (group, versions) in resources::groups() {
                paths.push(format!("/apis/{group}"));
                paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
            }
            paths.extend(
                ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
                    .map(str::to_owned),
            );
            Ok(respond::json(200, &json!({ "paths": paths })))
        }
        Route::Discovery(segments) => {
            only_get(&parts.method)?;
            let shape = negotiate::shape(&parts.headers)?;
            let host =
                parts.headers.get(http::header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
            let mut response = respond::json(200, &discovery::answer(&segments, shape, host)?);
            if shape == Shape::AggregatedDiscovery && segments.len() == 1 {
                let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
                response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
            }
            Ok(response)
        }
        Route::OpenApi(segments) => {
            only_get(&parts.method)?;
            let accept = header(&parts.headers, ACCEPT.as_str());
            if segments == ["openapi", "v2"] && accept.contains(openapi::PROTOBUF_ASKED) {
                let mut response = respond::text(200, openapi::PROTOBUF_DOCUMENT);
                let kind = http::HeaderValue::from_static(openapi::PROTOBUF_TYPE);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                return Ok(response);
            }
            negotiate::shape(&parts.headers)?;
            let api_segments = segments;
            let document = blocking(move || openapi::answer(&api_segments)).await?;
            Ok(respond::json(200, &document))
        }
        Route::Objects(target) => objects(api, &caller, target, query, parts, body).await,
    }
}

fn only_get(method: &Method) -> ApiResult<()> {
    if method == Method::GET || method == Method::HEAD { Ok(()) } else { Err(ApiError::method_not_allowed()) }
}

fn plain(api: &Api, name: &str, query: &Query) -> ApiResult<Response<Body>> {
    match name {
        "version" => Ok(respond::json(
            200,
            &json!({
                "major": "1", "minor": "37", "gitVersion": format!("v1.37.0+maille.{}", env!("CARGO_PKG_VERSION")),
                "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
                "goVersion": "none", "compiler": "rustc", "platform": format!("linux/{}", crate::bootstrap::architecture()),
            }),
        )),
        _ => {
            // The state is in memory: what could fail here is a lock held for ever.
            let revision = api.store.read(|s| s.revision());
            let verbose = query.flag("verbose");
            Ok(respond::text(
                200,
                if verbose { format!("[+]store ok: revision {revision}\nok\n") } else { "ok".into() },
            ))
        }
    }
}

/// The verb of a request in the language of authorization.
fn verb(method: &Method, target: &Target, query: &Query) -> ApiResult<&'static str> {
    let named = target.name.is_some();
    Ok(match *method {
        Method::GET | Method::HEAD if query.flag("watch") => "watch",
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => return Err(ApiError::method_not_allowed()),
    })
}

async fn objects(
    api: &Arc<Api>,
    caller: &Caller,
    target: Target,
    query: Query,
    parts: &Parts,
    body: &mut Option<Incoming>,
) -> ApiResult<Response<Body>> {
    let verb = match streams::is_stream(&target) {
        // Whoever may only read must not run commands, although a WebSocket begins with GET (Kubernetes 1.35,
        // AuthorizePodWebsocketUpgradeCreatePermission).
        true if matches!(parts.method, Method::GET | Method::POST) => "create",
        true => return Err(ApiError::method_not_allowed()),
        false => verb(&parts.method, &target, &query)?,
    };
    let selected = || {
        // A list that is selected by name is a question about that name.
        let selector = query.text("fieldSelector").unwrap_or_default();
        crate::selector::FieldSelector::parse(selector, target.resource)
            .ok()
            .and_then(|s| s.name().map(str::to_owned))
    };
    let name = match &target.name {
        Some(name) => Some(name.clone()),
        None if matches!(verb, "list" | "watch") => selected(),
        None => None,
    };
    let proxied = target.subresource.as_deref() == Some("proxy");
    let may = |name: &str| {
        let asked = Attributes {
            verb,
            group: target.resource.group,
            resource: target.resource.plural,
            subresource: target.subresource.as_deref().unwrap_or_default(),
            namespace: target.ns(),
            name,
        };
        if authz::allows(caller, &asked) { Ok(()) } else { Err(authz::refusal(caller, &target, &asked)) }
    };
    // A new object is named in its body: the question waits until that is read.
    let name_in_body = verb == "create" && name.is_none();
    if !name_in_body {
        may(name.as_deref().unwrap_or_default())?;
    }
    if streams::is_stream(&target) {
        return streams::answer(api, caller, &target, &query, parts).await;
    }
    if proxied {
        let Some(body) = body.take() else { return Err(ApiError::bad_request("the body was read before")) };
        return connect::proxy(api, target, parts, body).await;
    }
    let bytes = match verb {
        "get" | "list" | "watch" => Bytes::new(),
        _ => match body.take() {
            Some(body) => body::collect(body).await?,
            None => Bytes::new(),
        },
    };
    let content_type = header(&parts.headers, CONTENT_TYPE.as_str());
    if name_in_body {
        let value = body::decode(&bytes, content_type)?;
        may(json::name(&value))?;
        return create(api, caller, target, query, parts, value).await;
    }
    let shape = negotiate::shape(&parts.headers)?;
    match (verb, target.subresource.as_deref()) {
        ("get", Some("log")) => logs::answer(api, &target, &query).await,
        ("get", Some("scale")) => {
            known_subresource(&target)?;
            let object = read::object(&api.store, &target)?;
            Ok(respond::json(200, &scale::of(&target, &object)))
        }
        ("get", sub) => {
            if sub.is_some() {
                known_subresource(&target)?;
            }
            let object = read::object(&api.store, &target)?;
            Ok(respond::json(200, &read::present(&target, &object, shape, &query)?))
        }
        ("list", None) => {
            let list = read::list(&api.store, &target, &query, shape)?;
            Ok(respond::json_bytes(200, list))
        }
        ("watch", None) => watch(api, target, query, shape),
        ("create", Some("token")) => {
            known_subresource(&target)?;
            let value = body::decode(&bytes, content_type)?;
            Ok(respond::json(201, &reviews::token_request(api, &target, value)?))
        }
        ("create", Some("binding")) => {
            known_subresource(&target)?;
            let object = read::object(&api.store, &target)?;
            write::bind(&target, &object).map(|value| respond::json(201, &value))
        }
        ("update", _) => {
            known_subresource(&target)?;
            let value = body::decode(&bytes, content_type)?;
            let (api, caller) = (api.clone(), caller.clone());
            written(target, query, shape, move |target, query| {
                write::update(&api, &caller, target, query, value)
            })
            .await
        }
        ("patch", _) => {
            known_subresource(&target)?;
            let kind = PatchKind::of(content_type, &target)?;
            let value = body::decode(&bytes, content_type)?;
            let (api, caller) = (api.clone(), caller.clone());
            written(target, query, shape, move |target, query| {
                write::patch(&api, &caller, target, query, kind, &value)
            })
            .await
        }
        ("delete", None) => {
            let options = delete_options(&bytes, content_type, &query)?;
            let api = api.clone();
            let answer = blocking(move || delete::delete(&api, &target, &options)).await?;
            Ok(respond::json(200, &answer))
        }
        ("deletecollection", None) => {
            let options = delete_options(&bytes, content_type, &query)?;
            if target.resource.is("", "namespaces") {
                return Err(ApiError::method_not_allowed());
            }
            let api = api.clone();
            let answer = blocking(move || delete::delete_collection(&api, &target, &query, &options)).await?;
            Ok(respond::json(200, &answer))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn delete_options(bytes: &[u8], content_type: &str, query: &Query) -> ApiResult<delete::DeleteOptions> {
    let value = if bytes.is_empty() { None } else { Some(body::decode(bytes, content_type)?) };
    delete::DeleteOptions::parse(query, value.as_ref())
}

/// 404 for a subresource that the resource does not have.
fn known_subresource(target: &Target) -> ApiResult<()> {
    match target.subresource.as_deref() {
        Some(sub) if target.resource.subresources.iter().all(|s| s.name != sub) => {
            Err(ApiError::path_not_found())
        }
        _ if target.resource.shape == resources::Shape::Review => Err(ApiError::method_not_allowed()),
        _ => Ok(()),
    }
}

async fn create(
    api: &Arc<Api>,
    caller: &Caller,
    target: Target,
    query: Query,
    parts: &Parts,
    value: Value,
) -> ApiResult<Response<Body>> {
    if target.resource.shape == resources::Shape::Review {
        let mut value = value;
        write::check_kind(&target, &mut value)?;
        return Ok(respond::json(201, &reviews::answer(api, caller, &target, value)?));
    }
    if target.resource.namespaced && target.namespace.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    let shape = negotiate::shape(&parts.headers)?;
    let (api, caller) = (api.clone(), caller.clone());
    written(target, query, shape, move |target, query| write::create(&api, &caller, target, query, value))
        .await
}

/// Runs a write where it may block on the disk, and answers the object.
async fn written(
    target: Target,
    query: Query,
    shape: Shape,
    work: impl FnOnce(&Target, &Query) -> ApiResult<Written> + Send + 'static,
) -> ApiResult<Response<Body>> {
    if let Some(manager) = query.text("fieldManager")
        && !write::is_manager(manager)
    {
        return Err(ApiError::bad_request("fieldManager: Invalid value: at most 128 printable characters"));
    }
    let (written, target, query) = blocking(move || {
        let written = work(&target, &query)?;
        Ok((written, target, query))
    })
    .await?;
    let scaled = target.subresource.as_deref() == Some("scale");
    let value = if scaled { written.object } else { read::present(&target, &written.object, shape, &query)? };
    let mut response = respond::json(written.code, &value);
    respond::warn(&mut response, &written.warnings);
    Ok(response)
}

/// Runs blocking work apart from the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
}

fn watch(api: &Arc<Api>, target: Target, query: Query, shape: Shape) -> ApiResult<Response<Body>> {
    let watch = Watch::new(api.store.clone(), target, query, shape)?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(watch.run(sender));
    let frames = ReceiverStream::new(receiver).map(|bytes| Ok(Frame::data(bytes)));
    let mut response = respond::json_bytes(200, Bytes::new());
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(response)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}
