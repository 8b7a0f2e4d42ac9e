//! The application's own metrics, for the merged page (reference cli-and-telemetry 3.4, "Prometheus wiring").

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_ENCODING, HOST};
use http::{HeaderMap, HeaderValue};
use maille_core::ports;
use serde::Deserialize;

use super::client::get;

/// Longest page that is passed on.
const MAX_PAGE: usize = 4 << 20;
/// Pages of one application, each of which takes a connection and room.
const MAX_TARGETS: usize = 16;
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
        if wanted.len() > MAX_TARGETS {
            return Err(format!("{} targets are more than {MAX_TARGETS}", wanted.len()));
        }
        let mut targets = Vec::with_capacity(wanted.len());
        for (port, path) in wanted {
            let number: u16 = port.parse().map_err(|_| format!("'{port}' is no port"))?;
            if ports::is_sidecars(number) {
                return Err(format!("port {number} is the proxy's own"));
            }
            let path = if path.is_empty() { "/metrics".to_owned() } else { path };
            targets.push((number, path));
        }
        Ok(Some(Self { targets }))
    }

    /// Every page, in the order of their targets, and how many could not be had. All are asked at the same time: together
    /// they take no longer than the slowest, which takes no longer than a scraper waits.
    pub(crate) async fn fetch(&self) -> (Vec<Bytes>, u64) {
        let fetches = self.targets.iter().map(|(port, path)| fetch(*port, path));
        let (pages, failures): (Vec<_>, Vec<_>) =
            futures::future::join_all(fetches).await.into_iter().partition(Option::is_some);
        (pages.into_iter().flatten().collect(), failures.len() as u64)
    }
}

/// One page, if the application has one that can be joined with others.
async fn fetch(port: u16, path: &str) -> Option<Bytes> {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    // The pages are joined, so all must be of one format.
    headers.insert(ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4"));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let fetched = tokio::time::timeout(TIMEOUT, get(address, false, &path, &headers, MAX_PAGE)).await;
    let reply = fetched.ok()?.ok()?;
    let is_plain = reply.headers.get(CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
    // One line that cannot be read, and the scraper throws everything away, the proxy's own metrics included.
    (reply.status.is_success() && is_plain && is_page(&reply.body)).then_some(reply.body)
}

/// Whether it looks like metrics in text to its end: a page that was cut at the bound may not.
fn is_page(body: &[u8]) -> bool {
    let starts_line = |byte: &u8| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b':' | b'#' | b'{');
    body.len() < MAX_PAGE
        && std::str::from_utf8(body).is_ok()
        && body.split(|byte| *byte == b'\n').all(|line| line.trim_ascii().first().is_none_or(starts_line))
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

    #[test]
    fn only_what_a_scraper_can_read_is_joined() {
        for good in ["", "a 1\n", "# HELP a b\n# TYPE a counter\na{b=\"c\"} 1 2\n\n# EOF\n", "  :a_b 1"] {
            assert!(is_page(good.as_bytes()), "{good}");
        }
        for bad in [&b"<html>\na 1\n"[..], b"a 1\n{\"json\": 1}\n9 lives\n", b"a\xff 1\n", b"\x1f\x8b\x08"] {
            assert!(!is_page(bad), "{}", String::from_utf8_lossy(bad));
        }
        assert!(!is_page(&vec![b'a'; MAX_PAGE]));
    }

    async fn app(answer: &'static [u8]) -> u16 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 2048]).await;
                let _ = stream.write_all(answer).await;
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
            }
        });
        port
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_fails_does_not_take_the_others_along() {
        let good = app(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na 1\n").await;
        let silent = app(b"").await;
        let html = app(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>").await;
        let packed =
            app(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nb 1\n").await;
        let broken = app(b"HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\nc 1\n").await;
        let targets = [silent, html, good, packed, broken].map(|port| (port, "/metrics".to_owned()));
        let (pages, failures) = AppMetrics { targets: targets.to_vec() }.fetch().await;
        assert_eq!((pages, failures), (vec![Bytes::from_static(b"a 1\n")], 4));
    }
}
