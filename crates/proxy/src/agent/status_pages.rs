//! Readiness (15021), status (15020) and metrics (15090): what kubelets and scrapers ask.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use maille_telemetry::Registry;
use tokio::sync::mpsc;

use super::options::ProxyOptions;
use super::server::{Answer, Asked, Pages, metrics, text};
use super::status::Readiness;

/// What a caller on this host may ask of the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Take no new inbound connections, and go on running.
    Drain,
    /// End at once.
    Quit,
}

/// Header that says which process answers.
const LIFE: HeaderName = HeaderName::from_static("x-maille-life");

/// Pages of port 15021: readiness, and nothing else.
pub(crate) struct ReadinessPages {
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) life: Option<HeaderValue>,
}

/// Pages of port 15090: own metrics, and nothing else.
pub(crate) struct MetricsPages(pub(crate) Arc<Registry>);

/// Pages of port 15020.
pub(crate) struct StatusPages {
    pub(crate) options: Arc<ProxyOptions>,
    pub(crate) telemetry: Arc<Registry>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) scrapes: AtomicU64,
    pub(crate) scrape_failures: AtomicU64,
}

type Answering<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

impl Pages for ReadinessPages {
    fn answer(&self, asked: Asked) -> Answering<'_> {
        Box::pin(async move {
            match (asked.method == Method::GET, asked.path.as_str()) {
                (true, "/healthz/ready") => {
                    let mut answer = ready(&self.readiness);
                    if let Some(life) = &self.life {
                        answer.headers_mut().insert(LIFE, life.clone());
                    }
                    answer
                }
                _ => not_found("/healthz/ready"),
            }
        })
    }
}

impl Pages for MetricsPages {
    fn answer(&self, asked: Asked) -> Answering<'_> {
        Box::pin(async move {
            match (asked.method == Method::GET, asked.path.as_str()) {
                (true, "/stats/prometheus" | "/metrics") => metrics(self.0.render_prometheus()),
                _ => not_found("/stats/prometheus"),
            }
        })
    }
}

impl Pages for StatusPages {
    fn answer(&self, asked: Asked) -> Answering<'_> {
        Box::pin(async move {
            if let Some(probe) = self.options.probes.get(&asked.path) {
                return match asked.method {
                    Method::GET if asked.path.starts_with("/app-lifecycle/") => {
                        probe.carry_out(self.options.pod_ip, &asked.headers).await
                    }
                    Method::GET => probe.ask(self.options.pod_ip, &asked.headers).await,
                    _ => text(StatusCode::METHOD_NOT_ALLOWED, "probes are GET\n"),
                };
            }
            match (&asked.method, asked.path.as_str()) {
                (&Method::GET, "/healthz/ready") => ready(&self.readiness),
                (&Method::GET, "/stats/prometheus" | "/metrics") => self.merged_metrics().await,
                (_, "/quitquitquit") => self.order(&asked, Order::Quit),
                (_, "/drain") => self.order(&asked, Order::Drain),
                _ => not_found(
                    "/healthz/ready, /stats/prometheus, /app-health/<container>/…, /drain, /quitquitquit",
                ),
            }
        })
    }
}

impl StatusPages {
    async fn merged_metrics(&self) -> Answer {
        let mut page = self.telemetry.render_prometheus();
        let scrapes = self.scrapes.fetch_add(1, Ordering::Relaxed) + 1;
        page.push_str(&format!(
            "# HELP istio_agent_scrapes_total Times that this page was asked for.\n\
             # TYPE istio_agent_scrapes_total counter\n\
             istio_agent_scrapes_total {scrapes}\n"
        ));
        if let Some(app) = &self.options.app_metrics {
            let (pages, failures) = app.fetch().await;
            let failed = self.scrape_failures.fetch_add(failures, Ordering::Relaxed) + failures;
            page.push_str(&format!(
                "# HELP istio_agent_scrape_failures_total Pages of metrics that could not be had.\n\
                 # TYPE istio_agent_scrape_failures_total counter\n\
                 istio_agent_scrape_failures_total{{type=\"application\"}} {failed}\n"
            ));
            // The application's last: should it end in `# EOF`, nothing of ours is cut off.
            for body in pages {
                page.push_str(&String::from_utf8_lossy(&body));
                if !page.ends_with('\n') {
                    page.push('\n');
                }
            }
        }
        metrics(page)
    }

    fn order(&self, asked: &Asked, order: Order) -> Answer {
        if !asked.is_local() {
            return text(StatusCode::FORBIDDEN, "only from this host, addressed as localhost\n");
        }
        if asked.method != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n");
        }
        match self.orders.try_send(order) {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "another order is being carried out\n"),
        }
    }
}

fn ready(readiness: &Readiness) -> Answer {
    match readiness.missing(SystemTime::now()) {
        None => text(StatusCode::OK, "ready\n"),
        Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

/// Says what there is.
pub(crate) fn not_found(paths: &str) -> Answer {
    text(StatusCode::NOT_FOUND, format!("not found; there is {paths}\n"))
}
