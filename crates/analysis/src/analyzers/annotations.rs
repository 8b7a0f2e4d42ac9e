//! IST0107, IST0108, IST0125, IST0135: annotations of Istio's domain; ML0211: those that Maille does not act upon.

use std::collections::BTreeMap;

use maille_config::k8s::api::core::v1::Pod;
use maille_core::TrustDomain;
use maille_inject::{InjectError, InjectSettings, inject, without_effect};

use crate::code::{
    ANNOTATION_WITHOUT_EFFECT, DEPRECATED_ANNOTATION, INVALID_ANNOTATION, MISPLACED_ANNOTATION,
    UNKNOWN_ANNOTATION,
};
use crate::mesh::{Mesh, Workload};
use crate::report::Report;
use crate::resource::Resource;

use super::known_annotations::{find, is_istios, names};
use super::names::{list, nearest};

/// Of the kinds that Istio looks at; Pods are looked at as what made them.
const KINDS: [(&str, &str); 3] = [("", "Namespace"), ("", "Service"), ("apps", "Deployment")];
/// The label of the same name counts before the annotation.
const INJECT: &str = "sidecar.istio.io/inject";

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for (group, kind) in KINDS {
        for resource in mesh.of_kind(group, kind) {
            let labels = resource.metadata("labels");
            one(resource, kind, "metadata", &resource.metadata("annotations"), &labels, report);
        }
    }
    for workload in &mesh.workloads {
        let Some(subject) = workload.subject() else { continue };
        let annotations = workload.pod.metadata.annotations.clone().unwrap_or_default();
        one(subject, "Pod", &workload.field("metadata"), &annotations, &workload.labels, report);
        values(workload, subject, report);
    }
}

/// Annotations of an object, or of the Pod that it makes.
fn one(
    resource: &Resource,
    kind: &str,
    path: &str,
    annotations: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
    report: &mut Report,
) {
    for name in annotations.keys().filter(|name| is_istios(name)) {
        let field = format!("{path}.annotations[{name}]");
        let Some(known) = find(name) else {
            let hint =
                nearest(name, names()).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            let text = format!("unknown annotation: {name}{hint}");
            report.add(&UNKNOWN_ANNOTATION, resource, &field, text);
            continue;
        };
        if !known.kinds.is_empty() && !known.kinds.contains(&kind) {
            let place = match known.kinds {
                ["Pod"] if kind == "Deployment" => "spec.template.metadata.annotations".to_owned(),
                kinds => format!("a {}", list(kinds)),
            };
            let text = format!("annotation {name} has no effect on a {kind}; it belongs to {place}");
            report.add(&MISPLACED_ANNOTATION, resource, &field, text);
        } else if let Some(instead) = known.deprecated
            && !(name == INJECT && labels.contains_key(INJECT))
        {
            let text = format!("annotation {name} is deprecated; use {instead}");
            report.add(&DEPRECATED_ANNOTATION, resource, &field, text);
        }
    }
}

/// Values, judged by what injects.
fn values(workload: &Workload<'_>, subject: &Resource, report: &mut Report) {
    let mut pod = workload.pod.clone();
    let Some(annotations) = pod.metadata.annotations.as_mut() else { return };
    annotations.retain(|name, _| is_istios(name));
    let count = annotations.len();
    // A Pod that has its sidecar already would be refused as such; only its annotations are asked about.
    pod.spec = Some(Default::default());
    let Ok(trust_domain) = TrustDomain::parse(maille_core::DEFAULT_TRUST_DOMAIN) else { return };
    let settings = InjectSettings::new("maille", "maille", trust_domain);
    for _ in 0..count {
        let Err(InjectError::Annotation { annotation, value, reason }) =
            inject(pod.clone(), &workload.namespace, &settings, "")
        else {
            break;
        };
        let field = workload.field(&format!("metadata.annotations[{annotation}]"));
        let text = format!("invalid value for annotation {annotation}: '{value}' {reason}");
        report.add(&INVALID_ANNOTATION, subject, &field, text);
        let removed = pod.metadata.annotations.as_mut().and_then(|all| all.remove(&annotation));
        if removed.is_none() {
            break;
        }
    }
    without_effects(workload, subject, &pod, report);
}

fn without_effects(workload: &Workload<'_>, subject: &Resource, pod: &Pod, report: &mut Report) {
    for text in without_effect(pod) {
        let Some(name) = pod
            .metadata
            .annotations
            .iter()
            .flatten()
            .map(|(name, _)| name)
            .find(|name| text.split(' ').any(|word| word == name.as_str()) && find(name).is_some())
        else {
            continue;
        };
        let field = workload.field(&format!("metadata.annotations[{name}]"));
        report.add(&ANNOTATION_WITHOUT_EFFECT, subject, &field, text.clone());
    }
}
