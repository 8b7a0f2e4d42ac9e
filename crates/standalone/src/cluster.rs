//! The API as the supervisor sees it: a client, and a copy of each kind it works with.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::task::JoinSet;

use crate::mirror::Mirror;

/// Client and copies.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// With all rights.
    pub(crate) client: Client,
    /// Pods.
    pub(crate) pods: Arc<Mirror<Pod>>,
    /// Services.
    pub(crate) services: Arc<Mirror<Service>>,
    /// EndpointSlices.
    pub(crate) slices: Arc<Mirror<EndpointSlice>>,
    /// ConfigMaps.
    pub(crate) config_maps: Arc<Mirror<ConfigMap>>,
    /// Secrets.
    pub(crate) secrets: Arc<Mirror<Secret>>,
}

impl Cluster {
    /// Starts to follow every kind, and waits for the first lists. The tasks end with `tasks`.
    pub(crate) async fn start(client: Client, tasks: &mut JoinSet<()>) -> Self {
        let this = Self {
            pods: Arc::default(),
            services: Arc::default(),
            slices: Arc::default(),
            config_maps: Arc::default(),
            secrets: Arc::default(),
            client: client.clone(),
        };
        tasks.spawn(this.pods.clone().follow(Api::all(client.clone())));
        tasks.spawn(this.services.clone().follow(Api::all(client.clone())));
        tasks.spawn(this.slices.clone().follow(Api::all(client.clone())));
        tasks.spawn(this.config_maps.clone().follow(Api::all(client.clone())));
        tasks.spawn(this.secrets.clone().follow(Api::all(client)));
        this.pods.wait_synced().await;
        this.services.wait_synced().await;
        this.slices.wait_synced().await;
        this.config_maps.wait_synced().await;
        this.secrets.wait_synced().await;
        this
    }

    /// An API handle for one kind in one namespace.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// A client from a kubeconfig file.
pub(crate) async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("use {}", kubeconfig.display()))?;
    // Watches stay open as long as they like; a proxy of the user's environment has no part in this.
    config.read_timeout = None;
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}
