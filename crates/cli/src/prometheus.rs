//! Prometheus in a standalone mesh: its manifests, which ship in `deploy/prometheus/` and in this binary.

use std::path::Path;

use anyhow::{Result, anyhow};

use crate::client::Api;
use crate::commands::apply;

/// Debian's program, which runs as a local process like every container.
pub(crate) const PROGRAM: &str = "prometheus";

const WORKLOAD: &str = include_str!("../../../deploy/prometheus/workload.yaml");
const CONFIG: &str = include_str!("../../../deploy/prometheus/prometheus.yml");
const RULES: &str = include_str!("../../../deploy/prometheus/rules.yml");

/// The query of Istio's guide that names the plaintext callers.
const PLAINTEXT: &str = "sum(istio_tcp_connections_opened_total{connection_security_policy=\"none\"}) \
                         by (source_workload, destination_workload)";

/// Applies Prometheus' manifests.
pub(crate) async fn apply_to(api: &Api) -> Result<()> {
    let documents = apply::check(&sources()).map_err(|problem| anyhow!("{problem}"))?;
    apply::apply_all(api, &documents, maille_core::ROOT_NAMESPACE, false)
        .await
        .map_err(|problem| anyhow!("{problem}"))?;
    Ok(())
}

/// File names and texts, in the order in which they apply.
fn sources() -> [(String, String); 2] {
    [
        ("deploy/prometheus (ConfigMap)".to_owned(), config_map()),
        ("deploy/prometheus/workload.yaml".to_owned(), WORKLOAD.to_owned()),
    ]
}

/// What `kubectl apply -k deploy/prometheus` generates.
fn config_map() -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: prometheus\n  namespace: {}\ndata:\n",
        maille_core::ROOT_NAMESPACE
    );
    for (name, content) in [("prometheus.yml", CONFIG), ("rules.yml", RULES)] {
        text.push_str(&format!("  {name}: |\n"));
        for line in content.lines() {
            let indent = if line.is_empty() { "" } else { "    " };
            text.push_str(&format!("{indent}{line}\n"));
        }
    }
    text
}

/// How to reach it and what to ask it; every line works when pasted.
pub(crate) fn next_steps(data_dir: &Path) -> String {
    let kubeconfig = data_dir.join("kubeconfig");
    let kubeconfig = kubeconfig.display();
    format!(
        "Prometheus runs, and answers within its own Pod only. Who still talks in plaintext:\n\
         \n\
         \x20 export KUBECONFIG={kubeconfig}\n\
         \x20 kubectl exec -it deploy/prometheus -n istio-system -- \\\n\
         \x20   promtool query instant http://localhost:9090 \\\n\
         \x20   '{PLAINTEXT}'\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_are_what_the_api_takes_and_hold_the_files_as_they_are() {
        let documents = apply::check(&sources()).unwrap_or_else(|problem| panic!("{problem}"));
        assert_eq!(documents.len(), 3);
        let map: serde_json::Value = serde_saphyr::from_str(&config_map()).expect("YAML");
        assert_eq!(map["data"]["prometheus.yml"], CONFIG);
        assert_eq!(map["data"]["rules.yml"], RULES);
    }

    /// It answers whoever asks, with what the control plane does not tell workloads.
    #[test]
    fn prometheus_is_reached_from_within_its_pod_only() {
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(WORKLOAD).expect("YAML");
        assert!(documents.iter().all(|document| document["kind"] != "Service"));
        let deployment = documents.iter().find(|document| document["kind"] == "Deployment").expect("there");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let arguments = container["args"].as_array().expect("arguments");
        let listens: Vec<&str> = arguments
            .iter()
            .filter_map(|argument| argument.as_str()?.strip_prefix("--web.listen-address="))
            .collect();
        assert_eq!(listens, ["127.0.0.1:9090"]);
        assert!(container["readinessProbe"]["exec"].is_object(), "a kubelet cannot dial it");
        assert!(!next_steps(Path::new("/data")).contains(".svc"));
    }
}
