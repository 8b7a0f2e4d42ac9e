//! The resources that are served: the mesh's kinds ([`maille_config::kinds`]) and the few more that
//! an API server has of itself (nodes, leases, reviews).

use std::sync::LazyLock;

use maille_config::kinds::{Enforcement, KINDS, Kind};

/// How a resource can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Stored objects with all verbs.
    Stored,
    /// Answered at once, never stored: `create` alone.
    Review,
}

/// One resource of the API.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Served versions, preferred first; objects are stored in the first.
    pub versions: &'static [&'static str],
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short_names: &'static [&'static str],
    /// `all`, …
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    pub(crate) shape: Shape,
    pub(crate) enforcement: Enforcement,
    pub(crate) subresources: &'static [Subresource],
    /// Where objects are stored; two resources with one store are two views of the same objects.
    pub(crate) store: String,
}

/// A subresource as discovery lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) verbs: &'static [&'static str],
}

const UPDATE: &[&str] = &["get", "patch", "update"];
const CONNECT: &[&str] = &["create", "delete", "get", "patch", "update"];

const fn sub(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, kind, group: "", version: "v1", verbs }
}

const fn status(group: &'static str, kind: &'static str) -> Subresource {
    Subresource { name: "status", kind, group, version: "v1", verbs: UPDATE }
}

const fn scale() -> Subresource {
    Subresource { name: "scale", kind: "Scale", group: "autoscaling", version: "v1", verbs: UPDATE }
}

/// Subresources by (group, plural).
fn subresources(group: &str, plural: &str) -> &'static [Subresource] {
    match (group, plural) {
        ("", "namespaces") => const { &[status("", "Namespace"), sub("finalize", "Namespace", &["update"])] },
        ("", "nodes") => const { &[status("", "Node")] },
        ("", "pods") => {
            const {
                &[
                    status("", "Pod"),
                    sub("log", "Pod", &["get"]),
                    sub("proxy", "PodProxyOptions", CONNECT),
                    sub("binding", "Binding", &["create"]),
                ]
            }
        }
        ("", "services") => const { &[status("", "Service"), sub("proxy", "ServiceProxyOptions", CONNECT)] },
        ("", "serviceaccounts") => {
            const {
                &[Subresource {
                    name: "token",
                    kind: "TokenRequest",
                    group: "authentication.k8s.io",
                    version: "v1",
                    verbs: &["create"],
                }]
            }
        }
        ("apps", "deployments") => const { &[status("apps", "Deployment"), scale()] },
        ("apps", "replicasets") => const { &[status("apps", "ReplicaSet"), scale()] },
        ("apps", "statefulsets") => const { &[status("apps", "StatefulSet"), scale()] },
        ("apps", "daemonsets") => const { &[status("apps", "DaemonSet")] },
        ("batch", "jobs") => const { &[status("batch", "Job")] },
        ("batch", "cronjobs") => const { &[status("batch", "CronJob")] },
        ("", "persistentvolumeclaims") => const { &[status("", "PersistentVolumeClaim")] },
        ("security.istio.io" | "networking.istio.io" | "telemetry.istio.io", _) => {
            // The kind is the resource's own; discovery fills it in.
            const { &[Subresource { name: "status", kind: "", group: "", version: "", verbs: UPDATE }] }
        }
        _ => &[],
    }
}

impl Resource {
    fn from_kind(kind: &Kind) -> Self {
        Self {
            group: kind.group,
            versions: kind.versions,
            kind: kind.kind,
            plural: kind.plural,
            singular: kind.singular,
            short_names: kind.short_names,
            categories: kind.categories,
            namespaced: kind.namespaced,
            shape: Shape::Stored,
            enforcement: kind.enforcement,
            subresources: subresources(kind.group, kind.plural),
            // Events of both groups are the same objects.
            store: if kind.plural == "events" {
                "events".to_owned()
            } else {
                crate::status::qualified(kind.plural, kind.group)
            },
        }
    }

    fn own(group: &'static str, kind: &'static str, plural: &'static str, singular: &'static str) -> Self {
        Self {
            group,
            versions: &["v1"],
            kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced: false,
            shape: Shape::Stored,
            enforcement: Enforcement::Kubernetes,
            subresources: subresources(group, plural),
            store: crate::status::qualified(plural, group),
        }
    }

    fn review(group: &'static str, kind: &'static str, plural: &'static str, singular: &'static str) -> Self {
        Self { shape: Shape::Review, ..Self::own(group, kind, plural, singular) }
    }

    /// `apiVersion` of this resource in `version`.
    pub(crate) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// `apiVersion` of what is stored.
    pub(crate) fn storage_version(&self) -> String {
        self.api_version(self.versions.first().copied().unwrap_or("v1"))
    }

    /// Whether this is `plural` of `group`.
    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// Whether `status` is written apart from the rest.
    pub(crate) fn has_status(&self) -> bool {
        self.subresources.iter().any(|s| s.name == "status")
    }

    /// Whether it is one of Kubernetes' own kinds, as opposed to a custom one.
    pub(crate) fn is_kubernetes(&self) -> bool {
        self.enforcement == Enforcement::Kubernetes
    }

    /// Verbs as discovery lists them.
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        match self.shape {
            Shape::Review => &["create"],
            Shape::Stored => {
                &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            }
        }
    }
}

/// All resources. Built once; the order is that of discovery.
pub(crate) fn all() -> &'static [Resource] {
    static ALL: LazyLock<Vec<Resource>> = LazyLock::new(|| {
        let mut all: Vec<Resource> = KINDS.iter().map(Resource::from_kind).collect();
        let extra = [
            Resource { short_names: &["no"], ..Resource::own("", "Node", "nodes", "node") },
            Resource { namespaced: true, ..Resource::own("coordination.k8s.io", "Lease", "leases", "lease") },
            Resource::review("authentication.k8s.io", "TokenReview", "tokenreviews", "tokenreview"),
            Resource::review(
                "authentication.k8s.io",
                "SelfSubjectReview",
                "selfsubjectreviews",
                "selfsubjectreview",
            ),
            Resource::review(
                "authorization.k8s.io",
                "SelfSubjectAccessReview",
                "selfsubjectaccessreviews",
                "selfsubjectaccessreview",
            ),
            Resource::review(
                "authorization.k8s.io",
                "SubjectAccessReview",
                "subjectaccessreviews",
                "subjectaccessreview",
            ),
            Resource::review(
                "authorization.k8s.io",
                "SelfSubjectRulesReview",
                "selfsubjectrulesreviews",
                "selfsubjectrulesreview",
            ),
        ];
        for resource in extra {
            if !all.iter().any(|r| r.is(resource.group, resource.plural)) {
                all.push(resource);
            }
        }
        all
    });
    &ALL
}

/// The resource at a request path.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    all().iter().find(|r| r.is(group, plural) && r.versions.contains(&version))
}

/// The resource of this group and plural name, in any version.
pub(crate) fn by_name(group: &str, plural: &str) -> Option<&'static Resource> {
    all().iter().find(|r| r.is(group, plural))
}

/// The resource of an owner reference or the like.
pub(crate) fn by_kind(group: &str, kind: &str) -> Option<&'static Resource> {
    all().iter().find(|r| r.group == group && r.kind == kind && r.shape == Shape::Stored)
}

/// Group names in order of discovery with their versions, preferred first; the core group is left out.
pub(crate) fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for resource in all().iter().filter(|r| !r.group.is_empty()) {
        match groups.iter_mut().find(|(g, _)| *g == resource.group) {
            Some((_, versions)) => {
                for version in resource.versions {
                    if !versions.contains(version) {
                        versions.push(version);
                    }
                }
            }
            None => groups.push((resource.group, resource.versions.to_vec())),
        }
    }
    groups
}
