use maille_core::{CLUSTER_DOMAIN, Labels, PortProtocol, Selector};
use serde_json::Value;

use super::Workload;
use crate::resource::{Resource, text_map};

/// A Service of Kubernetes.
#[derive(Debug)]
pub(crate) struct Service<'r> {
    /// The object.
    pub(crate) resource: &'r Resource,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Absent or empty: its endpoints are written by hand.
    selector: Selector,
    /// Its ports.
    pub(crate) ports: Vec<ServicePort>,
    /// It stands for a name outside of the cluster.
    pub(crate) external_name: bool,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServicePort {
    /// Position in `spec.ports`.
    pub(crate) index: usize,
    /// Its name.
    pub(crate) name: Option<String>,
    /// `appProtocol`.
    pub(crate) app_protocol: Option<String>,
    /// `TCP`, `UDP`, `SCTP`.
    pub(crate) transport: String,
    /// What clients dial.
    pub(crate) number: u16,
    /// Where they arrive.
    pub(crate) target: TargetPort,
}

/// `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a container's port.
    Name(String),
}

impl std::fmt::Display for TargetPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl Service<'_> {
    /// `cart.shop.svc.cluster.local`.
    pub(crate) fn host(&self) -> String {
        format!("{}.{}.svc.{CLUSTER_DOMAIN}", self.name, self.namespace)
    }

    /// Whether its traffic goes to a workload.
    pub(crate) fn selects(&self, workload: &Workload<'_>) -> bool {
        self.namespace == workload.namespace && self.selects_labels(&workload.labels)
    }

    /// Whether its traffic goes to workloads of its namespace with these labels.
    pub(crate) fn selects_labels(&self, labels: &Labels) -> bool {
        !self.selector.is_empty() && self.selector.selects(labels)
    }
}

impl ServicePort {
    /// Carried by the mesh.
    pub(crate) fn is_tcp(&self) -> bool {
        self.transport == "TCP"
    }

    /// How its bytes are to be understood.
    pub(crate) fn protocol_class(&self) -> PortProtocol {
        PortProtocol::of_port(self.app_protocol.as_deref(), self.name.as_deref(), self.number)
    }

    /// The port of a workload's Pods where it arrives.
    pub(crate) fn target_of(&self, workload: &Workload<'_>) -> Option<u16> {
        match &self.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => {
                let named = workload.ports.iter().find(|port| port.name.as_ref() == Some(name));
                named.map(|port| port.number)
            }
        }
    }
}

pub(super) fn all(resources: &[Resource]) -> Vec<Service<'_>> {
    let services = resources.iter().filter(|r| r.kind() == "Service" && r.group().is_empty());
    services
        .map(|resource| {
            let spec = &resource.value["spec"];
            let ports = spec["ports"].as_array().into_iter().flatten().enumerate();
            Service {
                resource,
                namespace: resource.namespace().unwrap_or("default").to_owned(),
                name: resource.name().to_owned(),
                selector: Selector::new(text_map(spec.get("selector"))),
                ports: ports.filter_map(|(index, port)| read_port(index, port)).collect(),
                external_name: spec["type"] == "ExternalName",
            }
        })
        .collect()
}

fn read_port(index: usize, port: &Value) -> Option<ServicePort> {
    let text = |field: &str| port[field].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let number = u16::try_from(port["port"].as_u64()?).ok()?;
    let target = match &port["targetPort"] {
        Value::Number(target) => {
            TargetPort::Number(u16::try_from(target.as_u64()?).ok().filter(|n| *n > 0).unwrap_or(number))
        }
        Value::String(name) if !name.is_empty() => match name.parse() {
            Ok(number) => TargetPort::Number(number),
            Err(_) => TargetPort::Name(name.clone()),
        },
        _ => TargetPort::Number(number),
    };
    Some(ServicePort {
        index,
        name: text("name"),
        app_protocol: text("appProtocol"),
        transport: text("protocol").unwrap_or_else(|| "TCP".to_owned()),
        number,
        target,
    })
}
