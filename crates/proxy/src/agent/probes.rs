//! Probes of the application, asked by the kubelet of the proxy (reference mtls 7.6).
//!
//! The kubelet has no identity, so under STRICT it could not reach the application. Injection pointed its probes at
//! `/app-health/<container>/{readyz,livez,startupz}` here; this makes the original probe from inside the Pod.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::header::{CONNECTION, HOST, LOCATION, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use super::client::{dial, get};
use super::server::{Answer, text};

/// As the kubelet (reference mtls 7.6).
const MAX_REDIRECTS: usize = 10;
const MAX_BODY: usize = 10 << 10;

/// The status server's own limit for a connection comes first.
const HOOK_LIMIT: Duration = Duration::from_secs(300);

/// One original probe: Kubernetes' `Probe`, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpProbe>,
    grpc: Option<GrpcProbe>,
    #[serde(default)]
    timeout_seconds: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: Port,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct TcpProbe {
    port: Port,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct GrpcProbe {
    port: Port,
    #[serde(default)]
    service: Option<String>,
}

/// A number, or a number as text; names were resolved by injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "serde_json::Value")]
struct Port(u16);

impl TryFrom<serde_json::Value> for Port {
    type Error = String;

    fn try_from(value: serde_json::Value) -> Result<Self, String> {
        let number = match &value {
            serde_json::Value::String(text) => text.parse().ok(),
            other => other.as_u64().and_then(|n| u16::try_from(n).ok()),
        };
        number.filter(|n| *n != 0).map(Self).ok_or_else(|| format!("{value} is no port"))
    }
}

/// Reads `ISTIO_KUBE_APP_PROBERS`: request path to original probe.
pub(crate) fn parse(json: &str) -> Result<BTreeMap<String, Probe>, String> {
    let probes: BTreeMap<String, Probe> = serde_json::from_str(json).map_err(|e| e.to_string())?;
    for (path, probe) in &probes {
        let kinds = [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
        if kinds.iter().filter(|is_set| **is_set).count() != 1 {
            return Err(format!("{path}: exactly one of httpGet, tcpSocket and grpc must be set"));
        }
    }
    Ok(probes)
}

impl Probe {
    /// Makes the probe against `pod`, and answers as the application did.
    pub(crate) async fn ask(&self, pod: IpAddr, asked: &HeaderMap) -> Answer {
        self.ask_within(Duration::from_secs(u64::from(self.timeout_seconds.max(1))), pod, asked).await
    }

    /// Carries out a hook of the application: it takes its time, and only the Pod's grace period ends it.
    pub(crate) async fn carry_out(&self, pod: IpAddr, asked: &HeaderMap) -> Answer {
        self.ask_within(HOOK_LIMIT, pod, asked).await
    }

    async fn ask_within(&self, limit: Duration, pod: IpAddr, asked: &HeaderMap) -> Answer {
        let made = tokio::time::timeout(limit, self.make(pod, asked)).await;
        match made.unwrap_or_else(|_| Err(format!("no answer within {limit:?}"))) {
            Ok((status, body)) => text(status, body),
            Err(reason) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n")),
        }
    }

    async fn make(&self, pod: IpAddr, asked: &HeaderMap) -> Result<(StatusCode, bytes::Bytes), String> {
        if let Some(probe) = &self.http_get {
            return probe.make(pod, asked).await;
        }
        if let Some(probe) = &self.tcp_socket {
            let address = SocketAddr::new(pod, probe.port.0);
            return match dial(address).await {
                Ok(_) => Ok((StatusCode::OK, bytes::Bytes::new())),
                Err(e) => Err(format!("{address}: {e}")),
            };
        }
        match &self.grpc {
            Some(probe) => probe.make(pod).await,
            None => Err("this probe asks for nothing".to_owned()),
        }
    }
}

impl HttpGet {
    async fn make(&self, pod: IpAddr, asked: &HeaderMap) -> Result<(StatusCode, bytes::Bytes), String> {
        let address = SocketAddr::new(pod, self.port.0);
        let tls = self.scheme.eq_ignore_ascii_case("https");
        let headers = self.headers(address, asked)?;
        let mut path = if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) };
        for _ in 0..=MAX_REDIRECTS {
            let reply = get(address, tls, &path, &headers, MAX_BODY).await?;
            if !reply.status.is_redirection() {
                return Ok((reply.status, reply.body));
            }
            match redirect(&reply.headers, address) {
                Some(next) => path = next,
                // Another host's health is not this application's: the kubelet counts it as success.
                None => return Ok((StatusCode::OK, bytes::Bytes::new())),
            }
        }
        Err(format!("more than {MAX_REDIRECTS} redirects"))
    }

    fn headers(&self, address: SocketAddr, asked: &HeaderMap) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        let host = HeaderValue::from_str(&address.to_string()).map_err(|e| e.to_string())?;
        headers.insert(HOST, host);
        if let Some(agent) = asked.get(USER_AGENT) {
            headers.insert(USER_AGENT, agent.clone());
        }
        for header in &self.http_headers {
            let name = HeaderName::try_from(&header.name).map_err(|e| format!("{}: {e}", header.name))?;
            let value = HeaderValue::try_from(&header.value).map_err(|e| format!("{}: {e}", header.name))?;
            // A Host replaces the default; the rest may repeat.
            if name == HOST {
                headers.insert(name, value);
            } else {
                headers.append(name, value);
            }
        }
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        Ok(headers)
    }
}

/// The path to go on with, if the redirect stays on this host.
fn redirect(headers: &HeaderMap, address: SocketAddr) -> Option<String> {
    let location: Uri = headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
    if let Some(host) = location.host() {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let same =
            host.parse() == Ok(address.ip()) && location.port_u16().is_none_or(|p| p == address.port());
        if !same {
            return None;
        }
    }
    Some(location.path_and_query().map_or("/", PathAndQuery::as_str).to_owned())
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; status 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl GrpcProbe {
    async fn make(&self, pod: IpAddr) -> Result<(StatusCode, bytes::Bytes), String> {
        let address = SocketAddr::new(pod, self.port.0);
        let dial = tower::service_fn(move |_: Uri| async move { dial(address).await.map(TokioIo::new) });
        let endpoint = Endpoint::try_from(format!("http://{address}")).map_err(|e| e.to_string())?;
        let channel = endpoint.connect_with_connector(dial).await.map_err(|e| format!("{address}: {e}"))?;
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|e| format!("{address}: {e}"))?;
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let request = HealthCheckRequest { service: self.service.clone().unwrap_or_default() };
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let answer = client
            .unary(tonic::Request::new(request), path, codec)
            .await
            .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
        match answer.into_inner().status {
            1 => Ok((StatusCode::OK, bytes::Bytes::new())),
            status => Err(format!("health status {status}, not SERVING")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_injection_writes() {
        let probes = parse(
            r#"{"/app-health/cart/readyz":{"httpGet":{"path":"/ready","port":8080,"scheme":"HTTP"},"timeoutSeconds":2},
                "/app-health/cart/livez":{"tcpSocket":{"port":"9090"}},
                "/app-health/cart/startupz":{"grpc":{"port":7000,"service":"x"}}}"#,
        )
        .expect("valid");
        assert_eq!(probes.len(), 3);
        for bad in
            [r#"{"/p":{}}"#, r#"{"/p":{"tcpSocket":{"port":"http"}}}"#, r#"{"/p":{"tcpSocket":{"port":0}}}"#]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn redirects_stay_on_the_host() {
        let address = SocketAddr::from(([10, 0, 0, 1], 8080));
        let to = |location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_str(location).expect("a header value"));
            redirect(&headers, address)
        };
        assert_eq!(to("/ready?x=1").as_deref(), Some("/ready?x=1"));
        assert_eq!(to("http://10.0.0.1:8080/a").as_deref(), Some("/a"));
        assert_eq!(to("http://10.0.0.1:8081/a"), None);
        assert_eq!(to("https://login.example/"), None);
    }
}
