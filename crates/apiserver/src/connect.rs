//! `pods/x/proxy` and `services/x/proxy`: HTTP through the API to a Pod.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::api::Api;
use crate::handler::Incoming;
use crate::json;
use crate::request::Target;
use crate::respond::Body;
use crate::status::{ApiError, ApiResult};
use crate::store::State;
use crate::verbs::read;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers that belong to one connection (RFC 9110 section 7.6.1).
const HOP_BY_HOP: &[&str] =
    &["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// `[scheme:]name[:port]`.
fn parse_name(text: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        _ => ("", text, ""),
    }
}

/// Sends the request on, and its answer back.
pub(crate) async fn proxy(
    api: &Arc<Api>,
    target: Target,
    parts: &Parts,
    body: Incoming,
) -> ApiResult<Response<Body>> {
    let full = target.name.clone().unwrap_or_default();
    let (scheme, name, port) = parse_name(&full);
    if !matches!(scheme, "" | "http") {
        return Err(ApiError::bad_request(format!("invalid scheme '{scheme}': only http is proxied")));
    }
    let one = Target { name: Some(name.to_owned()), ..target.clone() };
    let object = read::object(&api.store, &one)?;
    let address = if target.resource.is("", "pods") {
        pod_address(&object, port)
    } else {
        api.store.read(|state| service_address(state, &object, port))
    }
    .ok_or_else(|| {
        ApiError::unavailable(format!("no endpoints available for {} \"{full}\"", target.resource.singular))
    })?;
    let path = if target.rest.is_empty() { "/" } else { &target.rest };
    let uri: Uri = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
    .parse()
    .map_err(|_| ApiError::bad_request("the proxied path is not valid"))?;
    let failed = |e: &dyn std::fmt::Display| {
        ApiError::unavailable(format!(
            "error trying to reach {} {full} at {address}: {e}",
            target.resource.singular
        ))
    };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| failed(&"the connection timed out"))?
        .map_err(|e| failed(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    for (key, value) in &parts.headers {
        // The caller's credentials are for this API alone.
        if key != AUTHORIZATION && key != HOST && !HOP_BY_HOP.contains(&key.as_str()) {
            headers.append(key.clone(), value.clone());
        }
    }
    if let Ok(host) = HeaderValue::from_str(&address.to_string()) {
        headers.insert(HOST, host);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let (mut head, body) = answer.into_parts();
    head.version = http::Version::default();
    for name in HOP_BY_HOP {
        head.headers.remove(HeaderName::from_static(name));
    }
    Ok(Response::from_parts(head, body.map_err(std::io::Error::other).boxed_unsync()))
}

fn pod_address(pod: &Value, port: &str) -> Option<SocketAddr> {
    let ip: IpAddr = json::text(pod, &["status", "podIP"]).parse().ok()?;
    let declared =
        || json::items(pod, &["spec", "containers"]).iter().flat_map(|c| json::items(c, &["ports"]));
    let number = match port {
        "" => declared().next().and_then(|p| p.get("containerPort")?.as_u64()).unwrap_or(80),
        text => match text.parse() {
            Ok(number) => number,
            Err(_) => {
                declared().find(|p| json::text(p, &["name"]) == text)?.get("containerPort")?.as_u64()?
            }
        },
    };
    Some(SocketAddr::new(ip, u16::try_from(number).ok()?))
}

/// A ready endpoint of a Service's port (by name or number; may be left out when there is one only).
fn service_address(state: &State, service: &Value, port: &str) -> Option<SocketAddr> {
    let ports = json::items(service, &["spec", "ports"]);
    let chosen = match port {
        "" => ports.first(),
        text => ports.iter().find(|p| {
            json::text(p, &["name"]) == text || p.get("port").and_then(Value::as_u64) == text.parse().ok()
        }),
    }?;
    let name = json::text(chosen, &["name"]);
    let mut found = Vec::new();
    for slice in state.list("endpointslices.discovery.k8s.io", Some(json::namespace(service))) {
        if json::text(slice, &["metadata", "labels", "kubernetes.io/service-name"]) != json::name(service) {
            continue;
        }
        let number = json::items(slice, &["ports"])
            .iter()
            .find(|p| json::text(p, &["name"]) == name)
            .and_then(|p| u16::try_from(p.get("port")?.as_u64()?).ok());
        let Some(number) = number else { continue };
        for endpoint in json::items(slice, &["endpoints"]) {
            let ready = json::at(endpoint, &["conditions", "ready"]).and_then(Value::as_bool).unwrap_or(true);
            let ip = json::items(endpoint, &["addresses"])
                .first()
                .and_then(|a| a.as_str()?.parse::<IpAddr>().ok());
            if let (true, Some(ip)) = (ready, ip) {
                found.push(SocketAddr::new(ip, number));
            }
        }
    }
    if found.is_empty() {
        return None;
    }
    found.get(rand::random_range(0..found.len())).copied()
}
