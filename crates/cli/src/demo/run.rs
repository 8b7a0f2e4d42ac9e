//! Starts the shop in a running mesh and watches it until the table can be printed.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::{EXPECTATIONS, MANIFESTS, Row, compare};
use crate::client::Api;
use crate::commands::{apply, flows};
use crate::progress::Progress;

/// How long the shop may take to become ready, and then to have tried every pair.
const READY_LIMIT: Duration = Duration::from_secs(90);
const FLOWS_LIMIT: Duration = Duration::from_secs(45);

/// Applies the shop's manifests.
pub(crate) async fn apply_shop(api: &Api) -> Result<()> {
    let sources: Vec<(String, String)> =
        MANIFESTS.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let documents = apply::check(&sources).map_err(|problem| anyhow!("{problem}"))?;
    apply::apply_all(api, &documents, "default", false).await.map_err(|problem| anyhow!("{problem}"))?;
    Ok(())
}

/// Waits until every Deployment of the mesh has all its replicas.
pub(crate) async fn wait_until_ready(api: &Api, progress: &mut Progress) -> Result<()> {
    let started = Instant::now();
    loop {
        let list = api.get("/apis/apps/v1/deployments").await?;
        let deployments = list["items"].as_array().cloned().unwrap_or_default();
        let waiting: Vec<String> = deployments.iter().filter(|d| !is_complete(d)).map(label).collect();
        if waiting.is_empty() {
            progress.done(&format!("{} workloads are ready", deployments.len()));
            return Ok(());
        }
        progress.show(&format!(
            "{} of {} workloads are ready; waiting for {}",
            deployments.len() - waiting.len(),
            deployments.len(),
            waiting.join(", ")
        ));
        if started.elapsed() > READY_LIMIT {
            bail!(
                "not ready within {} s: {}; see `maille get pods -A`",
                READY_LIMIT.as_secs(),
                waiting.join(", ")
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn is_complete(deployment: &Value) -> bool {
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    let status = &deployment["status"];
    status["availableReplicas"].as_i64().unwrap_or(0) >= wanted
        && status["updatedReplicas"].as_i64().unwrap_or(0) >= wanted
        && status["observedGeneration"] == deployment["metadata"]["generation"]
}

fn label(deployment: &Value) -> String {
    let text = |field: &str| deployment["metadata"][field].as_str().unwrap_or_default().to_owned();
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
