//! The certificates that workloads have in use, as their proxies say.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;

use super::finding::{Finding, Level, Rule};
use crate::commands::ca::asking::Asked;
use crate::commands::ca::described::{of_millis, span};

/// Clocks that differ by less are fine: certificates begin two minutes before they are issued (reference mtls 5.4).
const SKEW_MS: u64 = 30_000;

pub(super) async fn findings(asked: &Asked, rule: &Rule) -> Result<Vec<Finding>> {
    let mut proxies = Vec::new();
    for pod in asked.control_planes().await? {
        let answer: Value = asked.monitoring(&pod, "/proxies").await?;
        proxies.extend(answer["proxies"].as_array().cloned().unwrap_or_default());
    }
    let mut findings: Vec<Finding> = proxies.iter().flat_map(|proxy| of_proxy(proxy, rule)).collect();
    // A proxy that is being replaced has two streams for a moment.
    let mut seen = BTreeSet::new();
    findings.retain(|finding| seen.insert((finding.what.clone(), finding.message.clone())));
    match asked.api.get("/api/v1/pods").await {
        Ok(pods) => findings.extend(not_connected(&pods, &proxies)),
        Err(error) => findings.push(Finding::new(Level::Note, "Pods", format!("not looked at: {error}"))),
    }
    Ok(findings)
}

fn of_proxy(proxy: &Value, rule: &Rule) -> Vec<Finding> {
    let name = proxy["uid"].as_str().unwrap_or_default();
    let (namespace, pod) = name.split_once('/').unwrap_or(("", name));
    let logs = format!("`maille logs {pod} -n {namespace} -c istio-proxy` says what fails");
    let what = format!("certificate of {name}");
    let svid = &proxy["svid"];
    let millis = |field: &str| svid[field].as_u64().and_then(of_millis);
    let (Some(not_before), Some(not_after)) = (millis("notBeforeMs"), millis("notAfterMs")) else {
        return vec![Finding::new(Level::Warning, what, "the proxy has not said what it uses").doing(logs)];
    };
    let mut finding = rule.by_itself(what.clone(), (not_before, not_after), logs.clone());
    let failed = svid["renewalError"].as_str().unwrap_or_default();
    if !failed.is_empty() {
        finding.level = finding.level.max(Level::Warning);
        let end = if finding.message.is_empty() { String::new() } else { format!("{}; ", finding.message) };
        finding.message = format!("{end}its renewal fails: {failed}");
        finding.action = Some(logs);
    }
    let mut findings = vec![finding];
    let ahead = svid["clockAheadMs"].as_i64().unwrap_or(0);
    if ahead.unsigned_abs() > SKEW_MS {
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        let by = span(ahead.unsigned_abs() / 1000);
        findings.push(
            Finding::new(
                Level::Warning,
                format!("clock of {name}"),
                format!("is {by} {direction} the authority's"),
            )
            .doing("set the clock of its node, or of the control plane's (chrony, systemd-timesyncd)"),
        );
    }
    findings
}

/// Pods whose sidecar runs and that no control plane hears of.
fn not_connected(pods: &Value, proxies: &[Value]) -> Vec<Finding> {
    let known: BTreeSet<&str> = proxies.iter().filter_map(|proxy| proxy["uid"].as_str()).collect();
    let mut findings = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"));
        let goes = !pod["metadata"]["deletionTimestamp"].is_null();
        if goes || text("/status/phase") != "Running" || !has_sidecar(pod) || known.contains(name.as_str()) {
            continue;
        }
        findings.push(
            Finding::new(
                Level::Warning,
                format!("certificate of {name}"),
                "cannot be seen: its proxy is not connected to the control plane",
            )
            .doing(format!(
                "`maille logs {} -n {} -c istio-proxy` says what keeps it",
                text("/metadata/name"),
                text("/metadata/namespace")
            )),
        );
    }
    findings
}

fn has_sidecar(pod: &Value) -> bool {
    let lists = ["containers", "initContainers"].into_iter();
    lists
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .any(|container| container["name"] == maille_inject::SIDECAR_CONTAINER)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::json;

    use super::*;

    const NOW_S: u64 = 1_000_000;

    fn judged(svid: Value) -> Vec<(Level, String)> {
        let rule = Rule::new(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S), 30);
        let proxy = json!({"uid": "shop/cart-1", "svid": svid});
        of_proxy(&proxy, &rule).into_iter().map(|finding| (finding.level, finding.message)).collect()
    }

    fn svid(left_s: i64) -> Value {
        let end = (NOW_S as i64 + left_s) * 1000;
        json!({"notBeforeMs": end - 86_400_000, "notAfterMs": end, "renewalError": "", "clockAheadMs": 3})
    }

    #[test]
    fn a_day_old_certificate_is_fine_until_its_renewal_is_overdue() {
        assert_eq!(judged(svid(50_000)), [(Level::Ok, String::new())]);
        assert_eq!(judged(svid(20_000))[0].0, Level::Warning);
        assert_eq!(judged(svid(-1))[0].0, Level::Error);
        assert_eq!(judged(Value::Null)[0].0, Level::Warning);
    }

    #[test]
    fn a_renewal_that_fails_and_a_wrong_clock_are_told_early() {
        let mut failing = svid(80_000);
        failing["renewalError"] = json!("the control plane does not answer");
        failing["clockAheadMs"] = json!(-120_000);
        let told = judged(failing);
        assert_eq!(
            told[0],
            (Level::Warning, "its renewal fails: the control plane does not answer".to_owned())
        );
        assert_eq!(told[1], (Level::Warning, "is 2 min behind the authority's".to_owned()));
    }

    #[test]
    fn a_sidecar_that_nobody_hears_of_is_named() {
        let pod = |name: &str, phase: &str, container: &str| {
            json!({"metadata": {"namespace": "shop", "name": name}, "status": {"phase": phase},
                   "spec": {"containers": [{"name": container}]}})
        };
        let pods = json!({"items": [
            pod("cart-1", "Running", "istio-proxy"), pod("cart-2", "Running", "istio-proxy"),
            pod("job-1", "Succeeded", "istio-proxy"), pod("plain", "Running", "app")
        ]});
        let found = not_connected(&pods, &[json!({"uid": "shop/cart-1"})]);
        assert_eq!(found.iter().map(|f| f.what.as_str()).collect::<Vec<_>>(), ["certificate of shop/cart-2"]);
    }
}
