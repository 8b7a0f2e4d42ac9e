//! Prometheus' files in `deploy/prometheus/`, judged by the real promtool.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/prometheus")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).expect(name)
}

fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&read(name)).expect(name)
}

/// What promtool says in a folder, and whether it is content; `None` if there is no promtool.
fn promtool(within: &Path, arguments: &[&str]) -> Option<(bool, String)> {
    match Command::new("promtool").args(arguments).current_dir(within).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
        }
        Err(error) => {
            eprintln!("SKIPPED (needs promtool, Debian package prometheus): {error}");
            None
        }
    }
}

#[test]
fn promtool_takes_the_standalone_configuration() {
    let Some((fine, said)) = promtool(&folder(), &["check", "config", "prometheus.yml"]) else { return };
    assert!(fine && said.contains("rule files found"), "{said}");
}

/// Pods say for themselves that they are to be read, and what.
#[test]
fn no_target_can_fill_prometheus() {
    for name in ["prometheus.yml", "prometheus-kubernetes.yml"] {
        let jobs = yaml(name)["scrape_configs"].as_array().cloned().expect("jobs");
        assert!(!jobs.is_empty(), "{name}");
        for job in jobs {
            assert_eq!(job["body_size_limit"], "16MB", "{name}: {}", job["job_name"]);
            for (limit, value) in [
                ("sample_limit", 50_000),
                ("label_limit", 64),
                ("label_value_length_limit", 1024),
                ("target_limit", 2000),
            ] {
                assert_eq!(job[limit], value, "{name}: {limit} of {}", job["job_name"]);
            }
        }
    }
}

#[test]
fn every_rule_fires_when_it_should_and_only_then() {
    let Some((fine, said)) = promtool(&folder(), &["test", "rules", "rules_test.yml"]) else { return };
    assert!(fine, "{said}");
}

fn rules() -> Vec<Value> {
    let groups = yaml("rules.yml")["groups"].as_array().cloned().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().cloned().expect("rules")).collect()
}

/// A rule that no test names could be taken away and nobody would notice; one that says not what to do helps nobody.
#[test]
fn every_rule_is_tested_and_every_alert_says_what_to_do() {
    let tests = read("rules_test.yml");
    let mut alerts = Vec::new();
    for rule in rules() {
        if let Some(record) = rule["record"].as_str() {
            assert!(tests.contains(&format!("{record}{{")), "{record} has no test");
            continue;
        }
        let alert = rule["alert"].as_str().expect("a name").to_owned();
        assert!(tests.contains(&format!("ALERTS{{alertname=\"{alert}\"")), "{alert} has no test");
        for annotation in ["summary", "action"] {
            let text = rule["annotations"][annotation].as_str().unwrap_or_default();
            assert!(text.len() > 20, "{alert} has no {annotation}");
        }
        assert!(rule["labels"]["severity"].is_string(), "{alert} has no severity");
        alerts.push(alert);
    }
    for wanted in [
        "MaillePolicyRefusals",
        "MaillePlaintextRefused",
        "MaillePlaintextInStrictNamespace",
        "MailleTlsRefusals",
        "MailleLeafCertificateExpiring",
        "MailleRootCertificateExpiring",
        "MailleCertificateRenewalFailing",
        "MailleClockSkew",
        "MailleRotationWaits",
        "MailleAuthorityProblem",
        "MailleProxyWithoutControlPlane",
    ] {
        assert!(alerts.iter().any(|alert| alert == wanted), "{wanted} is gone");
    }
}

/// Every metric of ours that a rule reads must be one that is written somewhere: a renamed metric silences its alert.
#[test]
fn rules_read_only_metrics_that_exist() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sources: String = ["telemetry/src/prometheus.rs", "control/src/metrics.rs"]
        .iter()
        .map(|file| std::fs::read_to_string(crates.join(file)).expect(file))
        .collect();
    let mut read = 0;
    for rule in rules() {
        let expression = rule["expr"].as_str().expect("an expression");
        for word in expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let ours = ["istio_", "maille_", "citadel_server_", "pilot_", "istiod_"];
            if !ours.iter().any(|prefix| word.starts_with(prefix)) {
                continue;
            }
            // Names of two kinds of certificates are put together.
            let known = word.replace("root_cert", "{what}").replace("cert_chain", "{what}");
            assert!(sources.contains(word) || sources.contains(&known), "no metric {word}");
            read += 1;
        }
    }
    assert!(read > 10);
}

/// Debian's promtool knows no Kubernetes: the discovery itself is replaced by what it would find, and all behind it is
/// the file's own.
#[test]
fn the_configuration_for_clusters_finds_the_same_targets_and_labels() {
    let text = read("prometheus-kubernetes.yml");
    let discovery = "    kubernetes_sd_configs:\n      - role: pod\n";
    assert_eq!(text.matches(discovery).count(), 1, "one discovery of Pods");
    let pod = |name: &str, ip: &str, more: &[(&str, &str)]| {
        let mut labels = vec![
            ("__meta_kubernetes_namespace", "production"),
            ("__meta_kubernetes_pod_name", name),
            ("__meta_kubernetes_pod_ip", ip),
            ("__meta_kubernetes_pod_phase", "Running"),
        ];
        labels.extend(more);
        let labels: String = labels.iter().map(|(k, v)| format!("          {k}: \"{v}\"\n")).collect();
        format!("      - targets: [\"{}:8080\"]\n        labels:\n{labels}", ip.replace(':', "-"))
    };
    let annotations = "__meta_kubernetes_pod_annotation_prometheus_io_";
    let keys = ["scrape", "port", "path"].map(|key| format!("{annotations}{key}"));
    let injected = [
        (keys[0].as_str(), "true"),
        (keys[1].as_str(), "15020"),
        (keys[2].as_str(), "/stats/prometheus"),
        ("__meta_kubernetes_pod_label_app", "cart"),
        ("__meta_kubernetes_pod_controller_kind", "ReplicaSet"),
        ("__meta_kubernetes_pod_controller_name", "cart-7d4b9c6f5"),
    ];
    let pods = [
        pod("cart-7d4b9c6f5-x2x9z", "10.0.0.5", &injected),
        pod("six", "fd00::7", &injected[..3]),
        pod("quiet", "10.0.0.6", &[]),
        pod("over", "10.0.0.7", &[(keys[0].as_str(), "true")]).replace("Running", "Succeeded"),
    ];
    let found = text.replace(discovery, &format!("    static_configs:\n{}", pods.concat()));
    let here = tempfile::tempdir().expect("a folder");
    std::fs::write(here.path().join("prometheus.yml"), found).expect("written");
    std::fs::write(here.path().join("rules.yml"), read("rules.yml")).expect("written");
    let Some((fine, said)) = promtool(here.path(), &["check", "config", "prometheus.yml"]) else { return };
    assert!(fine, "{said}");
    let Some((_, said)) = promtool(here.path(), &["check", "service-discovery", "prometheus.yml", "maille"])
    else {
        return;
    };
    let answer: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let mut kept: Vec<Value> =
        answer.as_array().expect("targets").iter().map(|t| t["labels"].clone()).collect();
    kept.retain(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty()));
    assert_eq!(kept.len(), 2, "{said}");
    let expected = [
        [
            ("__address__", "10.0.0.5:15020"),
            ("pod", "cart-7d4b9c6f5-x2x9z"),
            ("workload", "cart"),
            ("app", "cart"),
        ],
        [("__address__", "[fd00::7]:15020"), ("pod", "six"), ("workload", "six"), ("__scheme__", "http")],
    ];
    for wanted in expected {
        let labels =
            kept.iter().find(|l| l["pod"] == wanted[1].1).unwrap_or_else(|| panic!("{wanted:?}: {said}"));
        for (label, value) in wanted {
            assert_eq!(labels[label], value, "{label} in {labels}");
        }
        assert_eq!(labels["namespace"], "production");
        assert_eq!(labels["__metrics_path__"], "/stats/prometheus");
    }
}
