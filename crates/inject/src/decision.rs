//! Who gets a sidecar (reference mtls 7.5).

use std::fmt;

use maille_config::k8s::api::core::v1::Pod;
use maille_core::Labels;

/// Label of a namespace: `enabled` or anything else.
const NAMESPACE_INJECTION: &str = "istio-injection";
/// Label of a namespace or Pod: which control plane is meant.
pub(crate) const REVISION: &str = "istio.io/rev";
/// Label (or, deprecated, annotation) of a Pod: `true` or `false`.
const POD_INJECTION: &str = "sidecar.istio.io/inject";
/// Kubernetes puts it on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The name of the control plane without a revision.
const DEFAULT_REVISION: &str = "default";

/// Namespaces that never get sidecars.
const IGNORED_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Whether a Pod gets a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes, of this revision (`default`: the one without).
    Inject {
        /// For the annotation `istio.io/rev`.
        revision: String,
    },
    /// No.
    Skip(SkipReason),
}

/// Why a Pod gets no sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// Neither the namespace nor the Pod asks for one.
    NotAsked,
    /// The namespace's label `istio-injection` is not `enabled`.
    NamespaceDisabled,
    /// The Pod's label or annotation `sidecar.istio.io/inject` is `false`.
    PodDisabled,
    /// It shares the node's network.
    HostNetwork,
    /// A namespace of the cluster itself.
    SystemNamespace,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAsked => "neither the namespace nor the pod is labelled for injection",
            Self::NamespaceDisabled => "the namespace's label istio-injection is not enabled",
            Self::PodDisabled => "the pod's sidecar.istio.io/inject is false",
            Self::HostNetwork => "the pod uses the network of its node",
            Self::SystemNamespace => "the namespace belongs to the cluster itself",
        })
    }
}

/// Decides by the labels of the namespace and the Pod. The Pod's namespace is taken from its metadata or, if not
/// set there yet, from the namespace's label `kubernetes.io/metadata.name`.
pub fn decide(namespace_labels: &Labels, pod: &Pod) -> Decision {
    let asked = match asked_revision(namespace_labels, pod) {
        Ok(revision) => revision,
        Err(reason) => return Decision::Skip(reason),
    };
    if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
        return Decision::Skip(SkipReason::HostNetwork);
    }
    let name = pod.metadata.namespace.as_deref().or(namespace_labels.get(NAMESPACE_NAME).map(String::as_str));
    if name.is_some_and(|name| IGNORED_NAMESPACES.contains(&name)) {
        return Decision::Skip(SkipReason::SystemNamespace);
    }
    // The label has been looked at; the deprecated annotation counts only without it, and can only refuse.
    let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(POD_INJECTION));
    if label(pod, POD_INJECTION).and_then(switch).is_none()
        && annotation.map(String::as_str).and_then(switch) == Some(false)
    {
        return Decision::Skip(SkipReason::PodDisabled);
    }
    Decision::Inject { revision: asked.unwrap_or(DEFAULT_REVISION).to_owned() }
}

/// What the selectors of Istio's webhooks let through: the revision, `None` for the default one.
fn asked_revision<'l>(namespace: &'l Labels, pod: &'l Pod) -> Result<Option<&'l str>, SkipReason> {
    let pod_label = label(pod, POD_INJECTION);
    if pod_label == Some("false") {
        return Err(SkipReason::PodDisabled);
    }
    let namespace_revision = namespace.get(REVISION).map(String::as_str);
    match (namespace.get(NAMESPACE_INJECTION).map(String::as_str), namespace_revision) {
        (Some("enabled"), _) => Ok(None),
        (Some(_), _) => Err(SkipReason::NamespaceDisabled),
        (None, Some(revision)) => Ok(Some(revision)),
        (None, None) => match (label(pod, REVISION), pod_label) {
            (Some(revision), _) => Ok(Some(revision)),
            (None, Some("true")) => Ok(None),
            (None, _) => Err(SkipReason::NotAsked),
        },
    }
}

fn label<'p>(pod: &'p Pod, name: &str) -> Option<&'p str> {
    pod.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// Only `true` and `false` count; anything else is unset (G-34).
fn switch(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, Option<&str>)]) -> Labels {
        pairs.iter().filter_map(|(k, v)| Some(((*k).to_owned(), (*v)?.to_owned()))).collect()
    }

    fn pod(labels: &Labels) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "a", "labels": labels}, "spec": {"containers": []}}),
        )
        .expect("a pod")
    }

    /// The table of reference mtls 7.5; `None` is an absent label.
    #[test]
    fn labels_decide_as_in_the_table() {
        const ON: Option<&str> = Some("enabled");
        const CANARY: Option<&str> = Some("canary");
        const YES: Option<&str> = Some("true");
        const NO: Option<&str> = Some("false");
        let rows = [
            (ON, None, None, None, Some("default")),
            (ON, CANARY, None, None, Some("default")),
            (ON, CANARY, YES, CANARY, Some("default")),
            (ON, None, NO, None, None),
            (ON, CANARY, NO, CANARY, None),
            (Some("disabled"), None, YES, None, None),
            (Some("disabled"), CANARY, YES, CANARY, None),
            (Some("maybe"), None, YES, None, None),
            (None, CANARY, None, None, CANARY),
            (None, CANARY, YES, Some("other"), CANARY),
            (None, CANARY, NO, None, None),
            (None, None, YES, None, Some("default")),
            (None, None, None, CANARY, CANARY),
            (None, None, YES, CANARY, CANARY),
            (None, None, NO, CANARY, None),
            (None, None, None, None, None),
            // G-34: anything but true and false counts as unset.
            (None, None, Some("yes"), None, None),
            (ON, None, Some("yes"), None, Some("default")),
            (None, Some("default"), None, None, Some("default")),
        ];
        for row in rows {
            let (injection, namespace_revision, pod_injection, pod_revision, expected) = row;
            let namespace = labels(&[(NAMESPACE_INJECTION, injection), (REVISION, namespace_revision)]);
            let pod = pod(&labels(&[(POD_INJECTION, pod_injection), (REVISION, pod_revision)]));
            let found = match decide(&namespace, &pod) {
                Decision::Inject { revision } => Some(revision),
                Decision::Skip(_) => None,
            };
            assert_eq!(found.as_deref(), expected, "{row:?}");
        }
    }

    #[test]
    fn annotations_can_only_refuse_and_labels_beat_them() {
        let decided = |namespace: &[(&str, Option<&str>)], label: Option<&str>, annotation: &str| {
            let mut pod = pod(&labels(&[(POD_INJECTION, label)]));
            pod.metadata.annotations = Some(labels(&[(POD_INJECTION, Some(annotation))]));
            matches!(decide(&labels(namespace), &pod), Decision::Inject { .. })
        };
        let enabled = [(NAMESPACE_INJECTION, Some("enabled"))];
        assert!(!decided(&enabled, None, "false"));
        assert!(decided(&enabled, Some("true"), "false"));
        assert!(decided(&enabled, None, "no"));
        assert!(!decided(&[], None, "true"));
    }

    #[test]
    fn host_network_and_system_namespaces_never_get_one() {
        let enabled = labels(&[(NAMESPACE_INJECTION, Some("enabled"))]);
        let mut host = pod(&Labels::new());
        if let Some(spec) = &mut host.spec {
            spec.host_network = Some(true);
        }
        assert_eq!(decide(&enabled, &host), Decision::Skip(SkipReason::HostNetwork));
        let mut system = pod(&Labels::new());
        system.metadata.namespace = Some("kube-system".to_owned());
        assert_eq!(decide(&enabled, &system), Decision::Skip(SkipReason::SystemNamespace));
        let named = labels(&[(NAMESPACE_INJECTION, Some("enabled")), (NAMESPACE_NAME, Some("kube-public"))]);
        assert_eq!(decide(&named, &pod(&Labels::new())), Decision::Skip(SkipReason::SystemNamespace));
    }
}
