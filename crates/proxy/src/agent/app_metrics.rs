//! The application's own metrics, for the merged page (reference cli-and-telemetry 3.4, "Prometheus wiring").

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST};
use http::{HeaderMap, HeaderValue};
use maille_core::ports;
use serde::Deserialize;

use super::client::get;

/// Longest page that is passed on.
const MAX_PAGE: usize = 4 << 20;
/// A scraper gives up after 10 s; the own metrics must be out by then.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where the application's metrics are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppMetrics {
    targets: Vec<(u16, String)>,
}

/// `ISTIO_PROMETHEUS_ANNOTATIONS`, as Istio's injector writes it.
#[derive(Deserialize)]
struct Annotations {
    #[serde(default)]
    scrape: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    port: String,
    #[serde(default)]
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    port: String,
    #[serde(default)]
    path: String,
}

impl AppMetrics {
    /// Reads the annotations; `None` if the application does not want to be scraped.
    pub(crate) fn parse(json: &str) -> Result<Option<Self>, String> {
        let annotations: Annotations = serde_json::from_str(json).map_err(|e| e.to_string())?;
        if annotations.scrape != "true" {
            return Ok(None);
        }
        let mut wanted: Vec<_> = annotations.targets.into_iter().map(|t| (t.port, t.path)).collect();
        if wanted.is_empty() {
            let port = if annotations.port.is_empty() { "80".to_owned() } else { annotations.port };
            wanted.push((port, annotations.path));
        }
        let mut targets = Vec::with_capacity(wanted.len());
        for (port, path) in wanted {
            let number: u16 = port.parse().map_err(|_| format!("'{port}' is no port"))?;
            if is_own(number) {
                return Err(format!("port {number} is the proxy's own"));
            }
            let path = if path.is_empty() { "/metrics".to_owned() } else { path };
            targets.push((number, path));
        }
        Ok(Some(Self { targets }))
    }

    /// Every page, one after the other, and how many could not be had.
    pub(crate) async fn fetch(&self) -> (Vec<Bytes>, u64) {
        let mut pages = Vec::with_capacity(self.targets.len());
        let mut failures = 0;
        for (port, path) in &self.targets {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("localhost"));
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
            // The pages are joined, so all must be of one format.
            headers.insert(ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4"));
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            let path = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
            let fetched = tokio::time::timeout(TIMEOUT, get(address, false, &path, &headers, MAX_PAGE)).await;
            match fetched {
                Ok(Ok(reply)) if reply.status.is_success() => pages.push(reply.body),
                _ => failures += 1,
            }
        }
        (pages, failures)
    }
}

/// Ports that are never scraped as an application's (reference cli-and-telemetry 3.4).
fn is_own(port: u16) -> bool {
    /// Istio's control-plane debug port of the agent; nothing listens there, but it is reserved.
    const DEBUG: u16 = 15004;
    [
        ports::ADMIN,
        ports::OUTBOUND,
        DEBUG,
        ports::INBOUND,
        ports::HBONE,
        ports::STATUS,
        ports::READINESS,
        ports::DNS,
        ports::METRICS,
    ]
    .contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_become_targets() {
        let parse = |json| AppMetrics::parse(json).map(|m| m.map(|m| m.targets));
        assert_eq!(parse(r#"{"scrape":"false","port":"x"}"#), Ok(None));
        assert_eq!(parse(r#"{"scrape":"true"}"#), Ok(Some(vec![(80, "/metrics".to_owned())])));
        assert_eq!(
            parse(r#"{"scrape":"true","targets":[{"port":"8080"},{"port":"9090","path":"/m"}]}"#),
            Ok(Some(vec![(8080, "/metrics".to_owned()), (9090, "/m".to_owned())]))
        );
        assert!(parse(r#"{"scrape":"true","port":"15090"}"#).is_err());
        assert!(parse(r#"{"scrape":"true","port":"web"}"#).is_err());
    }
}
