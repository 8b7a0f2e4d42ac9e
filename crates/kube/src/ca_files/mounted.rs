//! Whether a folder is the Secret `cacerts` itself, as Istio's charts mount it.

use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, Volume};
use kube::{Api, Client};

use crate::root::PLUGGED_IN;

/// Whether a folder is the Secret `cacerts` mounted into this Pod. It must not be mirrored into itself: its files follow the
/// Secret only after a while, and would take back what has been written since.
pub(crate) async fn is_the_secret(
    client: &Client,
    namespace: &str,
    pod: &str,
    folder: &Path,
) -> Result<bool, kube::Error> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let found = pods.get_opt(pod).await?;
    Ok(found.is_some_and(|pod| shows_the_secret(&pod, folder)))
}

fn shows_the_secret(pod: &Pod, folder: &Path) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let Ok(folder) = std::path::absolute(folder) else { return false };
    spec.containers.iter().any(|container| {
        let mounts = container.volume_mounts.iter().flatten();
        let covering = mounts.filter(|mount| folder.starts_with(&mount.mount_path));
        // The innermost is what is seen.
        let Some(mount) = covering.max_by_key(|mount| mount.mount_path.len()) else { return false };
        spec.volumes.iter().flatten().any(|volume| volume.name == mount.name && is_of_the_secret(volume))
    })
}

fn is_of_the_secret(volume: &Volume) -> bool {
    let own = volume.secret.iter().filter_map(|secret| secret.secret_name.as_deref());
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let projected = sources.filter_map(|source| source.secret.as_ref()).map(|secret| secret.name.as_str());
    own.chain(projected).any(|name| name == PLUGGED_IN)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(volume: serde_json::Value, path: &str) -> Pod {
        let mut volume = volume;
        volume["name"] = json!("ca");
        let mounts = json!([{ "name": "other", "mountPath": "/etc" }, { "name": "ca", "mountPath": path }]);
        serde_json::from_value(json!({
            "metadata": { "name": "istiod-1" },
            "spec": {
                "containers": [{ "name": "discovery", "volumeMounts": mounts }],
                "volumes": [{ "name": "other", "emptyDir": {} }, volume],
            },
        }))
        .expect("a Pod")
    }

    #[test]
    fn the_secret_is_known_where_it_is_mounted_and_nowhere_else() {
        let folder = Path::new("/etc/cacerts");
        let cacerts = json!({ "secret": { "secretName": "cacerts" } });
        assert!(shows_the_secret(&pod(cacerts.clone(), "/etc/cacerts"), folder));
        assert!(!shows_the_secret(&pod(cacerts, "/etc/others"), folder));
        let projected = json!({ "projected": { "sources": [{ "secret": { "name": "cacerts" } }] } });
        assert!(shows_the_secret(&pod(projected, "/etc/cacerts/"), folder));
        let other = json!({ "secret": { "secretName": "company-ca" } });
        assert!(!shows_the_secret(&pod(other, "/etc/cacerts"), folder));
        assert!(!shows_the_secret(&Pod::default(), folder));
    }
}
