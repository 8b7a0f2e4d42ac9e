//! Which policies apply to a workload (reference authorization 2).

use maille_core::Labels;

use crate::istio::{AuthorizationPolicySpec, RequestAuthenticationSpec, TargetRef, WorkloadSelector};

/// Label that makes a workload a gateway of the Gateway API (2.3).
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Label that says which class of gateway it is.
const GATEWAY_CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";

/// The class of waypoints, which only targets choose.
const WAYPOINT: &str = "istio-waypoint";

/// What a policy of the security group is attached to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    selector: Option<WorkloadSelector>,
    targets: Vec<TargetRef>,
}

impl Attachment {
    fn new(
        selector: Option<&WorkloadSelector>,
        refs: Option<&Vec<TargetRef>>,
        single: Option<&TargetRef>,
    ) -> Self {
        // The single form counts only where the list is empty (reference authorization 1).
        let targets = match refs {
            Some(refs) if !refs.is_empty() => refs.clone(),
            _ => single.cloned().into_iter().collect(),
        };
        Self { selector: selector.cloned(), targets }
    }

    /// Whether it is attached to gateways or services rather than to workloads.
    pub fn has_targets(&self) -> bool {
        !self.targets.is_empty()
    }

    /// Whether a policy of `namespace`, so attached, applies to a workload.
    pub fn applies(&self, namespace: &str, root_namespace: &str, workload: (&str, &Labels)) -> bool {
        let (workload_namespace, labels) = workload;
        if namespace != workload_namespace && namespace != root_namespace {
            return false;
        }
        let gateway = labels.get(GATEWAY_NAME);
        let is_waypoint = labels.get(GATEWAY_CLASS).is_some_and(|class| class == WAYPOINT);
        if self.has_targets() {
            let own = |target: &TargetRef| match target.kind.as_str() {
                "Gateway" => namespace == workload_namespace && gateway == Some(&target.name),
                "GatewayClass" => is_waypoint && namespace == root_namespace && target.name == WAYPOINT,
                // A service's policies are its waypoint's business, and the mesh has no waypoints.
                _ => false,
            };
            return gateway.is_some() && self.targets.iter().any(own);
        }
        if gateway.is_some() && is_waypoint {
            return false;
        }
        let pairs = self.selector.iter().flat_map(|selector| &selector.match_labels);
        pairs.into_iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl From<&AuthorizationPolicySpec> for Attachment {
    fn from(spec: &AuthorizationPolicySpec) -> Self {
        Self::new(spec.selector.as_ref(), spec.target_refs.as_ref(), spec.target_ref.as_ref())
    }
}

impl From<&RequestAuthenticationSpec> for Attachment {
    fn from(spec: &RequestAuthenticationSpec) -> Self {
        Self::new(spec.selector.as_ref(), spec.target_refs.as_ref(), spec.target_ref.as_ref())
    }
}
