//! `meta.k8s.io/v1 Table`: what `kubectl get` prints.

mod cells;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::json;
use crate::request::Query;
use crate::resources::Resource;
use crate::verbs::read::metadata_only;

/// One column: name, type, and whether it is only shown with `-o wide`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    wide: bool,
}

const fn column(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", wide: false }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", format: "", wide: false }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", wide: true }
}

const NAME: Column = Column { name: "Name", kind: "string", format: "name", wide: false };
const AGE: Column = column("Age");

/// The columns of a kind, as Kubernetes prints them (`pkg/printers/internalversion`) and as Istio's CRDs define.
fn columns(resource: &Resource) -> Vec<Column> {
    match (resource.group, resource.plural) {
        ("", "pods") => vec![
            NAME,
            column("Ready"),
            column("Status"),
            column("Restarts"),
            AGE,
            wide("IP"),
            wide("Node"),
            wide("Nominated Node"),
            wide("Readiness Gates"),
        ],
        ("", "services") => vec![
            NAME,
            column("Type"),
            column("Cluster-IP"),
            column("External-IP"),
            column("Port(s)"),
            AGE,
            wide("Selector"),
        ],
        ("", "namespaces") => vec![NAME, column("Status"), AGE],
        ("", "serviceaccounts") => vec![NAME, AGE],
        ("", "configmaps") => vec![NAME, number("Data"), AGE],
        ("", "secrets") => vec![NAME, column("Type"), number("Data"), AGE],
        ("" | "events.k8s.io", "events") => vec![
            column("Last Seen"),
            column("Type"),
            column("Reason"),
            column("Object"),
            wide("Subobject"),
            wide("Source"),
            column("Message"),
            wide("First Seen"),
            wide("Count"),
            Column { wide: true, ..NAME },
        ],
        ("", "nodes") => vec![
            NAME,
            column("Status"),
            column("Roles"),
            AGE,
            column("Version"),
            wide("Internal-IP"),
            wide("External-IP"),
            wide("OS-Image"),
            wide("Kernel-Version"),
            wide("Container-Runtime"),
        ],
        ("apps", "deployments") => vec![
            NAME,
            column("Ready"),
            number("Up-to-date"),
            number("Available"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        ("apps", "replicasets") => vec![
            NAME,
            number("Desired"),
            number("Current"),
            number("Ready"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        ("apps", "statefulsets") => vec![NAME, column("Ready"), AGE, wide("Containers"), wide("Images")],
        ("apps", "daemonsets") => vec![
            NAME,
            number("Desired"),
            number("Current"),
            number("Ready"),
            number("Up-to-date"),
            number("Available"),
            column("Node Selector"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        ("apps", "controllerrevisions") => vec![NAME, column("Controller"), number("Revision"), AGE],
        ("batch", "jobs") => vec![
            NAME,
            column("Status"),
            column("Completions"),
            column("Duration"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        ("batch", "cronjobs") => vec![
            NAME,
            column("Schedule"),
            column("Timezone"),
            column("Suspend"),
            number("Active"),
            column("Last Schedule"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        ("", "persistentvolumeclaims") => vec![
            NAME,
            column("Status"),
            column("Volume"),
            column("Capacity"),
            column("Access Modes"),
            column("StorageClass"),
            column("VolumeAttributesClass"),
            AGE,
            wide("VolumeMode"),
        ],
        ("discovery.k8s.io", "endpointslices") => {
            vec![NAME, column("AddressType"), column("Ports"), column("Endpoints"), AGE]
        }
        ("coordination.k8s.io", "leases") => vec![NAME, column("Holder"), AGE],
        ("security.istio.io", "peerauthentications") => vec![NAME, column("Mode"), AGE],
        ("security.istio.io", "authorizationpolicies") => vec![NAME, column("Action"), AGE],
        ("networking.istio.io", "destinationrules") => vec![NAME, column("Host"), AGE],
        ("networking.istio.io", "serviceentries") => {
            vec![NAME, column("Hosts"), column("Location"), column("Resolution"), AGE]
        }
        ("networking.istio.io", "workloadentries") => vec![NAME, AGE, column("Address")],
        ("networking.istio.io", "virtualservices") => vec![NAME, column("Gateways"), column("Hosts"), AGE],
        _ if resource.is_kubernetes() => vec![NAME, column("Created At")],
        _ => vec![NAME, AGE],
    }
}

/// A table of objects.
pub(crate) fn render<'a>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'a Value>,
    metadata: &Value,
    query: &Query,
) -> Value {
    let columns = columns(resource);
    let now = Timestamp::now();
    let include = query.text("includeObject").unwrap_or("Metadata");
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let cells: Vec<Value> =
                columns.iter().map(|c| cells::cell(resource, c.name, object, now)).collect();
            let mut row = json!({ "cells": cells });
            let shown = match include {
                "None" => Value::Null,
                "Object" => object.clone(),
                _ => metadata_only(object),
            };
            if let (Some(map), false) = (row.as_object_mut(), shown.is_null()) {
                map.insert("object".into(), shown);
            }
            row
        })
        .collect();
    let definitions: Vec<Value> = columns
        .iter()
        .map(|c| {
            json!({
                "name": c.name, "type": c.kind, "format": c.format, "description": "",
                "priority": if c.wide { 1 } else { 0 },
            })
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

/// `metadata.creationTimestamp` as an age.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    crate::time::human_age(json::text(object, &["metadata", "creationTimestamp"]), now).into()
}
