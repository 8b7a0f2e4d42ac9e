//! What the control plane counts. Names are Istio's where it counts the same (reference cli-and-telemetry).

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// One number that anyone may add to.
#[derive(Debug, Default)]
pub(crate) struct Number(AtomicU64);

impl Number {
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

macro_rules! metrics {
    ($($field:ident, $kind:ident, $name:literal, $help:literal;)*) => {
        /// All numbers of a control plane.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(pub(crate) $field: Number,)*
        }

        impl Metrics {
            /// All of them in Prometheus' text form, version 0.0.4.
            pub fn render(&self) -> String {
                let mut text = String::new();
                $(write_one(&mut text, Kind::$kind, $name, $help, &self.$field);)*
                text
            }
        }
    };
}

metrics! {
    connected, Gauge, "pilot_xds", "Proxies connected.";
    woken, Counter, "maille_subscribers_woken_total", "Times a change concerned a proxy.";
    rejects, Counter, "pilot_total_xds_rejects", "Responses that a proxy rejected.";
    refused_subscriptions, Counter, "maille_refused_subscriptions_total", "Times a proxy asked for what it may not see.";
    csrs, Counter, "citadel_server_csr_count", "Certificate requests received.";
    issued, Counter, "citadel_server_success_cert_issuance_count", "Certificates issued.";
    authentication_failures, Counter, "citadel_server_authentication_failure_count", "Certificate requests whose caller is not known.";
    csr_errors, Counter, "citadel_server_csr_parsing_err_count", "Certificate requests that could not be read.";
    sign_errors, Counter, "citadel_server_csr_sign_err_count", "Certificates that could not be signed.";
    rate_limited, Counter, "maille_ca_rate_limited_total", "Certificate requests refused as too many.";
    root_expiry_s, Gauge, "citadel_server_root_cert_expiry_timestamp", "When the signing certificate ends, Unix seconds.";
    services, Gauge, "pilot_services", "Services known.";
    workloads, Gauge, "maille_workloads", "Pods known.";
    flow_reports, Counter, "maille_flow_reports_total", "Flow reports received.";
    flows, Gauge, "maille_flows", "Flows remembered.";
    flows_forgotten, Counter, "maille_flows_forgotten_total", "Flows forgotten early because there were too many.";
    handshake_failures, Counter, "maille_handshake_failures_total", "Connections to the discovery port that failed their TLS handshake.";
}

fn write_one(text: &mut String, kind: Kind, name: &str, help: &str, number: &Number) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    let value = number.0.load(Ordering::Relaxed);
    // Writing to a String does not fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_prometheus_text_under_istios_names() {
        let metrics = Metrics::default();
        metrics.csrs.inc();
        let text = metrics.render();
        let expected = "# TYPE citadel_server_csr_count counter\ncitadel_server_csr_count 1\n";
        assert!(text.contains(expected), "{text}");
    }
}
