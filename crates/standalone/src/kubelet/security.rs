//! The user a container runs as, and what is refused.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Container, Pod};
use maille_core::ports::PROXY_UID;
use maille_net::sandbox::Capabilities;

use crate::address::pod_uid;

/// The injected sidecar's name.
pub(crate) const PROXY: &str = "istio-proxy";
/// The injected installer's name.
pub(crate) const INIT: &str = "istio-init";
/// Set by injection; admission keeps users from naming containers as injection does.
const INJECTED: &str = "sidecar.istio.io/status";

/// User, groups and rights of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) capabilities: Capabilities,
}

/// Whether a container was put there by injection.
pub(crate) fn is_injected(pod: &Pod, container: &Container) -> bool {
    matches!(container.name.as_str(), PROXY | INIT)
        && pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(INJECTED))
}

/// What the manifest asks for, or why this node does not do it.
pub(crate) fn credentials(
    pod: &Pod,
    container: &Container,
    address: Ipv4Addr,
) -> Result<Credentials, String> {
    let injected = is_injected(pod, container);
    let pod_context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let context = container.security_context.as_ref();
    let id = |what: &str, value: Option<i64>| match value.map(u32::try_from).transpose() {
        Ok(id) => Ok(id),
        Err(_) => Err(format!("{what} {} is out of range", value.unwrap_or_default())),
    };
    if injected && container.name == INIT {
        // Root's user number without root's rights: one capability, one program, checked again by the sandbox.
        return Ok(Credentials { uid: 0, gid: 0, groups: vec![], capabilities: Capabilities::Intercept });
    }
    let user = id(
        "runAsUser",
        context.and_then(|c| c.run_as_user).or_else(|| pod_context.and_then(|c| c.run_as_user)),
    )?;
    let group = id(
        "runAsGroup",
        context.and_then(|c| c.run_as_group).or_else(|| pod_context.and_then(|c| c.run_as_group)),
    )?;
    let fallback = if injected { PROXY_UID } else { pod_uid(address) };
    let uid = user.unwrap_or(fallback);
    // Kubernetes would take group 0 with a user of one's own choice; nothing here is root's.
    let gid = group.unwrap_or(uid);
    let mut groups = Vec::new();
    if let Some(context) = pod_context {
        for value in context.supplemental_groups.iter().flatten().copied().chain(context.fs_group) {
            groups.extend(id("a group", Some(value))?);
        }
    }
    if uid == 0 || gid == 0 || groups.contains(&0) {
        return Err("the container asks to run as root (user or group 0), which this node does not allow; \
                    set securityContext.runAsUser to another number or leave it out"
            .to_owned());
    }
    if !injected && (uid == PROXY_UID || gid == PROXY_UID || groups.contains(&PROXY_UID)) {
        return Err(format!(
            "user and group {PROXY_UID} are the sidecar's, no other container may have them"
        ));
    }
    if let Some(context) = context {
        if context.privileged == Some(true) || context.allow_privilege_escalation == Some(true) && injected {
            return Err("privileged containers are not supported".to_owned());
        }
        let added = context.capabilities.iter().flat_map(|c| c.add.iter().flatten());
        // Every port may be bound without it here.
        if let Some(capability) =
            added.into_iter().find(|capability| capability.as_str() != "NET_BIND_SERVICE")
        {
            return Err(format!("capability {capability} is not granted on this node"));
        }
    }
    Ok(Credentials { uid, gid, groups, capabilities: Capabilities::None })
}

/// What no Pod may ask of this node.
pub(crate) fn refused_pod_field(pod: &Pod) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    [
        (spec.host_network, "hostNetwork"),
        (spec.host_pid, "hostPID"),
        (spec.host_ipc, "hostIPC"),
        (spec.share_process_namespace, "shareProcessNamespace"),
    ]
    .into_iter()
    .find_map(|(set, name)| (set == Some(true)).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn of(pod: &Pod) -> Result<Credentials, String> {
        credentials(pod, &pod.spec.as_ref().unwrap().containers[0], Ipv4Addr::new(10, 244, 1, 2))
    }

    #[test]
    fn users_are_the_pods_own_unless_named() {
        let plain = pod(serde_json::json!({"spec": {"containers": [{"name": "c"}]}}));
        assert_eq!(of(&plain).unwrap().uid, 100_258);
        let named = pod(serde_json::json!({"spec": {"securityContext": {"runAsUser": 1000, "fsGroup": 7},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 2000}}]}}));
        let credentials = of(&named).unwrap();
        assert_eq!((credentials.uid, credentials.gid, credentials.groups), (2000, 2000, vec![7]));
    }

    #[test]
    fn root_the_sidecars_user_and_capabilities_are_refused() {
        for context in [
            serde_json::json!({"runAsUser": 0}),
            serde_json::json!({"runAsGroup": 0}),
            serde_json::json!({"runAsUser": 1337}),
            serde_json::json!({"runAsGroup": 1337}),
            serde_json::json!({"privileged": true}),
            serde_json::json!({"capabilities": {"add": ["NET_ADMIN"]}}),
            serde_json::json!({"runAsUser": -1}),
        ] {
            let pod = pod(
                serde_json::json!({"spec": {"containers": [{"name": "istio-proxy", "securityContext": context}]}}),
            );
            assert!(of(&pod).is_err(), "{context}");
        }
        let groups = pod(
            serde_json::json!({"spec": {"securityContext": {"supplementalGroups": [1337]}, "containers": [{"name": "c"}]}}),
        );
        assert!(of(&groups).is_err());
    }

    #[test]
    fn the_injected_sidecar_is_1337() {
        let meta = serde_json::json!({"annotations": {"sidecar.istio.io/status": "{}"}});
        let injected =
            pod(serde_json::json!({"metadata": meta, "spec": {"containers": [{"name": "istio-proxy"}]}}));
        assert_eq!(of(&injected).unwrap().uid, 1337);
    }
}
