//! What the proxy of a workload ought to hold, as the objects say.

use std::collections::BTreeMap;

use maille_config::istio::RequestAuthentication;
use maille_config::mtls::ResolvedMtls;
use maille_config::scope::Attachment;
use maille_core::PortProtocol;
use maille_policy::Authorization;

use crate::authz::authorization;
use crate::mesh::{Mesh, Settings};
use crate::resource::Resource;

/// Policy of one Pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Enforced {
    /// It has a sidecar; without one nothing of this is enforced.
    pub meshed: bool,
    /// Its ServiceAccount.
    pub account: String,
    /// What its ports accept.
    pub mtls: ResolvedMtls,
    /// Ports that Services declare, and a Service of each.
    pub ports: BTreeMap<u16, (PortProtocol, String)>,
    /// Policies that select it, by namespace and name.
    pub policies: Vec<Authorization>,
    /// RequestAuthentications that select it, by namespace and name.
    pub authentications: Vec<RequestAuthentication>,
}

/// What is enforced for a Pod among the objects; `None` if it is not there.
pub fn enforced(resources: &[Resource], settings: Settings, namespace: &str, pod: &str) -> Option<Enforced> {
    let mesh = Mesh::new(resources, settings);
    let (index, workload) = mesh
        .workloads
        .iter()
        .enumerate()
        .find(|(_, w)| w.is_pod() && w.namespace == namespace && w.resource.name() == pod)?;
    let mut ports = BTreeMap::new();
    for service in mesh.services_of(workload) {
        for port in service.ports.iter().filter(|port| port.is_tcp()) {
            if let Some(target) = port.target_of(workload) {
                ports.entry(target).or_insert_with(|| (port.protocol_class(), service.host()));
            }
        }
    }
    let selecting = mesh.policies.iter().filter(|policy| policy.workloads.contains(&index));
    let mut policies: Vec<Authorization> = selecting.map(|policy| authorization(&policy.object)).collect();
    policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let root = &mesh.settings.root_namespace;
    let mut authentications: Vec<RequestAuthentication> = mesh
        .request_authentications
        .iter()
        .filter(|typed| {
            let own = typed.resource.namespace().unwrap_or("default");
            let attachment = Attachment::from(&typed.object.spec);
            attachment.applies(own, root, (&workload.namespace, &workload.labels))
        })
        .map(|typed| typed.object.clone())
        .collect();
    authentications.sort_by_key(|one| (one.metadata.namespace.clone(), one.metadata.name.clone()));
    Some(Enforced {
        meshed: workload.meshed,
        account: workload.account.clone(),
        mtls: mesh.modes_of(index)?.clone(),
        ports,
        policies,
        authentications,
    })
}
