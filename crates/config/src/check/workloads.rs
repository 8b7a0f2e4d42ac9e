//! Kinds that make Pods, and claims of storage: the part of Kubernetes' validation on which running them relies
//! (kubernetes pkg/apis/{apps,batch,core}/validation).

use std::collections::BTreeSet;

use k8s_openapi::jiff::tz::TimeZone;
use maille_core::is_dns_label;

use super::metadata::check_labels;
use super::pod;
use super::values::{check_choice, check_minimum};
use super::view::View;
use crate::cron::Schedule;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::kinds::Kind;

/// A CronJob's Jobs have eleven characters more (kubernetes `ValidateCronJobCreate`).
const MAX_CRON_JOB_NAME: usize = 52;
/// A Job's name is the value of a label of its Pods.
const MAX_JOB_NAME: usize = 63;
/// kubernetes `maxParallelismForIndexedJob`.
const MAX_INDEXED_PARALLELISM: i64 = 100_000;
/// The status of an indexed Job says which of its indices are complete: with each other one, as text of half a megabyte.
/// Kubernetes has this bound where `backoffLimitPerIndex` is set (`completionsSoftLimit`).
pub const MAX_INDEXED_COMPLETIONS: i32 = 100_000;
/// The value of `managedBy` that means this mesh's own controller.
const OWN_CONTROLLER: &str = "kubernetes.io/job-controller";

pub(super) fn check(kind: &Kind, object: &View<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.get("spec");
    match (kind.group, kind.kind) {
        ("apps", "Deployment" | "ReplicaSet") => {
            check_choice(&spec.get("strategy").get("type"), &["RollingUpdate", "Recreate"], errors);
            check_replicated(kind, &spec, &[], errors);
        }
        ("apps", "StatefulSet") => check_stateful_set(kind, &spec, errors),
        ("apps", "DaemonSet") => check_daemon_set(kind, &spec, errors),
        ("apps", "ControllerRevision") => {
            let revision = object.get("revision");
            if revision.is_absent() {
                errors.push(revision.required("is required").help("a number that counts up"));
            }
        }
        ("batch", "Job") => {
            check_name(object, MAX_JOB_NAME, errors);
            let selector = spec.get("selector");
            let generated =
                selector.get("matchLabels").members().any(|(key, _)| key.ends_with("controller-uid"));
            if !selector.is_absent() && !spec.get("manualSelector").is_true() && !generated {
                errors.push(
                    selector
                        .invalid("a Job's selector is made for it")
                        .help("leave it out, or set manualSelector"),
                );
            }
            check_job(&spec, errors);
        }
        ("batch", "CronJob") => {
            check_name(object, MAX_CRON_JOB_NAME, errors);
            check_cron_job(&spec, errors);
        }
        ("", "PersistentVolumeClaim") => check_claim(&spec, errors),
        _ => {}
    }
}

/// What does not hinder: a claim says more than a directory keeps.
pub(super) fn warnings(object: &View<'_>) -> Vec<FieldError> {
    let spec = object.get("spec");
    let claims: Vec<View<'_>> = match object.get("kind").text() {
        Some("PersistentVolumeClaim") => vec![spec],
        Some("StatefulSet") => spec.get("volumeClaimTemplates").elements().map(|c| c.get("spec")).collect(),
        _ => return Vec::new(),
    };
    let classes = claims.iter().map(|claim| claim.get("storageClassName")).filter(|class| !class.is_empty());
    classes
        .map(|class| {
            class.error(
                FieldErrorKind::NotEnforced,
                "there are no storage classes: every claim is given a directory of this machine, without a quota",
            )
        })
        .collect()
}

fn check_name(object: &View<'_>, most: usize, errors: &mut Vec<FieldError>) {
    let name = object.get("metadata").get("name");
    if name.text().is_some_and(|text| text.len() > most) {
        errors.push(name.invalid("is too long").help(format!("at most {most} characters")));
    }
}

/// What all have that keep a number of Pods: a selector, and a template that it selects.
fn check_replicated(kind: &Kind, spec: &View<'_>, claims: &[&str], errors: &mut Vec<FieldError>) {
    check_minimum(&spec.get("replicas"), 0, errors);
    check_minimum(&spec.get("minReadySeconds"), 0, errors);
    check_minimum(&spec.get("revisionHistoryLimit"), 0, errors);
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    let labels = template.get("metadata").get("labels");
    check_labels(&labels, errors);
    let wanted = selector.get("matchLabels");
    if selector.is_empty() || (wanted.is_empty() && selector.get("matchExpressions").is_empty()) {
        errors.push(
            selector
                .required(format!("a {} selects its pods", kind.kind))
                .help("matchLabels with labels of the template"),
        );
    }
    for (key, value) in wanted.members() {
        if value.text().is_some() && labels.get_exactly(key).text() != value.text() {
            errors.push(
                value
                    .invalid(format!("the template's pods have no label {key} of this value"))
                    .help("add it to spec.template.metadata.labels, or change the selector"),
            );
        }
    }
    let pod_spec = template.get("spec");
    let restart = pod_spec.get("restartPolicy");
    if restart.text().is_some_and(|policy| policy != "Always") {
        errors.push(restart.invalid(format!("pods of a {} restart always", kind.kind)).help("leave it out"));
    }
    pod::check_with(&pod_spec, claims, errors);
}

fn check_stateful_set(kind: &Kind, spec: &View<'_>, errors: &mut Vec<FieldError>) {
    check_choice(&spec.get("podManagementPolicy"), &["OrderedReady", "Parallel"], errors);
    let strategy = spec.get("updateStrategy");
    check_choice(&strategy.get("type"), &["RollingUpdate", "OnDelete"], errors);
    let rolling = strategy.get("rollingUpdate");
    if strategy.get("type").text() == Some("OnDelete") && !rolling.is_absent() {
        errors
            .push(rolling.invalid("says how to roll what does not roll").help("leave it out with OnDelete"));
    }
    check_minimum(&rolling.get("partition"), 0, errors);
    let unavailable = rolling.get("maxUnavailable");
    check_count(&unavailable, errors);
    if !unavailable.is_absent() && is_zero(&unavailable) {
        errors.push(unavailable.invalid("lets nothing be replaced").help("at least 1"));
    }
    check_minimum(&spec.get("ordinals").get("start"), 0, errors);
    let retention = spec.get("persistentVolumeClaimRetentionPolicy");
    for when in ["whenDeleted", "whenScaled"] {
        check_choice(&retention.get(when), &["Retain", "Delete"], errors);
    }
    let service = spec.get("serviceName");
    if service.text().is_some_and(|text| !text.is_empty() && !is_dns_label(text)) {
        errors.push(service.invalid("is no name of a Service").help("the headless Service of its pods"));
    }
    let mut names = BTreeSet::new();
    for claim in spec.get("volumeClaimTemplates").elements() {
        let name = claim.get("metadata").get("name");
        match name.text() {
            Some(text) if !is_dns_label(text) => {
                errors.push(name.invalid(format!("'{text}' is no name of a volume")));
            }
            Some(text) if !names.insert(text) => {
                errors
                    .push(name.error(FieldErrorKind::Duplicate, format!("another claim is named '{text}'")));
            }
            Some(_) => {}
            None => errors.push(name.required("is required").help("the name by which containers mount it")),
        }
        check_claim(&claim.get("spec"), errors);
    }
    check_replicated(kind, spec, &names.into_iter().collect::<Vec<_>>(), errors);
}

fn check_daemon_set(kind: &Kind, spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let strategy = spec.get("updateStrategy");
    check_choice(&strategy.get("type"), &["RollingUpdate", "OnDelete"], errors);
    let rolling = strategy.get("rollingUpdate");
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    check_count(&unavailable, errors);
    check_count(&surge, errors);
    let surges = !surge.is_absent() && !is_zero(&surge);
    // Without a word, one may be unavailable.
    let spares = if unavailable.is_absent() { !surges } else { !is_zero(&unavailable) };
    if surges && spares {
        errors.push(surge.invalid("cannot stand beside maxUnavailable").help("set one of the two to 0"));
    } else if !surges && !spares {
        errors.push(unavailable.required("cannot be 0 when maxSurge is 0").help("1, or a maxSurge"));
    }
    check_replicated(kind, spec, &[], errors);
}

/// A Job's spec, its own or a CronJob's template.
fn check_job(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    for field in [
        "parallelism",
        "completions",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        check_minimum(&spec.get(field), 0, errors);
    }
    check_minimum(&spec.get("activeDeadlineSeconds"), 1, errors);
    let mode = spec.get("completionMode");
    check_choice(&mode, &["NonIndexed", "Indexed"], errors);
    let indexed = mode.text() == Some("Indexed");
    let completions = spec.get("completions");
    if indexed && completions.is_absent() {
        errors.push(completions.required("an indexed Job has as many Pods as indices").help("a number"));
    }
    if indexed && completions.number().is_some_and(|n| n > i64::from(MAX_INDEXED_COMPLETIONS)) {
        errors.push(completions.invalid("is too great").help(format!("at most {MAX_INDEXED_COMPLETIONS}")));
    }
    let parallelism = spec.get("parallelism");
    if indexed && parallelism.number().is_some_and(|n| n > MAX_INDEXED_PARALLELISM) {
        errors.push(parallelism.invalid("is too great").help(format!("at most {MAX_INDEXED_PARALLELISM}")));
    }
    let manager = spec.get("managedBy");
    if manager.text().is_some_and(|name| name != OWN_CONTROLLER) {
        errors.push(manager.not_enforced("another controller for a Job", "controllers outside of the mesh"));
    }
    let scheduling = spec.get("scheduling");
    if !scheduling.is_absent() {
        errors.push(scheduling.not_enforced("scheduling of a Job's Pods as a group", "several nodes"));
    }
    let replacement = spec.get("podReplacementPolicy");
    check_choice(&replacement, &["TerminatingOrFailed", "Failed"], errors);

    let template = spec.get("template");
    check_labels(&template.get("metadata").get("labels"), errors);
    let pod_spec = template.get("spec");
    let restart = pod_spec.get("restartPolicy");
    match restart.text() {
        Some("OnFailure" | "Never") => {}
        Some("Always") => {
            errors.push(restart.invalid("a Job's pods come to an end").help("write OnFailure or Never"));
        }
        None => errors.push(restart.required("a Job's pods come to an end").help("write OnFailure or Never")),
        Some(_) => {}
    }
    pod::check(&pod_spec, errors);

    let per_index = spec.get("backoffLimitPerIndex");
    let most = spec.get("maxFailedIndexes");
    if !per_index.is_absent() && !indexed {
        errors.push(per_index.invalid("only an indexed Job has indices").help("set completionMode: Indexed"));
    }
    if !per_index.is_absent() && restart.text() == Some("OnFailure") {
        errors.push(per_index.invalid("counts failed pods").help("set restartPolicy: Never"));
    }
    if !most.is_absent() && per_index.is_absent() {
        errors.push(most.invalid("counts nothing").help("set backoffLimitPerIndex too"));
    }
    check_failure_policy(spec, &restart, errors);
    check_success_policy(&spec.get("successPolicy"), indexed, errors);
}

fn check_failure_policy(spec: &View<'_>, restart: &View<'_>, errors: &mut Vec<FieldError>) {
    let policy = spec.get("podFailurePolicy");
    if policy.is_absent() {
        return;
    }
    if restart.text() == Some("OnFailure") {
        errors.push(policy.invalid("judges failed pods").help("set restartPolicy: Never"));
    }
    let replacement = spec.get("podReplacementPolicy");
    if replacement.text() == Some("TerminatingOrFailed") {
        errors.push(
            replacement.invalid("with a podFailurePolicy only failed pods are replaced").help("Failed"),
        );
    }
    let per_index = !spec.get("backoffLimitPerIndex").is_absent();
    for rule in policy.get("rules").elements() {
        let action = rule.get("action");
        check_choice(&action, &["FailJob", "FailIndex", "Ignore", "Count"], errors);
        if action.is_empty() {
            errors.push(action.required("is required").help("FailJob, FailIndex, Ignore or Count"));
        }
        if action.text() == Some("FailIndex") && !per_index {
            errors.push(action.invalid("needs backoffLimitPerIndex").help("set it, or write FailJob"));
        }
        let (codes, conditions) = (rule.get("onExitCodes"), rule.get("onPodConditions"));
        if codes.is_absent() == conditions.is_empty() {
            errors.push(rule.invalid("asks for one thing").help("either onExitCodes or onPodConditions"));
        }
        if codes.is_object() {
            let (operator, values) = (codes.get("operator"), codes.get("values"));
            check_choice(&operator, &["In", "NotIn"], errors);
            if operator.is_empty() {
                errors.push(operator.required("is required").help("In or NotIn"));
            }
            if values.is_empty() {
                errors.push(values.required("is required").help("exit codes"));
            }
            if operator.text() == Some("In") && values.elements().any(|value| value.number() == Some(0)) {
                errors.push(values.invalid("0 is no failure").help("remove it"));
            }
        }
        for condition in conditions.elements() {
            check_choice(&condition.get("status"), &["True", "False", "Unknown"], errors);
        }
    }
}

fn check_success_policy(policy: &View<'_>, indexed: bool, errors: &mut Vec<FieldError>) {
    if policy.is_absent() {
        return;
    }
    if !indexed {
        errors.push(policy.invalid("only an indexed Job has indices").help("set completionMode: Indexed"));
    }
    if policy.get("rules").is_empty() {
        errors.push(policy.get("rules").required("is required").help("succeededIndexes or succeededCount"));
    }
    for rule in policy.get("rules").elements() {
        let (indexes, count) = (rule.get("succeededIndexes"), rule.get("succeededCount"));
        if indexes.is_absent() && count.is_absent() {
            errors.push(rule.required("asks for nothing").help("succeededIndexes or succeededCount"));
        }
        check_minimum(&count, 1, errors);
        if indexes.text().is_some_and(|text| parse_indexes(text).is_none()) {
            errors.push(indexes.invalid("is no list of indices").help("for example 1,3-5"));
        }
    }
}

/// Ascending intervals as Jobs write them: `1,3-5,7`; none if it is not of that form.
pub fn parse_indexes(text: &str) -> Option<Vec<(i32, i32)>> {
    let mut intervals: Vec<(i32, i32)> = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<i32>().ok().filter(|n| *n >= 0 && !text.starts_with('+'));
        let (from, to) = (number(from)?, number(to)?);
        if from > to || intervals.last().is_some_and(|(_, last)| *last >= from) {
            return None;
        }
        intervals.push((from, to));
    }
    Some(intervals)
}

fn check_cron_job(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let schedule = spec.get("schedule");
    match schedule.text() {
        Some(text) if !text.is_empty() => {
            if let Err(problem) = Schedule::parse(text) {
                errors.push(schedule.invalid(problem));
            }
        }
        _ if schedule.is_empty() => {
            errors.push(schedule.required("is required").help("for example '30 4 * * *'"));
        }
        _ => {}
    }
    let zone = spec.get("timeZone");
    if zone.text().is_some_and(|name| name.eq_ignore_ascii_case("local") || TimeZone::get(name).is_err()) {
        errors.push(
            zone.invalid("is no time zone").help("its name, for example Europe/Berlin, or leave it out"),
        );
    }
    check_choice(&spec.get("concurrencyPolicy"), &["Allow", "Forbid", "Replace"], errors);
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        check_minimum(&spec.get(field), 0, errors);
    }
    let job = spec.get("jobTemplate").get("spec");
    for field in ["selector", "manualSelector"] {
        let given = job.get(field);
        if !given.is_absent() {
            errors.push(given.invalid("each Job has a selector of its own").help("leave it out"));
        }
    }
    check_job(&job, errors);
}

fn check_claim(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let modes = spec.get("accessModes");
    if modes.is_empty() {
        errors.push(modes.required("is required").help("for example [ReadWriteOnce]"));
    }
    for mode in modes.elements() {
        check_choice(&mode, &["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"], errors);
    }
    let size = spec.get("resources").get("requests").get_exactly("storage");
    if size.is_absent() {
        errors.push(size.required("is required").help("for example 1Gi"));
    }
    let mode = spec.get("volumeMode");
    check_choice(&mode, &["Filesystem", "Block"], errors);
    if mode.text() == Some("Block") {
        errors.push(mode.not_enforced("a raw block device", "storage beyond directories"));
    }
    for field in ["selector", "dataSource", "dataSourceRef"] {
        let given = spec.get(field);
        if !given.is_empty() {
            errors.push(given.not_enforced(&format!("{field} of a claim"), "storage beyond directories"));
        }
    }
}

/// A number, or a percentage.
fn check_count(value: &View<'_>, errors: &mut Vec<FieldError>) {
    check_minimum(value, 0, errors);
    if value.text().is_some_and(|text| {
        text.strip_suffix('%').and_then(|percent| percent.parse::<u32>().ok()).is_none_or(|n| n > 100)
    }) {
        errors.push(value.invalid("is neither a number nor a percentage").help("for example 1 or 25%"));
    }
}

fn is_zero(value: &View<'_>) -> bool {
    value.number() == Some(0) || matches!(value.text(), Some("0" | "0%"))
}

#[cfg(test)]
mod tests;
