//! Deployments, ReplicaSets, StatefulSets and DaemonSets: defaults, validation, immutability.
//!
//! Source: kubernetes `pkg/apis/apps/v1/defaults.go`, `pkg/apis/apps/validation`.

use serde_json::{Map, Value, json};

use super::{pod_defaults, pod_validation};
use crate::json;
use crate::request::Target;
use crate::selector::LabelSelector;
use crate::status::{ApiError, ApiResult, Cause};

/// Admits a Deployment; `old` when it changes.
pub(crate) fn deployment(target: &Target, object: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    let spec = json::object_mut(json::map_of(object), "spec");
    for (key, value) in [("replicas", 1), ("revisionHistoryLimit", 10), ("progressDeadlineSeconds", 600)] {
        json::default_to(spec, key, value);
    }
    let strategy = json::object_mut(spec, "strategy");
    if strategy.get("type").and_then(Value::as_str).unwrap_or_default().is_empty() {
        strategy.insert("type".into(), "RollingUpdate".into());
    }
    let kind = strategy.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if kind == "RollingUpdate" {
        let rolling = json::object_mut(strategy, "rollingUpdate");
        json::default_to(rolling, "maxUnavailable", "25%");
        json::default_to(rolling, "maxSurge", "25%");
    }
    template_defaults(spec);
    let mut causes = common(object, old);
    let rolling = json::at(object, &["spec", "strategy", "rollingUpdate"]);
    match kind.as_str() {
        "RollingUpdate" => {
            let zero = |v: Option<&Value>| {
                v.is_some_and(|v| v.as_i64() == Some(0) || matches!(v.as_str(), Some("0" | "0%")))
            };
            let part = |key: &str| rolling.and_then(|r| r.get(key));
            for key in ["maxUnavailable", "maxSurge"] {
                count_or_percent(part(key), &format!("spec.strategy.rollingUpdate.{key}"), &mut causes);
            }
            if zero(part("maxUnavailable")) && zero(part("maxSurge")) {
                let shown = part("maxUnavailable").cloned().unwrap_or_default();
                causes.push(Cause::invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    &shown,
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
        }
        "Recreate" if rolling.is_some() => causes.push(Cause::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        "Recreate" => {}
        other => causes.push(Cause::unsupported("spec.strategy.type", other, &["Recreate", "RollingUpdate"])),
    }
    finish(target, object, causes)
}

/// Admits a ReplicaSet; `old` when it changes.
pub(crate) fn replica_set(target: &Target, object: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    let spec = json::object_mut(json::map_of(object), "spec");
    json::default_to(spec, "replicas", 1);
    template_defaults(spec);
    let causes = common(object, old);
    finish(target, object, causes)
}

/// Admits a StatefulSet; `old` when it changes.
pub(crate) fn stateful_set(target: &Target, object: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    let spec = json::object_mut(json::map_of(object), "spec");
    for (key, value) in [
        ("replicas", json!(1)),
        ("revisionHistoryLimit", json!(10)),
        ("podManagementPolicy", json!("OrderedReady")),
        ("serviceName", json!("")),
    ] {
        json::default_to(spec, key, value);
    }
    let strategy = json::object_mut(spec, "updateStrategy");
    json::default_to(strategy, "type", "RollingUpdate");
    if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
        json::default_to(json::object_mut(strategy, "rollingUpdate"), "partition", 0);
    }
    let retention = json::object_mut(spec, "persistentVolumeClaimRetentionPolicy");
    json::default_to(retention, "whenDeleted", "Retain");
    json::default_to(retention, "whenScaled", "Retain");
    for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(claim) = claim {
            json::default_to(claim, "apiVersion", "v1");
            json::default_to(claim, "kind", "PersistentVolumeClaim");
            json::default_to(json::object_mut(claim, "spec"), "volumeMode", "Filesystem");
            claim.insert("status".into(), json!({ "phase": "Pending" }));
        }
    }
    template_defaults(spec);
    let mut causes = common(object, old);
    if let Some(old) = old {
        // Kubernetes `ValidateStatefulSetUpdate`: identity and storage of the Pods that are there do not change.
        const MAY_CHANGE: &[&str] = &[
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ];
        let fixed = |object: &Value| {
            let mut spec = object.get("spec").cloned().unwrap_or_default();
            json::map_of(&mut spec).retain(|key, _| !MAY_CHANGE.contains(&key.as_str()));
            spec
        };
        if fixed(old) != fixed(object) {
            causes.push(Cause::forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ));
        }
    }
    finish(target, object, causes)
}

/// Admits a DaemonSet; `old` when it changes.
pub(crate) fn daemon_set(target: &Target, object: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    let spec = json::object_mut(json::map_of(object), "spec");
    json::default_to(spec, "revisionHistoryLimit", 10);
    let strategy = json::object_mut(spec, "updateStrategy");
    json::default_to(strategy, "type", "RollingUpdate");
    if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
        let rolling = json::object_mut(strategy, "rollingUpdate");
        let surges = rolling
            .get("maxSurge")
            .is_some_and(|n| !matches!(n.as_i64(), Some(0)) && n.as_str() != Some("0%"));
        json::default_to(rolling, "maxUnavailable", if surges { 0 } else { 1 });
        json::default_to(rolling, "maxSurge", 0);
    }
    template_defaults(spec);
    let causes = common(object, old);
    finish(target, object, causes)
}

/// Admits a ControllerRevision, whose data never changes.
pub(crate) fn controller_revision(target: &Target, object: &Value, old: Option<&Value>) -> ApiResult<()> {
    let mut causes = Vec::new();
    if old.is_some_and(|old| old.get("data") != object.get("data")) {
        causes.push(Cause::invalid("data", &Value::from(""), "field is immutable"));
    }
    finish(target, object, causes)
}

pub(super) fn finish(target: &Target, object: &Value, causes: Vec<Cause>) -> ApiResult<()> {
    if causes.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(target.resource, json::name(object), causes))
    }
}

pub(super) fn template_defaults(spec: &mut Map<String, Value>) {
    if let Some(Value::Object(template)) = spec.get_mut("template") {
        json::object_mut(template, "metadata");
        if let Some(spec) = template.get_mut("spec") {
            pod_defaults::spec(spec);
        }
    }
}

fn common(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        if let Some(value) = json::at(object, &["spec", key])
            && value.as_i64().is_none_or(|n| n < 0)
        {
            let field = format!("spec.{key}");
            causes.push(Cause::invalid(field, value, "must be greater than or equal to 0"));
        }
    }
    let selector = json::at(object, &["spec", "selector"]);
    let empty = |s: &Value| {
        json::at(s, &["matchLabels"]).and_then(Value::as_object).is_none_or(Map::is_empty)
            && json::items(s, &["matchExpressions"]).is_empty()
    };
    match selector {
        None => causes.push(Cause::required("spec.selector", "")),
        Some(selector) if empty(selector) => {
            causes.push(Cause::invalid(
                "spec.selector",
                selector,
                &format!("empty selector is invalid for {}", json::text(object, &["kind"]).to_lowercase()),
            ));
        }
        Some(selector) => {
            for (i, expression) in json::items(selector, &["matchExpressions"]).iter().enumerate() {
                expression_problems(expression, &format!("spec.selector.matchExpressions[{i}]"), &mut causes);
            }
            let labels = json::at(object, &["spec", "template", "metadata", "labels"]);
            let labels = labels.unwrap_or(&Value::Null);
            if !LabelSelector::of_spec(selector).matches_labels(labels) {
                let why = "`selector` does not match template `labels`";
                causes.push(Cause::invalid("spec.template.metadata.labels", labels, why));
            }
            let before = old.and_then(|o| json::at(o, &["spec", "selector"]));
            if before.is_some_and(|before| before != selector) {
                causes.push(Cause::invalid("spec.selector", selector, "field is immutable"));
            }
        }
    }
    match json::at(object, &["spec", "template", "spec"]) {
        Some(spec) => {
            let claims = json::items(object, &["spec", "volumeClaimTemplates"]);
            causes.extend(pod_validation::spec_with(spec, "spec.template.spec", claims));
            let policy = json::text(spec, &["restartPolicy"]);
            if policy != "Always" {
                causes.push(Cause::unsupported("spec.template.spec.restartPolicy", policy, &["Always"]));
            }
        }
        None => causes.push(Cause::required("spec.template.spec.containers", "")),
    }
    causes
}

fn expression_problems(expression: &Value, path: &str, causes: &mut Vec<Cause>) {
    let values = json::items(expression, &["values"]);
    match json::text(expression, &["operator"]) {
        "In" | "NotIn" if values.is_empty() => causes.push(Cause::required(
            format!("{path}.values"),
            "must be specified when `operator` is 'In' or 'NotIn'",
        )),
        "Exists" | "DoesNotExist" if !values.is_empty() => causes.push(Cause::forbidden(
            format!("{path}.values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => causes.push(Cause::invalid(
            format!("{path}.operator"),
            &other.into(),
            "not a valid selector operator",
        )),
    }
}

fn count_or_percent(value: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    let valid = match value {
        None => true,
        Some(Value::String(text)) => text.strip_suffix('%').is_some_and(|n| n.parse::<u32>().is_ok()),
        Some(other) => other.as_i64().is_some_and(|n| n >= 0),
    };
    if !valid {
        let shown = value.cloned().unwrap_or_else(|| json!(null));
        causes.push(Cause::invalid(
            path,
            &shown,
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%', or '93%')",
        ));
    }
}
