//! The injected Pod.

use std::collections::BTreeMap;

use maille_config::k8s::api::core::v1::{EnvVar, Pod, PodSpec};
use maille_config::k8s::meta::ObjectMeta;
use maille_config::proxy_config::ProxyConfig;
use maille_core::{TrustDomain, ports};
use serde_json::json;

use crate::annotations::Wishes;
use crate::decision::REVISION;
use crate::sidecar::{self, INIT_CONTAINER, SIDECAR_CONTAINER};
use crate::{InjectError, probes};

const TLS_MODE: &str = "security.istio.io/tlsMode";
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const STATUS: &str = "sidecar.istio.io/status";
/// Tells peers that this Pod's proxy takes many streams on one connection (design, "Few connections between proxies").
const MULTIPLEX: &str = "maille.dev/multiplex";
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
const DEFAULT_LOGS_CONTAINER: &str = "kubectl.kubernetes.io/default-logs-container";

/// What is the same for all sidecars of a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectSettings {
    /// Image of both containers.
    pub image: String,
    /// Path of the `maille` binary in it.
    pub binary: String,
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// Where discovery and the authority answer, `host:port`.
    pub discovery_address: String,
    /// The control plane's revision; `default` without one.
    pub revision: String,
    /// What Pods do not say of their proxies: `defaultConfig` of the mesh configuration.
    pub proxy_config: ProxyConfig,
    /// Whether a sidecar is an init container that goes on running, where its Pod does not say
    /// (`sidecar.istio.io/nativeSidecar`). For clusters that know such containers; as ordinary ones they keep a Job from
    /// its end there (G-28).
    pub native_sidecars: bool,
}

impl InjectSettings {
    /// Settings with Istio's address of the control plane and no revision.
    pub fn new(image: impl Into<String>, binary: impl Into<String>, trust_domain: TrustDomain) -> Self {
        Self {
            image: image.into(),
            binary: binary.into(),
            trust_domain,
            discovery_address: format!("istiod.{}.svc:{}", maille_core::ROOT_NAMESPACE, ports::DISCOVERY),
            revision: "default".to_owned(),
            proxy_config: ProxyConfig::default(),
            native_sidecars: false,
        }
    }
}

/// The Pod with a sidecar. `namespace` is the Pod's, which its metadata need not name yet.
///
/// `hook_key` becomes part of the paths under which the agent carries out the application's lifecycle hooks: letters and
/// digits that nobody can guess, others for each Pod. Whoever reaches the Pod could run its hooks otherwise; who may read
/// the Pod knows it.
///
/// A Pod that carries a sidecar already is refused, since [`crate::forbid_reserved`] is part of this.
pub fn inject(
    mut pod: Pod,
    namespace: &str,
    settings: &InjectSettings,
    hook_key: &str,
) -> Result<Pod, InjectError> {
    crate::forbid_reserved(&pod)?;
    let wishes = Wishes::parse(&pod, settings)?;
    let Some(mut spec) = pod.spec.take() else { return Ok(pod) };
    let default_container = spec.containers.first().map(|container| container.name.clone());

    let mut env = Vec::new();
    if wishes.status && wishes.rewrite_probes {
        let originals = probes::rewrite(&mut spec, hook_key);
        if !originals.is_empty() {
            env.push(sidecar::value("ISTIO_KUBE_APP_PROBERS", &json!(originals).to_string()));
        }
    }
    if wishes.status {
        env.extend(merge_metrics(&mut pod.metadata));
    }
    add_containers(&mut spec, settings, &wishes, env);
    add_metadata(&mut pod.metadata, namespace, settings, &wishes, default_container);
    pod.spec = Some(spec);
    Ok(pod)
}

fn add_containers(spec: &mut PodSpec, settings: &InjectSettings, wishes: &Wishes, env: Vec<EnvVar>) {
    let proxy = sidecar::proxy_container(settings, wishes, env);
    let redirection = wishes.intercept.as_ref().map(|args| sidecar::init_container(settings, args));
    if wishes.has_workload_api() {
        spec.containers.iter_mut().for_each(sidecar::show_workload_api);
        if wishes.is_native {
            // It runs before them.
            spec.init_containers.iter_mut().flatten().for_each(sidecar::show_workload_api);
        }
    }
    if wishes.is_native {
        // Both before all others, which are of the mesh then.
        let own = redirection.into_iter().chain([proxy]);
        spec.init_containers.get_or_insert_default().splice(..0, own);
    } else {
        // First, so that it is started first; the redirection last, so that other init containers still reach the network.
        spec.containers.insert(0, proxy);
        if let Some(redirection) = redirection {
            spec.init_containers.get_or_insert_default().push(redirection);
        }
    }
    let volumes = spec.volumes.get_or_insert_default();
    volumes.extend(sidecar::volumes(wishes));
    volumes.extend(wishes.volumes.iter().cloned());
}

/// A scraper is sent to the merged page of the status port, also if the application has no metrics of its own; where it
/// has some, the agent is told (reference cli-and-telemetry 3.4, "Prometheus wiring").
fn merge_metrics(metadata: &mut ObjectMeta) -> Option<EnvVar> {
    let annotations = metadata.annotations.get_or_insert_default();
    if annotations.get("prometheus.istio.io/merge-metrics").is_some_and(|wish| wish == "false") {
        return None;
    }
    let take = |name: &str| annotations.get(&format!("prometheus.io/{name}")).cloned().unwrap_or_default();
    let (scrape, path, port) = (take("scrape"), take("path"), take("port"));
    if scrape == "false" {
        return None;
    }
    annotations.insert("prometheus.io/scrape".to_owned(), "true".to_owned());
    annotations.insert("prometheus.io/port".to_owned(), ports::STATUS.to_string());
    annotations.insert("prometheus.io/path".to_owned(), "/stats/prometheus".to_owned());
    if scrape != "true" {
        return None;
    }
    let original = json!({"scrape": scrape, "path": path, "port": port});
    Some(sidecar::value("ISTIO_PROMETHEUS_ANNOTATIONS", &original.to_string()))
}

fn add_metadata(
    metadata: &mut ObjectMeta,
    namespace: &str,
    settings: &InjectSettings,
    wishes: &Wishes,
    default_container: Option<String>,
) {
    let owner = owner_name(metadata);
    let labels = metadata.labels.get_or_insert_default();
    let name = first_of(labels, [CANONICAL_NAME, "app.kubernetes.io/name", "app"])
        .or(owner)
        .unwrap_or_else(|| namespace.to_owned());
    let revision = first_of(labels, [CANONICAL_REVISION, "app.kubernetes.io/version", "version"])
        .unwrap_or_else(|| "latest".to_owned());
    labels.insert(CANONICAL_NAME.to_owned(), name);
    labels.insert(CANONICAL_REVISION.to_owned(), revision);
    labels.entry(TLS_MODE.to_owned()).or_insert_with(|| "istio".to_owned());

    let init = [(wishes.intercept.is_some(), INIT_CONTAINER), (wishes.is_native, SIDECAR_CONTAINER)];
    let init: Vec<_> = init.into_iter().filter_map(|(is_there, name)| is_there.then_some(name)).collect();
    let status = json!({
        "initContainers": (!init.is_empty()).then_some(init),
        "containers": (!wishes.is_native).then_some([SIDECAR_CONTAINER]),
        "volumes": sidecar::volumes(wishes).into_iter().map(|volume| volume.name).collect::<Vec<_>>(),
        "imagePullSecrets": null,
        "revision": settings.revision,
    });
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(STATUS.to_owned(), status.to_string());
    annotations.insert(REVISION.to_owned(), settings.revision.clone());
    annotations.insert(MULTIPLEX.to_owned(), "1".to_owned());
    // kubectl would take the first container, which is the sidecar.
    for annotation in [DEFAULT_CONTAINER, DEFAULT_LOGS_CONTAINER] {
        if let Some(name) = &default_container {
            annotations.entry(annotation.to_owned()).or_insert_with(|| name.clone());
        }
    }
}

fn first_of<const N: usize>(labels: &BTreeMap<String, String>, keys: [&str; N]) -> Option<String> {
    keys.into_iter().find_map(|key| labels.get(key)).filter(|value| !value.is_empty()).cloned()
}

/// The workload's name: of the Deployment, CronJob or other owner behind it, or of the Pod itself.
fn owner_name(metadata: &ObjectMeta) -> Option<String> {
    let controller = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let name = match controller {
        Some(owner) => maille_core::workload_of(&owner.kind, &owner.name, hash.map(String::as_str)),
        None => {
            metadata.name.as_deref().or(metadata.generate_name.as_deref()).map(|n| n.trim_end_matches('-'))?
        }
    };
    // A label's value has at most 63 characters.
    Some(name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned())
}

#[cfg(test)]
mod tests;
