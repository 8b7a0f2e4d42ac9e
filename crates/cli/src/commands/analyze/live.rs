//! Objects of the API.

use anyhow::{Context, Result};
use maille_analysis::Resource;
use maille_config::kinds::{KINDS, Kind};
use maille_config::mesh::CONFIG_MAP;

use crate::client::{Api, ApiError, collection_path};

/// Kinds of Kubernetes that analyzers look at.
const KUBERNETES: [&str; 6] = ["Namespace", "ServiceAccount", "Service", "Pod", "Deployment", "ReplicaSet"];

/// Objects for one request; a list of a large cluster comes in pages.
const PAGE: usize = 500;

/// All objects that analyzers look at.
pub(super) async fn objects(api: &Api, control_plane: &str) -> Result<Vec<Resource>> {
    let wanted = |kind: &&Kind| {
        let istios = kind.group.ends_with(".istio.io") || kind.group.starts_with("gateway.");
        istios || (KUBERNETES.contains(&kind.kind) && matches!(kind.group, "" | "apps"))
    };
    let lists = KINDS.iter().filter(wanted).map(|kind| list(api, kind));
    let lists = futures::future::try_join_all(lists).await?;
    let mut all: Vec<Resource> = lists.into_iter().flatten().collect();
    for name in [CONFIG_MAP, maille_control::revocation::CONFIG_MAP] {
        all.extend(config_map(api, control_plane, name).await?);
    }
    Ok(all)
}

/// The mesh's own configuration and its revocations; of all ConfigMaps these only.
async fn config_map(api: &Api, control_plane: &str, name: &str) -> Result<Option<Resource>> {
    let path = format!("/api/v1/namespaces/{control_plane}/configmaps/{name}");
    match api.get(&path).await {
        Ok(mut object) => {
            object["apiVersion"] = "v1".into();
            object["kind"] = "ConfigMap".into();
            Ok(Some(Resource::live(object)))
        }
        // Nobody need have one, and not everybody may read it.
        Err(ApiError::Refused { code: 403 | 404, .. }) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read ConfigMap {control_plane}/{name}")),
    }
}

async fn list(api: &Api, kind: &Kind) -> Result<Vec<Resource>> {
    let version = kind.versions.first().copied().unwrap_or("v1");
    let path = collection_path(kind, version, None);
    let mut resources = Vec::new();
    let mut next = String::new();
    loop {
        let page = match api.get(&format!("{path}?limit={PAGE}{next}")).await {
            Ok(page) => page,
            // A cluster need not have all of Istio's kinds.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", kind.plural)),
        };
        let items = page["items"].as_array().cloned().unwrap_or_default();
        resources.extend(items.into_iter().map(|item| Resource::listed(item, kind)));
        match page["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => next = format!("&continue={token}"),
            _ => return Ok(resources),
        }
    }
}
