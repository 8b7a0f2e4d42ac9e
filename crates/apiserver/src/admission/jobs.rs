//! Jobs and CronJobs: defaults, the selector that is made for a Job, immutability.
//!
//! Source: kubernetes `pkg/apis/batch/v1/defaults.go`, `pkg/registry/batch/job/strategy.go`,
//! `pkg/apis/batch/validation`.

use serde_json::{Map, Value, json};

use super::pod_validation;
use super::workloads::{finish, template_defaults};
use crate::json;
use crate::request::Target;
use crate::selector::LabelSelector;
use crate::status::{ApiResult, Cause};

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

/// Admits a new Job.
pub(crate) fn create(target: &Target, job: &mut Value) -> ApiResult<()> {
    let (name, uid) = (json::name(job).to_owned(), json::uid(job).to_owned());
    let spec = json::object_mut(json::map_of(job), "spec");
    defaults(spec);
    let mut causes = Vec::new();
    if spec.get("manualSelector") != Some(&Value::Bool(true)) {
        select_own(spec, &name, &uid);
    } else {
        let selector = spec.get("selector").cloned().unwrap_or_default();
        let labels = spec.get("template").and_then(|t| json::at(t, &["metadata", "labels"])).cloned();
        if selector.is_null() {
            causes.push(Cause::required("spec.selector", ""));
        } else if !LabelSelector::of_spec(&selector).matches_labels(&labels.clone().unwrap_or_default()) {
            let shown = labels.unwrap_or_default();
            let why = "`selector` does not match template `labels`";
            causes.push(Cause::invalid("spec.template.metadata.labels", &shown, why));
        }
    }
    validate_pods(job, &["spec", "template", "spec"], &mut causes);
    finish(target, job, causes)
}

/// The labels by which a Job knows its Pods, on its template, and the selector that asks for them.
fn select_own(spec: &mut Map<String, Value>, name: &str, uid: &str) {
    let template = json::object_mut(spec, "template");
    let labels = json::object_mut(json::object_mut(template, "metadata"), "labels");
    // The names without a prefix are the older ones; tools look for both.
    for key in [CONTROLLER_UID, "controller-uid"] {
        labels.insert(key.into(), uid.into());
    }
    for key in [JOB_NAME, "job-name"] {
        labels.insert(key.into(), name.into());
    }
    let selector = json::object_mut(spec, "selector");
    json::object_mut(selector, "matchLabels").insert(CONTROLLER_UID.into(), uid.into());
}

fn defaults(spec: &mut Map<String, Value>) {
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions".into(), 1.into());
    }
    json::default_to(spec, "parallelism", 1);
    let per_index = spec.contains_key("backoffLimitPerIndex");
    json::default_to(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    json::default_to(spec, "completionMode", "NonIndexed");
    json::default_to(spec, "suspend", false);
    let replaced = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    json::default_to(spec, "podReplacementPolicy", replaced);
    let rules = spec.get_mut("podFailurePolicy").and_then(|policy| policy.get_mut("rules"));
    for rule in rules.and_then(Value::as_array_mut).into_iter().flatten() {
        for condition in json::items_mut(rule, &["onPodConditions"]) {
            json::default_to(json::map_of(condition), "status", "True");
        }
    }
    template_defaults(spec);
}

/// Admits a change of a Job: what its Pods are, and how many there will be, stays.
pub(crate) fn update(target: &Target, old: &Value, job: &mut Value) -> ApiResult<()> {
    defaults(json::object_mut(json::map_of(job), "spec"));
    let spec = |job: &Value, key: &str| json::at(job, &["spec", key]).cloned().unwrap_or_default();
    let mut causes = Vec::new();
    let indexed = spec(old, "completionMode") == json!("Indexed");
    // An indexed Job may grow and shrink as a whole.
    let elastic = indexed && spec(job, "completions") == spec(job, "parallelism");
    let started = !json::text(old, &["status", "startTime"]).is_empty();
    let paused = spec(old, "suspend") == json!(true) && !started;
    for key in [
        "completions",
        "selector",
        "template",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "successPolicy",
        "managedBy",
    ] {
        let may = (key == "completions" && elastic) || (key == "template" && paused);
        let (was, is) = (spec(old, key), spec(job, key));
        if was != is && !may {
            causes.push(Cause::invalid(format!("spec.{key}"), &is, "field is immutable"));
        }
    }
    validate_pods(job, &["spec", "template", "spec"], &mut causes);
    finish(target, job, causes)
}

/// Admits a CronJob, new or changed.
pub(crate) fn cron_job(target: &Target, object: &mut Value) -> ApiResult<()> {
    let spec = json::object_mut(json::map_of(object), "spec");
    for (key, value) in [
        ("concurrencyPolicy", json!("Allow")),
        ("suspend", json!(false)),
        ("successfulJobsHistoryLimit", json!(3)),
        ("failedJobsHistoryLimit", json!(1)),
    ] {
        json::default_to(spec, key, value);
    }
    let template = json::object_mut(spec, "jobTemplate");
    json::object_mut(template, "metadata");
    template_defaults(json::object_mut(template, "spec"));
    let mut causes = Vec::new();
    validate_pods(object, &["spec", "jobTemplate", "spec", "template", "spec"], &mut causes);
    finish(target, object, causes)
}

fn validate_pods(object: &Value, path: &[&str], causes: &mut Vec<Cause>) {
    let shown = path.join(".");
    match json::at(object, path) {
        Some(spec) => causes.extend(pod_validation::spec(spec, &shown)),
        None => causes.push(Cause::required(format!("{shown}.containers"), "")),
    }
}
