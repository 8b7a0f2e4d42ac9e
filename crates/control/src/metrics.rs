//! What the control plane counts. Names are Istio's where it counts the same (reference cli-and-telemetry 3.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::authority::Phase;
use crate::exposition::{Kind, family, sample};
use crate::process;

/// One number that anyone may add to.
#[derive(Debug, Default)]
pub(crate) struct Number(AtomicU64);

impl Number {
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One number per type of facts.
#[derive(Debug, Default)]
pub(crate) struct ByType(Mutex<BTreeMap<&'static str, u64>>);

impl ByType {
    /// Only types of facts that exist are told apart: a peer may ask for anything.
    pub(crate) fn inc(&self, type_url: &str) {
        const TYPES: [&str; 6] = [
            "Authorization",
            "Destination",
            "Inbound",
            "MeshSettings",
            "RequestAuthentication",
            "TrustBundle",
        ];
        let name = crate::proxies::short(type_url);
        let name = TYPES.into_iter().find(|known| *known == name).unwrap_or("other");
        *self.0.lock().entry(name).or_default() += 1;
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        family(text, name, Kind::Counter, help);
        for (of_type, count) in self.0.lock().iter() {
            sample(text, name, &[("type", of_type)], count);
        }
    }
}

macro_rules! metrics {
    ($($field:ident, $kind:ident, $name:literal, $help:literal;)*) => {
        /// All numbers of a control plane.
        #[derive(Debug)]
        pub struct Metrics {
            started: SystemTime,
            pub(crate) pushes: ByType,
            pub(crate) rejects: ByType,
            $(pub(crate) $field: Number,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                Self {
                    started: SystemTime::now(),
                    pushes: ByType::default(),
                    rejects: ByType::default(),
                    $($field: Number::default(),)*
                }
            }
        }

        impl Metrics {
            fn render_numbers(&self, text: &mut String) {
                $(
                    family(text, $name, Kind::$kind, $help);
                    sample(text, $name, &[], self.$field.get());
                )*
            }
        }
    };
}

metrics! {
    woken, Counter, "maille_subscribers_woken_total", "Times a change concerned a proxy.";
    refused_subscriptions, Counter, "maille_refused_subscriptions_total", "Times a proxy asked for what it may not see.";
    csrs, Counter, "citadel_server_csr_count", "Certificate requests received.";
    issued, Counter, "citadel_server_success_cert_issuance_count", "Certificates issued.";
    authentication_failures, Counter, "citadel_server_authentication_failure_count", "Certificate requests whose caller is not known.";
    csr_errors, Counter, "citadel_server_csr_parsing_err_count", "Certificate requests that could not be read.";
    sign_errors, Counter, "citadel_server_csr_sign_err_count", "Certificates that could not be signed.";
    rate_limited, Counter, "maille_ca_rate_limited_total", "Certificate requests refused as too many.";
    jwt_svids, Counter, "maille_ca_jwt_svids_issued_total", "JWT-SVIDs issued.";
    services, Gauge, "pilot_services", "Services known.";
    workloads, Gauge, "maille_workloads", "Pods known.";
    meshed, Gauge, "maille_meshed_workloads", "Pods known that have a sidecar.";
    flow_reports, Counter, "maille_flow_reports_total", "Flow reports received.";
    flows, Gauge, "maille_flows", "Flows remembered.";
    flows_forgotten, Counter, "maille_flows_forgotten_total", "Flows forgotten early because there were too many.";
    tls_refusals, Counter, "maille_tls_refusals_reported_total", "Connections that proxies reported as refused for their TLS or for want of it.";
    mesh_config_rejected, Gauge, "maille_mesh_config_rejected", "Whether the stored mesh configuration is not in force, or not in full.";
    mesh_configs_rejected, Counter, "maille_mesh_configs_rejected_total", "Mesh configurations seen that could not be put in force, or not in full.";
    key_sets, Gauge, "maille_key_sets", "Key sets that RequestAuthentications name by address.";
    key_sets_missing, Gauge, "maille_key_sets_missing", "Key sets among them that are not there, so that their tokens are refused.";
    handshake_failures, Counter, "maille_handshake_failures_total", "Connections to the discovery port that failed their TLS handshake.";
}

/// What is looked up when the page is asked for.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Connected proxies by the version they say they have.
    pub(crate) proxies: BTreeMap<String, u64>,
    /// Namespaces with sidecars, and the mode that holds in each as a whole; none for those who are not to know.
    pub(crate) modes: Option<Vec<(String, &'static str)>>,
    /// When the first root ends, and when the certificate that signs does.
    pub(crate) root_ends: Option<SystemTime>,
    pub(crate) chain_ends: Option<SystemTime>,
    /// How far a rotation of the authority is, how many proxies it waits for, and how many problems there are.
    pub(crate) rotation: Option<(Phase, u64, u64)>,
}

impl Metrics {
    /// All of them in Prometheus' text form, version 0.0.4.
    pub(crate) fn render(&self, looked: &Looked, now: SystemTime) -> String {
        let mut text = String::with_capacity(16 << 10);
        let version = env!("CARGO_PKG_VERSION");
        family(&mut text, "istio_build", Kind::Gauge, "What runs here.");
        sample(&mut text, "istio_build", &[("component", "pilot"), ("tag", version)], 1);
        family(&mut text, "pilot_info", Kind::Gauge, "Version of the control plane.");
        sample(&mut text, "pilot_info", &[("version", version)], 1);
        let up = now.duration_since(self.started).unwrap_or_default().as_secs();
        family(&mut text, "istiod_uptime_seconds", Kind::Gauge, "Time since the control plane started.");
        sample(&mut text, "istiod_uptime_seconds", &[], up);
        family(&mut text, "pilot_xds", Kind::Gauge, "Proxies connected.");
        for (version, count) in &looked.proxies {
            sample(&mut text, "pilot_xds", &[("version", version)], count);
        }
        self.pushes.write(&mut text, "pilot_xds_pushes", "Responses sent to proxies.");
        self.rejects.write(&mut text, "pilot_total_xds_rejects", "Responses that a proxy rejected.");
        for (what, ends) in [("root_cert", looked.root_ends), ("cert_chain", looked.chain_ends)] {
            let Some(ends) = ends else { continue };
            let at = |time: SystemTime| {
                i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
                    .unwrap_or(i64::MAX)
            };
            let what_it_is = if what == "root_cert" { "first of the roots" } else { "signing certificate" };
            let name = format!("citadel_server_{what}_expiry_timestamp");
            family(&mut text, &name, Kind::Gauge, &format!("When the {what_it_is} ends, Unix seconds."));
            sample(&mut text, &name, &[], at(ends));
            let name = format!("citadel_server_{what}_expiry_seconds");
            let help = format!("Seconds until the {what_it_is} ends; negative once it has.");
            family(&mut text, &name, Kind::Gauge, &help);
            sample(&mut text, &name, &[], at(ends).saturating_sub(at(now)));
        }
        if let Some((phase, waiting, problems)) = looked.rotation {
            let name = "maille_ca_rotation_phase";
            family(
                &mut text,
                name,
                Kind::Gauge,
                "Phase of the authority's rotation: 1 for the one it is at.",
            );
            for of in [Phase::Idle, Phase::Distributing, Phase::Signing, Phase::Withdrawing] {
                sample(&mut text, name, &[("phase", of.name())], u8::from(of == phase));
            }
            let name = "maille_ca_rotation_waiting_proxies";
            family(
                &mut text,
                name,
                Kind::Gauge,
                "Live proxies that the rotation of the authority waits for.",
            );
            sample(&mut text, name, &[], waiting);
            let name = "maille_ca_problems";
            family(&mut text, name, Kind::Gauge, "Problems of the authority that GET /ca names.");
            sample(&mut text, name, &[], problems);
        }
        if let Some(modes) = &looked.modes {
            // Labelled as proxies label what they count, so that the two can be joined.
            let name = "maille_namespace_mtls_mode";
            family(&mut text, name, Kind::Gauge, "Mode of mutual TLS that holds for a namespace as a whole.");
            for (namespace, mode) in modes {
                sample(&mut text, name, &[("destination_workload_namespace", namespace), ("mode", mode)], 1);
            }
        }
        self.render_numbers(&mut text);
        // Without a /proc there is nothing to say.
        if let Some(process) = process::look() {
            let _ = write!(text, "{process}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_prometheus_text_under_istios_names() {
        let metrics = Metrics::default();
        metrics.csrs.inc();
        metrics.pushes.inc("type.googleapis.com/maille.facts.v1.Inbound");
        metrics.pushes.inc("whatever");
        let now = SystemTime::now();
        let looked = Looked {
            proxies: [("0.1.0".to_owned(), 3)].into(),
            modes: Some(vec![("production".to_owned(), "STRICT")]),
            root_ends: Some(now - std::time::Duration::from_secs(10)),
            chain_ends: None,
            rotation: Some((Phase::Signing, 2, 0)),
        };
        let text = metrics.render(&looked, now);
        for expected in [
            "# TYPE citadel_server_csr_count counter\ncitadel_server_csr_count 1\n",
            "pilot_xds{version=\"0.1.0\"} 3\n",
            "pilot_xds_pushes{type=\"Inbound\"} 1\npilot_xds_pushes{type=\"other\"} 1\n",
            "citadel_server_root_cert_expiry_seconds -10\n",
            "maille_namespace_mtls_mode{destination_workload_namespace=\"production\",mode=\"STRICT\"} 1\n",
            "maille_ca_rotation_phase{phase=\"signing\"} 1\n",
            "maille_ca_rotation_phase{phase=\"idle\"} 0\n",
            "maille_ca_rotation_waiting_proxies 2\n",
            "# TYPE process_cpu_seconds_total counter\n",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert!(!text.contains("cert_chain"), "no authority yet: {text}");
    }
}
