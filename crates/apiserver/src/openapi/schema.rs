//! Schemas of the served kinds, and a cursor that walks them beside an object.
//!
//! `kubernetes.json` holds Kubernetes' own: the JSON schemas of `k8s-openapi` 0.29 (Kubernetes 1.37), with
//! list types, map keys and patch strategies put in as `x-kubernetes-…` extensions. `istio.json` holds
//! Istio's, after its CRDs. Strategic merge and server-side apply read what to do from here, and
//! clients get the same texts as OpenAPI, so that both ends of a patch agree.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::resources::Resource;

const KUBERNETES: &str = include_str!("kubernetes.json");
const ISTIO: &str = include_str!("istio.json");

/// All schemas by name.
pub(crate) fn schemas() -> &'static BTreeMap<String, Value> {
    static ALL: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
        let mut all: BTreeMap<String, Value> = parse(KUBERNETES);
        all.append(&mut parse(ISTIO));
        all
    });
    &ALL
}

fn parse(text: &str) -> BTreeMap<String, Value> {
    // Both files are part of the program; a test reads them.
    serde_json::from_str(text).unwrap_or_default()
}

/// The name of a resource's schema.
pub(crate) fn schema_name(resource: &Resource, version: &str) -> String {
    if resource.is_kubernetes() {
        let package = match resource.group {
            "" => "core",
            group => group.split('.').next().unwrap_or(group),
        };
        format!("io.k8s.api.{package}.{version}.{}", resource.kind)
    } else {
        let reversed: Vec<&str> = resource.group.rsplit('.').collect();
        format!("{}.{version}.{}", reversed.join("."), resource.kind)
    }
}

/// A place in a schema; beyond what is described, nothing is known and everything allowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schema<'a> {
    /// The node as it stands in its parent, with the extensions of the field.
    field: Option<&'a Value>,
    /// What it refers to, or itself.
    target: Option<&'a Value>,
}

impl Schema<'static> {
    /// The schema of a whole object; Istio's versions share one.
    pub(crate) fn of(resource: &Resource) -> Self {
        let version = resource.versions.first().copied().unwrap_or("v1");
        Self::at(schemas().get(&schema_name(resource, version)))
    }

    fn at(field: Option<&'static Value>) -> Self {
        let reference = field.and_then(|f| {
            f.get("$ref").or_else(|| f.get("allOf")?.as_array()?.first()?.get("$ref"))?.as_str()
        });
        let target = match reference {
            Some(path) => schemas().get(path.rsplit('/').next().unwrap_or(path)),
            None => field,
        };
        Self { field, target }
    }

    /// The schema of a field.
    pub(crate) fn field(self, name: &str) -> Self {
        let properties = self.target.and_then(|t| t.get("properties"));
        let field = properties.and_then(|p| p.get(name));
        Self::at(
            field.or_else(|| {
                self.target.and_then(|t| t.get("additionalProperties")).filter(|v| v.is_object())
            }),
        )
    }

    /// The schema of a list's items.
    pub(crate) fn items(self) -> Self {
        Self::at(self.target.and_then(|t| t.get("items")))
    }

    fn extension(self, name: &str) -> Option<&'static str> {
        let own = self.field.and_then(|f| f.get(name));
        own.or_else(|| self.target.and_then(|t| t.get(name)))?.as_str()
    }

    /// `x-kubernetes-patch-strategy` has `merge`.
    pub(crate) fn merges(self) -> bool {
        self.extension("x-kubernetes-patch-strategy").is_some_and(|s| s.split(',').any(|s| s == "merge"))
    }

    /// `x-kubernetes-patch-merge-key`.
    pub(crate) fn merge_key(self) -> Option<&'static str> {
        self.extension("x-kubernetes-patch-merge-key")
    }

    /// How server-side apply treats a list.
    pub(crate) fn list_type(self) -> ListType {
        match self.extension("x-kubernetes-list-type") {
            Some("map") => {
                let keys = self.field.and_then(|f| f.get("x-kubernetes-list-map-keys")?.as_array());
                ListType::Map(keys.into_iter().flatten().filter_map(Value::as_str).collect())
            }
            Some("set") => ListType::Set,
            // Without a word, a list is one value (API concepts, "Merge strategy").
            _ => ListType::Atomic,
        }
    }

    /// Whether an object is one value for server-side apply.
    pub(crate) fn is_atomic_map(self) -> bool {
        self.extension("x-kubernetes-map-type") == Some("atomic")
    }
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListType {
    Atomic,
    Set,
    Map(Vec<&'static str>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_kind_has_a_schema_and_every_reference_resolves() {
        for resource in crate::resources::all() {
            for version in resource.versions {
                if resource.is_kubernetes() {
                    let name = schema_name(resource, version);
                    assert!(schemas().contains_key(&name), "{name}");
                }
            }
        }
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => map.iter().for_each(|(k, v)| match v.as_str() {
                    Some(text) if k == "$ref" => found.push(text.to_owned()),
                    _ => references(v, found),
                }),
                Value::Array(list) => list.iter().for_each(|v| references(v, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        schemas().values().for_each(|s| references(s, &mut found));
        assert!(found.len() > 100);
        for reference in found {
            let name = reference.strip_prefix("#/components/schemas/").expect("a local reference");
            assert!(schemas().contains_key(name), "{name}");
        }
    }

    #[test]
    fn merge_keys_are_found_through_references() {
        let pod = Schema::of(crate::resources::by_name("", "pods").expect("served"));
        let containers = pod.field("spec").field("containers");
        assert_eq!(containers.merge_key(), Some("name"));
        assert_eq!(containers.items().field("ports").merge_key(), Some("containerPort"));
        assert_eq!(pod.field("metadata").field("ownerReferences").merge_key(), Some("uid"));
        assert!(!pod.field("spec").field("tolerations").merges());
        assert!(pod.field("metadata").field("finalizers").merges());
    }
}
