//! The objects of the API that describe one namespace's security.

use anyhow::{Context, Result};
use maille_config::istio::{
    AuthorizationPolicy, DestinationRule, PeerAuthentication, RequestAuthentication, Sidecar,
};
use maille_config::k8s::api::core::v1::{Pod, Service};
use serde::de::DeserializeOwned;

use crate::client::Api;

/// Objects of a namespace, and the policies and rules that may reach it.
pub(super) struct Facts {
    pub(super) root_namespace: String,
    pub(super) namespace: String,
    pub(super) services: Vec<Service>,
    pub(super) peer_authentications: Vec<PeerAuthentication>,
    pub(super) authorization_policies: Vec<AuthorizationPolicy>,
    pub(super) request_authentications: Vec<RequestAuthentication>,
    pub(super) destination_rules: Vec<DestinationRule>,
    pub(super) sidecars: Vec<Sidecar>,
}

impl Facts {
    /// Reads them. Without a look at the root namespace the answer could be wrong, so that it is an error.
    pub(super) async fn read(api: &Api, root_namespace: &str, namespace: &str) -> Result<Self> {
        let mut facts = Self {
            root_namespace: root_namespace.to_owned(),
            namespace: namespace.to_owned(),
            services: list(api, "api/v1", namespace, "services").await?,
            peer_authentications: Vec::new(),
            authorization_policies: Vec::new(),
            request_authentications: Vec::new(),
            destination_rules: Vec::new(),
            sidecars: Vec::new(),
        };
        let (security, networking) = ("apis/security.istio.io/v1", "apis/networking.istio.io/v1");
        let mut namespaces = vec![root_namespace];
        if namespace != root_namespace {
            namespaces.push(namespace);
        }
        for namespace in namespaces {
            facts.peer_authentications.extend(list(api, security, namespace, "peerauthentications").await?);
            facts
                .authorization_policies
                .extend(list(api, security, namespace, "authorizationpolicies").await?);
            facts
                .request_authentications
                .extend(list(api, security, namespace, "requestauthentications").await?);
            facts.destination_rules.extend(list(api, networking, namespace, "destinationrules").await?);
            facts.sidecars.extend(list(api, networking, namespace, "sidecars").await?);
        }
        Ok(facts)
    }

    /// The Services that select a Pod.
    pub(super) fn services_of(&self, pod: &Pod) -> Vec<&Service> {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let selects = |service: &&Service| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            selector.is_some_and(|pairs| {
                !pairs.is_empty() && pairs.iter().all(|(key, value)| labels.get(key) == Some(value))
            })
        };
        self.services.iter().filter(selects).collect()
    }
}

async fn list<T: DeserializeOwned>(api: &Api, group: &str, namespace: &str, plural: &str) -> Result<Vec<T>> {
    let path = format!("/{group}/namespaces/{namespace}/{plural}");
    let list = match api.get(&path).await {
        // A cluster need not know all kinds of Istio.
        Err(error) if error.is_not_found() && group != "api/v1" => return Ok(Vec::new()),
        list => list.with_context(|| format!("cannot read {plural} of namespace {namespace}"))?,
    };
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let read =
        |item| serde_json::from_value(item).with_context(|| format!("one of the {plural} is not readable"));
    items.into_iter().map(read).collect()
}
