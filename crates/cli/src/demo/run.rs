//! Starts the shop in a running mesh and watches it until the table can be printed.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::Value;

use super::{EXPECTATIONS, MANIFESTS, Row, certificates, compare};
use crate::client::{Api, ApiError};
use crate::commands::{apply, flows};
use crate::progress::Progress;

/// How long the shop may take to become ready, and then to have tried every pair.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(90);
const FLOWS_LIMIT: Duration = Duration::from_secs(45);

/// Applies the shop's manifests, and before them what they mount.
pub(crate) async fn apply_shop(api: &Api) -> Result<()> {
    let sources: Vec<(String, String)> =
        MANIFESTS.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let documents = apply::check(&sources).map_err(|problem| anyhow!("{problem}"))?;
    certificates::ensure(api).await?;
    apply::apply_all(api, &documents, "default", false).await.map_err(|problem| anyhow!("{problem}"))?;
    Ok(())
}

/// Waits until every Deployment has all its replicas and every Pod is ready. Answers what is still not ready when
/// the time is over; an API that is away meanwhile is asked again.
pub(crate) async fn wait_until_ready(api: &Api, progress: &mut Progress) -> Result<Vec<String>> {
    let started = Instant::now();
    loop {
        let readiness = match readiness(api).await {
            Ok(readiness) => readiness,
            Err(error) if started.elapsed() > READY_LIMIT => return Err(error.into()),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Readiness { workloads, waiting } = readiness;
        if waiting.is_empty() {
            let are = if workloads == 1 { "workload is" } else { "workloads are" };
            progress.done(&format!("{workloads} {are} ready"));
            return Ok(waiting);
        }
        if started.elapsed() > READY_LIMIT {
            return Ok(waiting);
        }
        progress.show(&format!(
            "{} of {workloads} workloads are ready; waiting for {}",
            workloads.saturating_sub(waiting.len()),
            waiting.join(", ")
        ));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Readiness {
    workloads: usize,
    waiting: Vec<String>,
}

async fn readiness(api: &Api) -> Result<Readiness, ApiError> {
    let deployments = api.get("/apis/apps/v1/deployments").await?;
    let pods = api.get("/api/v1/pods").await?;
    let items = |list: &Value| list["items"].as_array().cloned().unwrap_or_default();
    Ok(judge(&items(&deployments), &items(&pods)))
}

/// The Pods are asked too: after a restart a Deployment's status is that of the run before until its controller has
/// looked again.
fn judge(deployments: &[Value], pods: &[Value]) -> Readiness {
    let is_bare = |pod: &&Value| pod["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty);
    let mut waiting: Vec<String> = deployments.iter().filter(|d| !is_complete(d)).map(label).collect();
    let unready: Vec<&Value> = pods.iter().filter(|pod| is_awaited(pod)).collect();
    if waiting.is_empty() {
        waiting.extend(unready.into_iter().map(label));
    } else {
        waiting.extend(unready.into_iter().filter(is_bare).map(label));
    }
    Readiness { workloads: deployments.len() + pods.iter().filter(is_bare).count(), waiting }
}

/// Whether a Pod should become ready and is not.
fn is_awaited(pod: &Value) -> bool {
    let over = pod["status"]["phase"] == "Succeeded" || !pod["metadata"]["deletionTimestamp"].is_null();
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
    !over && !ready
}

fn is_complete(deployment: &Value) -> bool {
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    let status = &deployment["status"];
    status["availableReplicas"].as_i64().unwrap_or(0) >= wanted
        && status["updatedReplicas"].as_i64().unwrap_or(0) >= wanted
        && status["observedGeneration"] == deployment["metadata"]["generation"]
}

fn label(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

/// Waits until every pair has been seen, and answers the table's rows. Rows that are still not as
/// expected when the time is over are answered as they are.
pub(crate) async fn watch_pairs(api: &Api, progress: &mut Progress) -> Result<Vec<Row>> {
    let started = Instant::now();
    loop {
        let (rows, problem) = match flows::fetch(api).await {
            Ok(flows) => (compare(&flows, EXPECTATIONS), None),
            Err(error) => (compare(&[], EXPECTATIONS), Some(error)),
        };
        let seen = rows.iter().filter(|row| row.as_expected).count();
        if seen == rows.len() {
            progress.done(&format!("{seen} pairs have tried to talk"));
            return Ok(rows);
        }
        if started.elapsed() > FLOWS_LIMIT {
            return match problem {
                Some(error) => Err(error.into()),
                None => Ok(rows),
            };
        }
        progress.show(&format!("{seen} of {} pairs have tried to talk", rows.len()));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment() -> Value {
        json!({
            "metadata": {"namespace": "a", "name": "web", "generation": 2}, "spec": {"replicas": 1},
            "status": {"availableReplicas": 1, "updatedReplicas": 1, "observedGeneration": 2}
        })
    }

    fn pod(name: &str, owned: bool, ready: &str) -> Value {
        let owners = if owned { json!([{"name": "web-1"}]) } else { json!([]) };
        json!({
            "metadata": {"namespace": "a", "name": name, "ownerReferences": owners},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
        })
    }

    #[test]
    fn a_deployment_whose_status_is_older_than_its_pods_is_waited_for() {
        let found = judge(&[deployment()], &[pod("web-1-x", true, "False")]);
        assert_eq!(found, Readiness { workloads: 1, waiting: vec!["a/web-1-x".to_owned()] });
        assert!(judge(&[deployment()], &[pod("web-1-x", true, "True")]).waiting.is_empty());
    }

    #[test]
    fn a_pod_of_its_own_is_a_workload_until_it_has_succeeded() {
        let mut alone = pod("alone", false, "False");
        assert_eq!(
            judge(&[], &[alone.clone()]),
            Readiness { workloads: 1, waiting: vec!["a/alone".to_owned()] }
        );
        alone["status"]["phase"] = json!("Succeeded");
        assert!(judge(&[], &[alone]).waiting.is_empty());
    }
}
