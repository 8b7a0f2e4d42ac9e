//! Authorization: a fixed table. The administrator may everything; the control plane what it needs; other
//! accounts look themselves up, and nothing else.

use maille_core::ROOT_NAMESPACE;

use super::certificates::MASTERS;
use crate::api::Caller;
use crate::request::Target;
use crate::status::ApiError;

/// The control plane's account.
const CONTROL_PLANE: &str = "istiod";
/// The account of the page beside a standalone mesh.
const DASHBOARD: &str = "maille-dashboard";

/// A question: may somebody do this?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// One line of the table: all of its lists must hold the asked value, `*` holds every one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant {
    pub(crate) verbs: &'static [&'static str],
    pub(crate) groups: &'static [&'static str],
    /// `plural` or `plural/subresource`.
    pub(crate) resources: &'static [&'static str],
    /// Empty: all.
    pub(crate) names: &'static [&'static str],
    /// Empty: all.
    pub(crate) namespaces: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "update", "patch", "delete", "get", "list", "watch"];
const ISTIO: &[&str] =
    &["security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io"];

/// What everyone who is authenticated may.
const SELF: &[Grant] = &[Grant {
    verbs: &["create"],
    groups: &["authorization.k8s.io", "authentication.k8s.io"],
    resources: &["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"],
    names: &[],
    namespaces: &[],
}];

/// What the control plane may besides.
const CONTROL: &[Grant] = &[
    Grant {
        verbs: READ,
        groups: &[""],
        resources: &["namespaces", "serviceaccounts", "services", "pods", "nodes", "events"],
        names: &[],
        namespaces: &[],
    },
    Grant {
        verbs: READ,
        groups: &["discovery.k8s.io", "apps"],
        resources: &["*"],
        names: &[],
        namespaces: &[],
    },
    Grant { verbs: READ, groups: ISTIO, resources: &["*"], names: &[], namespaces: &[] },
    Grant {
        verbs: &["get", "update", "patch"],
        groups: ISTIO,
        resources: &["*/status"],
        names: &[],
        namespaces: &[],
    },
    Grant {
        verbs: &["create"],
        groups: &["authentication.k8s.io"],
        resources: &["tokenreviews"],
        names: &[],
        namespaces: &[],
    },
    Grant {
        verbs: WRITE,
        groups: &[""],
        resources: &["secrets", "configmaps"],
        names: &[],
        namespaces: &[ROOT_NAMESPACE],
    },
    // Creation names no object yet: `create` is granted by name of the object in the body.
    Grant {
        verbs: WRITE,
        groups: &[""],
        resources: &["configmaps"],
        names: &["istio-ca-root-cert", "istio-ca-crl"],
        namespaces: &[],
    },
    Grant {
        verbs: &["create", "patch", "update"],
        groups: &["", "events.k8s.io"],
        resources: &["events"],
        names: &[],
        namespaces: &[],
    },
    Grant {
        verbs: WRITE,
        groups: &["coordination.k8s.io"],
        resources: &["leases"],
        names: &[],
        namespaces: &[ROOT_NAMESPACE],
    },
];

/// What the dashboard of a standalone mesh may besides: read who talks to whom, and list what there is.
const DASHBOARD_GRANTS: &[Grant] = &[
    Grant {
        verbs: &["get"],
        groups: &[""],
        resources: &["services/proxy"],
        names: &["istiod:15014"],
        namespaces: &[ROOT_NAMESPACE],
    },
    Grant { verbs: &["list"], groups: &[""], resources: &["pods", "services"], names: &[], namespaces: &[] },
    Grant { verbs: &["list"], groups: &["apps"], resources: &["deployments"], names: &[], namespaces: &[] },
];

/// The lines that hold for a caller.
pub(crate) fn grants(caller: &Caller) -> Vec<Grant> {
    let mut grants = Vec::new();
    if caller.is_in(MASTERS) {
        grants.push(Grant { verbs: &["*"], groups: &["*"], resources: &["*"], names: &[], namespaces: &[] });
    }
    if caller.is_in("system:authenticated") {
        grants.extend_from_slice(SELF);
    }
    if is_account(caller, CONTROL_PLANE) {
        grants.extend_from_slice(CONTROL);
    }
    if is_account(caller, DASHBOARD) {
        grants.extend_from_slice(DASHBOARD_GRANTS);
    }
    grants
}

/// Whether this is that account of the root namespace.
fn is_account(caller: &Caller, account: &str) -> bool {
    caller
        .name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .is_some_and(|(namespace, name)| namespace == ROOT_NAMESPACE && name == account)
}

/// Whether the caller may.
pub(crate) fn allows(caller: &Caller, asked: &Attributes<'_>) -> bool {
    grants(caller).iter().any(|grant| grant.holds(asked))
}

impl Grant {
    fn holds(&self, asked: &Attributes<'_>) -> bool {
        let has = |list: &[&str], value: &str| list.contains(&"*") || list.contains(&value);
        let resource = if asked.subresource.is_empty() {
            has(self.resources, asked.resource)
        } else {
            let full = format!("{}/{}", asked.resource, asked.subresource);
            let any = format!("*/{}", asked.subresource);
            self.resources.contains(&full.as_str())
                || self.resources.contains(&any.as_str())
                // `*` includes subresources for the administrator alone.
                || self.resources.contains(&"*") && self.verbs.contains(&"*")
        };
        has(self.verbs, asked.verb)
            && has(self.groups, asked.group)
            && resource
            && (self.names.is_empty() || self.names.contains(&asked.name))
            && (self.namespaces.is_empty() || self.namespaces.contains(&asked.namespace))
    }
}

/// 403 as Kubernetes words it.
pub(crate) fn refusal(caller: &Caller, target: &Target, asked: &Attributes<'_>) -> ApiError {
    let scope = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", asked.namespace)
    };
    let resource = if asked.subresource.is_empty() {
        asked.resource.to_owned()
    } else {
        format!("{}/{}", asked.resource, asked.subresource)
    };
    let why = format!(
        "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
        caller.name, asked.verb, asked.group
    );
    ApiError::forbidden(target.resource, asked.name, &why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(namespace: &str, name: &str) -> Caller {
        Caller {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            uid: String::new(),
            groups: vec!["system:authenticated".into()],
            extra: Vec::new(),
        }
    }

    fn asked<'a>(
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        Attributes { verb, group, resource, subresource: "", namespace, name }
    }

    #[test]
    fn the_control_plane_reads_the_mesh_and_writes_only_its_own() {
        let istiod = account("istio-system", "istiod");
        for (question, want) in [
            (asked("watch", "", "pods", "", ""), true),
            (asked("list", "security.istio.io", "peerauthentications", "", ""), true),
            (asked("create", "authentication.k8s.io", "tokenreviews", "", ""), true),
            (asked("get", "", "secrets", "istio-system", "istio-ca-secret"), true),
            (asked("get", "", "secrets", "production", "x"), false),
            (asked("list", "", "secrets", "", ""), false),
            (asked("patch", "", "configmaps", "production", "istio-ca-root-cert"), true),
            (asked("delete", "", "configmaps", "production", "istio-ca-crl"), true),
            (asked("patch", "", "configmaps", "production", "other"), false),
            (asked("delete", "", "pods", "production", "x"), false),
            (asked("create", "security.istio.io", "authorizationpolicies", "a", "x"), false),
        ] {
            assert_eq!(allows(&istiod, &question), want, "{question:?}");
        }
        let token = Attributes { subresource: "token", ..asked("create", "", "serviceaccounts", "a", "b") };
        assert!(!allows(&istiod, &token), "nobody's tokens");
    }

    #[test]
    fn the_dashboard_reads_the_flows_and_lists_what_there_is() {
        let dashboard = account("istio-system", "maille-dashboard");
        let proxy = |verb, namespace, name| Attributes {
            subresource: "proxy",
            ..asked(verb, "", "services", namespace, name)
        };
        for (question, want) in [
            (proxy("get", "istio-system", "istiod:15014"), true),
            (proxy("create", "istio-system", "istiod:15014"), false),
            (proxy("get", "istio-system", "istiod:15010"), false),
            (proxy("get", "production", "istiod:15014"), false),
            (asked("list", "", "pods", "", ""), true),
            (asked("list", "apps", "deployments", "", ""), true),
            (asked("watch", "", "pods", "", ""), false),
            (asked("get", "", "pods", "production", "x"), false),
            (asked("list", "", "secrets", "", ""), false),
            (asked("get", "", "configmaps", "istio-system", "x"), false),
            (asked("delete", "", "pods", "production", "x"), false),
        ] {
            assert_eq!(allows(&dashboard, &question), want, "{question:?}");
        }
        assert!(!allows(&account("production", "maille-dashboard"), &asked("list", "", "pods", "", "")));
    }

    #[test]
    fn other_accounts_may_nothing_but_ask_about_themselves() {
        let account = account("production", "cart");
        assert!(!allows(&account, &asked("get", "", "pods", "production", "x")));
        assert!(!allows(&account, &asked("create", "authentication.k8s.io", "tokenreviews", "", "")));
        assert!(allows(
            &account,
            &asked("create", "authorization.k8s.io", "selfsubjectaccessreviews", "", "")
        ));
        // Nor does a user who only looks like the control plane.
        assert!(!allows(
            &self::account("production", "istiod"),
            &asked("get", "", "secrets", "istio-system", "x")
        ));
    }
}
