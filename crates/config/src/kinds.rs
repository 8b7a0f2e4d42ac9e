//! The kinds the mesh knows: one table, from which the embedded API, the command line and
//! [`crate::check()`] take names, versions and what is done with each.

/// What becomes of objects of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// One of Kubernetes' own, served and acted upon.
    Kubernetes,
    /// An Istio kind that is in force.
    Enforced,
    /// Known, not in force yet: refused, with [`Kind::reason`].
    Later,
    /// Known, and not going to be enforced: refused, with [`Kind::reason`].
    Never,
}

/// One kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Served versions, the preferred one first. All share one shape.
    pub versions: &'static [&'static str],
    /// `PeerAuthentication`.
    pub kind: &'static str,
    /// `peerauthentications`.
    pub plural: &'static str,
    /// `peerauthentication`.
    pub singular: &'static str,
    /// `pa`.
    pub short_names: &'static [&'static str],
    /// `kubectl get <category>` lists all kinds of it.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What becomes of its objects.
    pub enforcement: Enforcement,
    /// Why objects are refused; empty if they are not.
    pub reason: &'static str,
}

impl Kind {
    /// `group/version` of the preferred version, as it stands in `apiVersion`.
    pub fn api_version(&self) -> String {
        let version = self.versions.first().copied().unwrap_or_default();
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }
}

/// The kind that `apiVersion` and `kind` of an object name.
pub fn find(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = split_api_version(api_version);
    KINDS.iter().find(|k| k.group == group && k.kind == kind && k.versions.contains(&version))
}

/// The kind of a request path's group, version and plural name.
pub fn find_plural(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.group == group && k.plural == plural && k.versions.contains(&version))
}

/// The kind a person means by `pa`, `peerauthentication`, `PeerAuthentications` or
/// `peerauthentications.security.istio.io`.
pub fn find_name(name: &str) -> Option<&'static Kind> {
    let name = name.to_lowercase();
    KINDS.iter().find(|k| {
        k.plural == name
            || k.singular == name
            || k.short_names.contains(&name.as_str())
            || name.strip_prefix(k.plural).and_then(|rest| rest.strip_prefix('.')) == Some(k.group)
    })
}

/// Group and version of an `apiVersion`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

const SECURITY: &str = "security.istio.io";
const NETWORKING: &str = "networking.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";

const SECURITY_VERSIONS: &[&str] = &["v1", "v1beta1"];
const NETWORKING_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];

const fn kubernetes(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
) -> Kind {
    Kind {
        group,
        versions: &["v1"],
        kind,
        plural,
        singular,
        short_names,
        categories,
        namespaced: true,
        enforcement: Enforcement::Kubernetes,
        reason: "",
    }
}

const fn istio(
    (group, versions): (&'static str, &'static [&'static str]),
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short_names: &'static [&'static str],
    enforcement: Enforcement,
    reason: &'static str,
) -> Kind {
    Kind {
        group,
        versions,
        kind,
        plural,
        singular,
        short_names,
        categories: &["istio-io"],
        namespaced: true,
        enforcement,
        reason,
    }
}

const ROUTING: &str =
    "the mesh does not route by rules of its own: traffic goes where the application sent it";
const GATEWAYS: &str = "the mesh has no gateways";
const EXTENSIONS: &str = "it configures Envoy's inside, and the proxy of this mesh is not Envoy";

use Enforcement::{Enforced, Later, Never};

/// All of them. Short names and categories are those of Kubernetes and of Istio's CRDs.
pub static KINDS: &[Kind] = &[
    Kind { namespaced: false, ..kubernetes("", "Namespace", "namespaces", "namespace", &["ns"], &[]) },
    kubernetes("", "ServiceAccount", "serviceaccounts", "serviceaccount", &["sa"], &[]),
    kubernetes("", "Service", "services", "service", &["svc"], &["all"]),
    kubernetes("", "Pod", "pods", "pod", &["po"], &["all"]),
    kubernetes("", "ConfigMap", "configmaps", "configmap", &["cm"], &[]),
    kubernetes("", "Secret", "secrets", "secret", &[], &[]),
    kubernetes("", "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim", &["pvc"], &[]),
    kubernetes("", "Event", "events", "event", &["ev"], &[]),
    kubernetes("events.k8s.io", "Event", "events", "event", &["ev"], &[]),
    kubernetes("discovery.k8s.io", "EndpointSlice", "endpointslices", "endpointslice", &[], &[]),
    kubernetes("apps", "Deployment", "deployments", "deployment", &["deploy"], &["all"]),
    kubernetes("apps", "ReplicaSet", "replicasets", "replicaset", &["rs"], &["all"]),
    kubernetes("apps", "StatefulSet", "statefulsets", "statefulset", &["sts"], &["all"]),
    kubernetes("apps", "DaemonSet", "daemonsets", "daemonset", &["ds"], &["all"]),
    kubernetes("apps", "ControllerRevision", "controllerrevisions", "controllerrevision", &[], &[]),
    kubernetes("batch", "Job", "jobs", "job", &[], &["all"]),
    kubernetes("batch", "CronJob", "cronjobs", "cronjob", &["cj"], &["all"]),
    istio(
        (SECURITY, SECURITY_VERSIONS),
        "PeerAuthentication",
        "peerauthentications",
        "peerauthentication",
        &["pa"],
        Enforced,
        "",
    ),
    istio(
        (SECURITY, SECURITY_VERSIONS),
        "AuthorizationPolicy",
        "authorizationpolicies",
        "authorizationpolicy",
        &["ap"],
        Enforced,
        "",
    ),
    istio(
        (SECURITY, SECURITY_VERSIONS),
        "RequestAuthentication",
        "requestauthentications",
        "requestauthentication",
        &["ra"],
        Enforced,
        "",
    ),
    istio(
        (NETWORKING, NETWORKING_VERSIONS),
        "DestinationRule",
        "destinationrules",
        "destinationrule",
        &["dr"],
        Enforced,
        "",
    ),
    istio(
        (NETWORKING, NETWORKING_VERSIONS),
        "ServiceEntry",
        "serviceentries",
        "serviceentry",
        &["se"],
        Enforced,
        "",
    ),
    istio(
        (NETWORKING, NETWORKING_VERSIONS),
        "WorkloadEntry",
        "workloadentries",
        "workloadentry",
        &["we"],
        Enforced,
        "",
    ),
    istio((NETWORKING, NETWORKING_VERSIONS), "Sidecar", "sidecars", "sidecar", &[], Enforced, ""),
    istio(
        ("telemetry.istio.io", &["v1", "v1beta1", "v1alpha1"]),
        "Telemetry",
        "telemetries",
        "telemetry",
        &["telemetry"],
        Later,
        "it comes with the choice of metrics, access logs and traces",
    ),
    istio(
        (NETWORKING, NETWORKING_VERSIONS),
        "VirtualService",
        "virtualservices",
        "virtualservice",
        &["vs"],
        Never,
        ROUTING,
    ),
    istio((NETWORKING, NETWORKING_VERSIONS), "Gateway", "gateways", "gateway", &["gw"], Never, GATEWAYS),
    istio((NETWORKING, &["v1alpha3"]), "EnvoyFilter", "envoyfilters", "envoyfilter", &[], Never, EXTENSIONS),
    istio(
        ("extensions.istio.io", &["v1alpha1"]),
        "WasmPlugin",
        "wasmplugins",
        "wasmplugin",
        &[],
        Never,
        EXTENSIONS,
    ),
    Kind {
        categories: &["gateway-api"],
        ..istio(
            (GATEWAY_API, &["v1", "v1beta1"]),
            "HTTPRoute",
            "httproutes",
            "httproute",
            &[],
            Never,
            ROUTING,
        )
    },
    Kind {
        categories: &["gateway-api"],
        ..istio(
            (GATEWAY_API, &["v1", "v1beta1"]),
            "Gateway",
            "gateways",
            "gateway",
            &["gtw"],
            Never,
            GATEWAYS,
        )
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_every_name_people_use() {
        let expected = find("security.istio.io/v1beta1", "PeerAuthentication");
        assert!(expected.is_some());
        for name in
            ["pa", "PeerAuthentication", "peerauthentications", "peerauthentications.security.istio.io"]
        {
            assert_eq!(find_name(name), expected, "{name}");
        }
        assert_eq!(find_plural(SECURITY, "v1", "peerauthentications"), expected);
        assert_eq!(find("v1", "PeerAuthentication"), None);
        assert_eq!(find("security.istio.io/v1alpha1", "PeerAuthentication"), None);
        assert_eq!(find("apps/v1", "Deployment").map(Kind::api_version).as_deref(), Some("apps/v1"));
    }

    #[test]
    fn refused_kinds_say_why_and_no_name_is_taken_twice() {
        for (i, kind) in KINDS.iter().enumerate() {
            let refused = matches!(kind.enforcement, Later | Never);
            assert_eq!(refused, !kind.reason.is_empty(), "{}", kind.kind);
            for other in KINDS.iter().skip(i + 1) {
                assert!((kind.group, kind.plural) != (other.group, other.plural), "{}", kind.kind);
            }
        }
    }
}
