//! IST0144: applications that run as the sidecar's user, whose traffic is never redirected.

use maille_config::k8s::api::core::v1::PodSpec;
use maille_core::ports::PROXY_UID;
use maille_inject::SIDECAR_CONTAINER;

use crate::code::INVALID_APPLICATION_UID;
use crate::mesh::Mesh;
use crate::report::Report;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for workload in &mesh.workloads {
        let path = workload.pod.spec.as_ref().and_then(field);
        let (Some(path), Some(subject)) = (path, workload.subject()) else { continue };
        let text = format!(
            "user {PROXY_UID} is the sidecar's own: what an application sends as that user bypasses the mesh, in plaintext \
             and without policy; choose another number"
        );
        report.add(&INVALID_APPLICATION_UID, subject, &workload.field(&path), text);
    }
}

/// The field that says so.
fn field(spec: &PodSpec) -> Option<String> {
    let own = Some(i64::from(PROXY_UID));
    if spec.security_context.as_ref().and_then(|context| context.run_as_user) == own {
        return Some("spec.securityContext.runAsUser".to_owned());
    }
    let init = spec.init_containers.iter().flatten().enumerate().map(|(i, c)| ("initContainers", i, c));
    let all = spec.containers.iter().enumerate().map(|(i, c)| ("containers", i, c)).chain(init);
    let mut own_user = all.filter(|(_, _, container)| {
        let user = container.security_context.as_ref().and_then(|context| context.run_as_user);
        user == own && container.name != SIDECAR_CONTAINER
    });
    own_user.next().map(|(list, i, _)| format!("spec.{list}[{i}].securityContext.runAsUser"))
}
