//! What belongs to the sidecar: its names, its user, its volumes.
//!
//! The redirection leaves traffic of user and group 1337 alone, and the sidecar's volumes hold its key: a
//! container that got at either would be outside the mesh, or could be somebody else inside it.

use maille_config::k8s::api::core::v1::{Container, Pod, PodSpec, SecurityContext, VolumeMount};
use maille_core::ports::PROXY_UID;

use crate::InjectError;
use crate::sidecar::{INIT_CONTAINER, SIDECAR_CONTAINER, VOLUMES};

/// Refuses a submitted Pod, injected or not, that claims what is the sidecar's own.
pub fn forbid_reserved(pod: &Pod) -> Result<(), InjectError> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    check_pod_ids(spec)?;
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        if VOLUMES.contains(&volume.name.as_str()) {
            return Err(reserved_name(format!("spec.volumes[{i}].name"), &volume.name));
        }
    }
    for (i, container) in spec.init_containers.iter().flatten().enumerate() {
        check_container(&format!("spec.initContainers[{i}]"), container)?;
    }
    for (i, container) in spec.containers.iter().enumerate() {
        check_container(&format!("spec.containers[{i}]"), container)?;
    }
    for (i, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = format!("spec.ephemeralContainers[{i}]");
        check_name(&path, &container.name)?;
        check_ids(&path, container.security_context.as_ref())?;
        check_mounts(&path, container.volume_mounts.as_deref())?;
    }
    Ok(())
}

fn check_pod_ids(spec: &PodSpec) -> Result<(), InjectError> {
    let Some(context) = &spec.security_context else { return Ok(()) };
    let single = [
        ("runAsUser", context.run_as_user),
        ("runAsGroup", context.run_as_group),
        ("fsGroup", context.fs_group),
    ];
    for (field, id) in single {
        check_id(|| format!("spec.securityContext.{field}"), id)?;
    }
    for (i, id) in context.supplemental_groups.iter().flatten().enumerate() {
        check_id(|| format!("spec.securityContext.supplementalGroups[{i}]"), Some(*id))?;
    }
    Ok(())
}

fn check_container(path: &str, container: &Container) -> Result<(), InjectError> {
    check_name(path, &container.name)?;
    check_ids(path, container.security_context.as_ref())?;
    check_mounts(path, container.volume_mounts.as_deref())
}

fn check_name(path: &str, name: &str) -> Result<(), InjectError> {
    if [SIDECAR_CONTAINER, INIT_CONTAINER].contains(&name) {
        return Err(reserved_name(format!("{path}.name"), name));
    }
    Ok(())
}

fn check_ids(path: &str, context: Option<&SecurityContext>) -> Result<(), InjectError> {
    let Some(context) = context else { return Ok(()) };
    check_id(|| format!("{path}.securityContext.runAsUser"), context.run_as_user)?;
    check_id(|| format!("{path}.securityContext.runAsGroup"), context.run_as_group)
}

fn check_id(path: impl Fn() -> String, id: Option<i64>) -> Result<(), InjectError> {
    // User ids have 32 bits: what comes out the same after truncation is the same user.
    let is_proxy = |id: i64| id.rem_euclid(1 << 32) == i64::from(PROXY_UID);
    if id.is_some_and(is_proxy) { Err(InjectError::ReservedId { path: path() }) } else { Ok(()) }
}

/// A mount of a volume that only injection will add.
fn check_mounts(path: &str, mounts: Option<&[VolumeMount]>) -> Result<(), InjectError> {
    for (i, mount) in mounts.unwrap_or_default().iter().enumerate() {
        if VOLUMES.contains(&mount.name.as_str()) {
            return Err(reserved_name(format!("{path}.volumeMounts[{i}].name"), &mount.name));
        }
    }
    Ok(())
}

fn reserved_name(path: String, name: &str) -> InjectError {
    InjectError::ReservedName { path, name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn refusal(spec: Value) -> Option<String> {
        let pod = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec})).expect("a pod");
        forbid_reserved(&pod).err().map(|e| e.to_string())
    }

    #[test]
    fn what_is_the_sidecars_own_is_refused_wherever_it_is_claimed() {
        let app = json!([{"name": "app"}]);
        let cases = [
            ("spec.containers[1].name", json!({"containers": [{"name": "app"}, {"name": "istio-proxy"}]})),
            (
                "spec.initContainers[0].name",
                json!({"containers": app, "initContainers": [{"name": "istio-init"}]}),
            ),
            (
                "spec.ephemeralContainers[0].name",
                json!({"containers": app, "ephemeralContainers": [{"name": "istio-proxy"}]}),
            ),
            (
                "spec.securityContext.runAsUser",
                json!({"containers": app, "securityContext": {"runAsUser": 1337}}),
            ),
            (
                "spec.securityContext.runAsGroup",
                json!({"containers": app, "securityContext": {"runAsGroup": 1337}}),
            ),
            (
                "spec.securityContext.fsGroup",
                json!({"containers": app, "securityContext": {"fsGroup": 1337}}),
            ),
            (
                "spec.securityContext.supplementalGroups[1]",
                json!({"containers": app, "securityContext": {"supplementalGroups": [1, 1337]}}),
            ),
            (
                "spec.containers[0].securityContext.runAsUser",
                json!({"containers": [{"name": "app", "securityContext": {"runAsUser": 1337}}]}),
            ),
            (
                "spec.containers[0].securityContext.runAsUser",
                json!({"containers": [{"name": "app", "securityContext": {"runAsUser": 4_294_968_633_i64}}]}),
            ),
            (
                "spec.initContainers[0].securityContext.runAsGroup",
                json!({"containers": app, "initContainers": [{"name": "i", "securityContext": {"runAsGroup": 1337}}]}),
            ),
            (
                "spec.containers[0].volumeMounts[0].name",
                json!({"containers": [{"name": "app", "volumeMounts": [{"name": "workload-state", "mountPath": "/x"}]}]}),
            ),
            (
                "spec.volumes[0].name",
                json!({"containers": app, "volumes": [{"name": "istio-token", "emptyDir": {}}]}),
            ),
        ];
        for (path, spec) in cases {
            let found = refusal(spec.clone());
            assert!(found.as_deref().is_some_and(|m| m.starts_with(path)), "{path}: {found:?}");
        }
    }

    #[test]
    fn ordinary_pods_pass() {
        assert_eq!(
            refusal(json!({"containers": [{"name": "app", "securityContext": {"runAsUser": 1000}}]})),
            None
        );
    }
}
