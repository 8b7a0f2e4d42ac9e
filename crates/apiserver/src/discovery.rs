//! Discovery: which groups, versions and resources there are.
//!
//! Source: API concepts, "Kubernetes API discovery"; `apidiscovery.k8s.io/v2`.

use serde_json::{Value, json};

use crate::negotiate::Shape;
use crate::resources::{self, Resource};
use crate::status::{ApiError, ApiResult};

/// Answers one of the discovery paths.
pub(crate) fn answer(segments: &[String], shape: Shape, address: &str) -> ApiResult<Value> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    match (words.as_slice(), shape) {
        (["api"], Shape::AggregatedDiscovery) => Ok(aggregated(&[("", vec!["v1"])])),
        (["apis"], Shape::AggregatedDiscovery) => Ok(aggregated(&resources::groups())),
        (["api"], _) => Ok(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": address }],
        })),
        (["apis"], _) => {
            let groups: Vec<Value> = resources::groups().iter().map(|(g, v)| group(g, v)).collect();
            Ok(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        (["apis", name], _) => {
            let groups = resources::groups();
            let (name, versions) =
                groups.iter().find(|(g, _)| g == name).ok_or_else(ApiError::path_not_found)?;
            let mut group = group(name, versions);
            if let Some(map) = group.as_object_mut() {
                map.insert("kind".into(), "APIGroup".into());
                map.insert("apiVersion".into(), "v1".into());
            }
            Ok(group)
        }
        (["api", version], _) => list("", version),
        (["apis", group, version], _) => list(group, version),
        _ => Err(ApiError::path_not_found()),
    }
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |v: &str| json!({ "groupVersion": format!("{name}/{v}"), "version": v });
    json!({
        "name": name,
        "versions": versions.iter().map(|v| version(v)).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(|v| version(v)),
    })
}

fn of_version<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Resource> + 'a {
    resources::all().iter().filter(move |r| r.group == group && r.versions.contains(&version))
}

fn list(group: &str, version: &str) -> ApiResult<Value> {
    let mut entries = Vec::new();
    for resource in of_version(group, version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs(),
        });
        if let Some(map) = entry.as_object_mut() {
            if !resource.short_names.is_empty() {
                map.insert("shortNames".into(), json!(resource.short_names));
            }
            if !resource.categories.is_empty() {
                map.insert("categories".into(), json!(resource.categories));
            }
        }
        entries.push(entry);
        for sub in resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name), "singularName": "",
                "namespaced": resource.namespaced,
                "kind": if sub.kind.is_empty() { resource.kind } else { sub.kind }, "verbs": sub.verbs,
            });
            if !sub.group.is_empty()
                && sub.group != group
                && let Some(map) = entry.as_object_mut()
            {
                map.insert("group".into(), sub.group.into());
                map.insert("version".into(), sub.version.into());
            }
            entries.push(entry);
        }
    }
    if entries.is_empty() {
        return Err(ApiError::path_not_found());
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries,
    }))
}

fn aggregated(groups: &[(&'static str, Vec<&'static str>)]) -> Value {
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        of_version(group, version).map(|r| entry(r, version)).collect();
                    json!({ "version": version, "freshness": "Current", "resources": resources })
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({ "creationTimestamp": null })
            } else {
                json!({ "name": group, "creationTimestamp": null })
            };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

fn entry(resource: &Resource, version: &str) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": { "group": resource.group, "version": version, "kind": resource.kind },
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs(),
    });
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| {
            let kind = if sub.kind.is_empty() {
                json!({ "group": resource.group, "version": version, "kind": resource.kind })
            } else {
                json!({ "group": sub.group, "version": sub.version, "kind": sub.kind })
            };
            json!({ "subresource": sub.name, "responseKind": kind, "verbs": sub.verbs })
        })
        .collect();
    if let Some(map) = entry.as_object_mut() {
        if !resource.short_names.is_empty() {
            map.insert("shortNames".into(), json!(resource.short_names));
        }
        if !resource.categories.is_empty() {
            map.insert("categories".into(), json!(resource.categories));
        }
        if !subresources.is_empty() {
            map.insert("subresources".into(), subresources.into());
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_and_version_lists_its_resources() {
        for (group, versions) in resources::groups() {
            for version in versions {
                list(group, version).expect("a list");
            }
        }
        let apis = answer(&["apis".into()], Shape::AggregatedDiscovery, "x").expect("groups");
        assert!(apis.to_string().contains("\"peerauthentications\""));
        assert!(answer(&["apis".into(), "nope".into()], Shape::Plain, "x").is_err());
    }
}
