//! The objects that every mesh begins with.
//!
//! The API itself makes its namespaces, its Service and the node. Here are the Service `kube-dns`, whose endpoint
//! is the API process on the node, and the control plane: an ordinary Deployment, so that it is restarted,
//! shown and read like everything else.

use std::net::Ipv4Addr;

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use maille_config::k8s::api::apps::v1::Deployment;
use maille_config::k8s::api::core::v1::{
    ConfigMap, Namespace, PersistentVolumeClaim, Service, ServiceAccount,
};
use maille_config::k8s::api::discovery::v1::EndpointSlice;
use maille_config::mesh::{CONFIG_KEY, CONFIG_MAP};
use maille_core::{ROOT_NAMESPACE, ports};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::address::BINARY_IN_CONTAINERS;

/// The configuration that a mesh begins with: the defaults, with what they mean.
const MESH_CONFIGURATION: &str = include_str!("mesh.yaml");

/// The claim with the log of what the authority issues and refuses, and where the control plane sees it.
const AUDIT_CLAIM: &str = "istiod-audit";
const AUDIT_DIRECTORY: &str = "/var/lib/maille/audit";

/// Where the parts of the node answer.
#[derive(Debug, Clone)]
pub struct BuiltinOptions {
    /// The node's address on the bridge.
    pub node_address: Ipv4Addr,
    /// Virtual address of the Service `kube-dns`.
    pub dns_service: Ipv4Addr,
}

/// Creates the namespace of the control plane, which the rest of it lives in.
///
/// # Errors
/// What the API refuses, with the object's name.
pub async fn apply_namespace(client: &Client) -> Result<(), BuiltinError> {
    let namespace = json!({"metadata": {"name": ROOT_NAMESPACE}});
    ensure::<Namespace>(Api::all(client.clone()), namespace).await
}

/// Creates what is missing and brings the rest up to date.
///
/// # Errors
/// What the API refuses, with the object's name.
pub async fn apply(client: &Client, options: &BuiltinOptions) -> Result<(), BuiltinError> {
    apply_namespace(client).await?;
    ensure::<Service>(Api::namespaced(client.clone(), "kube-system"), dns_service(options)).await?;
    ensure::<EndpointSlice>(Api::namespaced(client.clone(), "kube-system"), dns_endpoints(options)).await?;
    create_missing::<ConfigMap>(Api::namespaced(client.clone(), ROOT_NAMESPACE), mesh_configuration())
        .await?;
    create_missing::<PersistentVolumeClaim>(Api::namespaced(client.clone(), ROOT_NAMESPACE), audit_claim())
        .await?;
    let account = json!({"metadata": {"name": "istiod", "namespace": ROOT_NAMESPACE}});
    ensure::<ServiceAccount>(Api::namespaced(client.clone(), ROOT_NAMESPACE), account).await?;
    ensure::<Service>(Api::namespaced(client.clone(), ROOT_NAMESPACE), control_service()).await?;
    ensure::<Deployment>(Api::namespaced(client.clone(), ROOT_NAMESPACE), control_plane()).await
}

/// The API refused one of the objects.
#[derive(Debug, thiserror::Error)]
#[error("cannot create the built-in {kind} '{name}'")]
pub struct BuiltinError {
    kind: String,
    name: String,
    source: Box<kube::Error>,
}

async fn ensure<K>(api: Api<K>, object: Value) -> Result<(), BuiltinError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    if create_missing(api.clone(), object.clone()).await? {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(object)).await;
    patched.map(|_| ()).map_err(|error| failed::<K>(&name, error))
}

/// Creates an object that is not there; whether it was not. One that is there belongs to people.
async fn create_missing<K>(api: Api<K>, object: Value) -> Result<bool, BuiltinError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let typed: K =
        serde_json::from_value(object).map_err(|error| failed::<K>(&name, kube::Error::SerdeError(error)))?;
    // Asked first: creating a Service again is refused for its address, before its name is looked at.
    if api.get_opt(&name).await.map_err(|error| failed::<K>(&name, error))?.is_some() {
        return Ok(false);
    }
    match api.create(&PostParams::default(), &typed).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(failed::<K>(&name, error)),
    }
}

fn failed<K: Resource<DynamicType = ()>>(name: &str, error: kube::Error) -> BuiltinError {
    BuiltinError { kind: K::kind(&()).into_owned(), name: name.to_owned(), source: Box::new(error) }
}

/// The mesh's configuration to begin with, for `kubectl edit configmap istio -n istio-system`.
fn mesh_configuration() -> Value {
    json!({
        "metadata": {"name": CONFIG_MAP, "namespace": ROOT_NAMESPACE},
        "data": {CONFIG_KEY: MESH_CONFIGURATION}
    })
}

fn dns_service(options: &BuiltinOptions) -> Value {
    json!({
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "clusterIP": options.dns_service,
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53}
            ]
        }
    })
}

fn dns_endpoints(options: &BuiltinOptions) -> Value {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"}
    ]);
    json!({
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [options.node_address],
            "conditions": {"ready": true, "serving": true, "terminating": false}
        }],
        "ports": ports
    })
}

fn control_service() -> Value {
    json!({
        "metadata": {"name": "istiod", "namespace": ROOT_NAMESPACE, "labels": {"app": "istiod"}},
        "spec": {
            "selector": {"app": "istiod"},
            "ports": [
                {"name": "https-dns", "port": ports::DISCOVERY, "targetPort": ports::DISCOVERY, "protocol": "TCP"},
                {"name": "https-bundle", "port": ports::BUNDLE, "targetPort": ports::BUNDLE, "protocol": "TCP"},
                {"name": "http-monitoring", "port": ports::CONTROL_MONITORING,
                 "targetPort": ports::CONTROL_MONITORING, "protocol": "TCP"}
            ]
        }
    })
}

/// Where the authority writes down what it issues and refuses: on the disk, where it outlives the control plane's Pod.
fn audit_claim() -> Value {
    json!({
        "metadata": {"name": AUDIT_CLAIM, "namespace": ROOT_NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}
        }
    })
}

fn control_plane() -> Value {
    json!({
        "metadata": {"name": "istiod", "namespace": ROOT_NAMESPACE, "labels": {"app": "istiod"}},
        "spec": {
            // One writer of the authority's state; the old one goes before the new one comes.
            "replicas": 1,
            "strategy": {"type": "Recreate", "rollingUpdate": null},
            "selector": {"matchLabels": {"app": "istiod"}},
            "template": {
                "metadata": {
                    "labels": {"app": "istiod", "sidecar.istio.io/inject": "false"},
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": ports::CONTROL_MONITORING.to_string()
                    }
                },
                "spec": {
                    "serviceAccountName": "istiod",
                    "containers": [{
                        "name": "discovery",
                        "image": "maille:latest",
                        "command": [BINARY_IN_CONTAINERS, "control-plane"],
                        "env": [
                            {"name": "CA_AUDIT_LOG", "value": format!("{AUDIT_DIRECTORY}/issued.jsonl")},
                            // A Pod sees the host's /etc, and a folder there is for this mesh only if `up` is told so.
                            {"name": "ROOT_CA_DIR", "value": ""}
                        ],
                        "volumeMounts": [{"name": "audit", "mountPath": AUDIT_DIRECTORY}],
                        "ports": [
                            {"name": "https-dns", "containerPort": ports::DISCOVERY},
                            {"name": "https-bundle", "containerPort": ports::BUNDLE},
                            {"name": "http-monitoring", "containerPort": ports::CONTROL_MONITORING}
                        ],
                        "readinessProbe": {
                            "httpGet": {"path": "/ready", "port": ports::CONTROL_MONITORING},
                            "periodSeconds": 1
                        }
                    }],
                    "volumes": [{"name": "audit", "persistentVolumeClaim": {"claimName": AUDIT_CLAIM}}]
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use maille_config::mesh;

    #[test]
    fn the_first_mesh_configuration_says_the_defaults() {
        let text = mesh_configuration()["data"][CONFIG_KEY].as_str().expect("text").to_owned();
        assert_eq!(mesh::check(&text).expect("good"), mesh::MeshConfig::default());
        // What is commented out is right as well, once the comment's sign is gone.
        let lines = text.lines().map(|line| match line.strip_prefix('#') {
            Some(example) if !example.starts_with(' ') || example.starts_with("  ") => example,
            _ => line,
        });
        let all: Vec<&str> = lines.collect();
        let all = mesh::check(&all.join("\n")).expect("good");
        assert_eq!(all.extension_providers.len(), 1);
        assert!(all.trust_domain.is_some());
    }

    #[test]
    fn every_object_is_of_its_kind() {
        let options = BuiltinOptions {
            node_address: Ipv4Addr::new(10, 244, 0, 1),
            dns_service: Ipv4Addr::new(10, 96, 0, 10),
        };
        for service in [dns_service(&options), control_service()] {
            serde_json::from_value::<Service>(service).expect("a Service");
        }
        serde_json::from_value::<EndpointSlice>(dns_endpoints(&options)).expect("an EndpointSlice");
        serde_json::from_value::<PersistentVolumeClaim>(audit_claim()).expect("a PersistentVolumeClaim");
        let deployment: Deployment = serde_json::from_value(control_plane()).expect("a Deployment");
        let template = deployment.spec.template.spec.expect("a template");
        assert_eq!(
            template.containers[0].command.as_deref(),
            Some(&[BINARY_IN_CONTAINERS.to_owned(), "control-plane".into()][..])
        );
    }
}
