//! Keeps `status.addresses` of ServiceEntries: one address of each family for every host without (reference mtls 4.2,
//! SE-15). What stands there is in force; the world takes it back from the watch, so that a restart changes nothing, and
//! of two replicas the one that writes first decides.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use maille_control::Hub;
use maille_control::world::{Allocation, World};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::objects::ServiceEntry;

/// How long changes are gathered: a host is of use once its address is known.
const PATIENCE: Duration = Duration::from_millis(50);
/// Writes that failed are tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the addresses as the world is, for ever.
pub(crate) async fn keep(client: Client, hub: Arc<Hub>) {
    let mut changed = hub.generations();
    let mut seen: Option<World> = None;
    loop {
        changed.mark_unchanged();
        let world = hub.snapshot().world.clone();
        // Most changes are no change of entries.
        let due = match &seen {
            Some(seen) if world.shares_entries(seen) => Vec::new(),
            _ => world.allocations_due(),
        };
        let mut failed = false;
        for allocation in &due {
            if let Err(error) = write(&client, allocation).await {
                let (name, error) = (&allocation.entry, crate::brief(&error));
                tracing::warn!(%name, error, "addresses not written; trying again");
                failed = true;
            }
        }
        // Looked at again if something failed, or was stored differently from what the world knows.
        seen = (!failed).then_some(world);
        let again = async {
            if failed {
                sleep(RETRY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            next = changed.changed() => if next.is_err() { return },
            () = again => {}
        }
        sleep(PATIENCE).await;
    }
}

/// Writes the addresses of one entry, if others are stored.
async fn write(client: &Client, allocation: &Allocation) -> kube::Result<()> {
    let api = Api::<ServiceEntry>::namespaced(client.clone(), &allocation.entry.namespace);
    let Some(object) = api.get_opt(&allocation.entry.name).await? else { return Ok(()) };
    let wanted: Vec<Value> = allocation
        .addresses
        .iter()
        .map(|(host, address)| json!({ "value": address.to_string(), "host": host }))
        .collect();
    let stored = object.status.get("addresses").and_then(Value::as_array).cloned().unwrap_or_default();
    if stored == wanted {
        return Ok(());
    }
    let addresses = if wanted.is_empty() { Value::Null } else { Value::Array(wanted) };
    // Of the version that was read only: another replica may have decided meanwhile.
    let version = object.metadata.resource_version.as_deref();
    let patch = json!({ "metadata": { "resourceVersion": version }, "status": { "addresses": addresses } });
    let parameters = PatchParams { field_manager: Some("istiod".to_owned()), ..PatchParams::default() };
    api.patch_status(&allocation.entry.name, &parameters, &Patch::Merge(&patch)).await.map(drop)
}
