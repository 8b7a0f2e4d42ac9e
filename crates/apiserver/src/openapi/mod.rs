//! OpenAPI v3 documents, one per group and version, and the v2 document.
//!
//! As much as clients use: schemas with their extensions, and for each kind the operations with the content types
//! and parameters by which kubectl finds out what the server can do.

pub(crate) mod schema;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::resources::{self, Resource, Shape};
use crate::status::{ApiError, ApiResult};
use schema::{schema_name, schemas};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const PREFIX: &str = "#/components/schemas/";

/// How a client asks for [`PROTOBUF_DOCUMENT`], and what that is called.
pub(crate) const PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2";
pub(crate) const PROTOBUF_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A v2 document without kinds as `openapi.v2.Document` of gnostic: `swagger` (1) "2.0", `info` (2) with `title` (1)
/// and `version` (2), empty `paths` (8) and `definitions` (9). kubectl looks here for kinds that v3 does not have,
/// and only when it finds none says which kind there is not.
pub(crate) const PROTOBUF_DOCUMENT: &[u8] =
    b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.37.0\x42\x00\x4a\x00";

/// Answers a path below `/openapi`.
pub(crate) fn answer(segments: &[String]) -> ApiResult<Value> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["openapi", "v2"] => Ok(version_two()),
        ["openapi", "v3"] => Ok(index()),
        ["openapi", "v3", "api", version] => document("", version),
        ["openapi", "v3", "apis", group, version] => document(group, version),
        _ => Err(ApiError::path_not_found()),
    }
}

fn index() -> Value {
    let mut paths = Map::new();
    let mut add = |path: String| {
        let url = format!("/openapi/v3/{path}?hash={}", *HASH);
        paths.insert(path, json!({ "serverRelativeURL": url }));
    };
    add("api/v1".to_owned());
    for (group, versions) in resources::groups() {
        versions.iter().for_each(|version| add(format!("apis/{group}/{version}")));
    }
    json!({ "paths": paths })
}

/// Changes with the schemas, so that clients may keep what they have.
static HASH: LazyLock<String> = LazyLock::new(|| {
    // FNV-1a: nothing depends on it but caches.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut mix = |text: &str| {
        for byte in text.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    mix(env!("CARGO_PKG_VERSION"));
    for (name, schema) in schemas() {
        mix(name);
        mix(&schema.to_string());
    }
    for resource in resources::all() {
        mix(&format!("{resource:?}"));
    }
    format!("{hash:016X}")
});

fn served(group: &str, version: &str) -> Vec<&'static Resource> {
    resources::all().iter().filter(|r| r.group == group && r.versions.contains(&version)).collect()
}

/// The schema of a kind in a version; all versions of a custom kind look the same.
fn kind_schema(resource: &Resource, version: &str) -> Value {
    let preferred = resource.versions.first().copied().unwrap_or(version);
    let known = schemas().get(&schema_name(resource, preferred)).cloned();
    let mut schema = known.unwrap_or_else(|| {
        json!({
            "description": format!("{} is known to this mesh and not enforced: it is refused.", resource.kind),
            "type": "object",
            "properties": {
                "apiVersion": { "type": "string" },
                "kind": { "type": "string" },
                "metadata": { "allOf": [{ "$ref": format!("{PREFIX}{OBJECT_META}") }] },
                "spec": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
            },
        })
    });
    if let Some(map) = schema.as_object_mut() {
        let gvk = json!([{ "group": resource.group, "version": version, "kind": resource.kind }]);
        map.insert("x-kubernetes-group-version-kind".into(), gvk);
    }
    schema
}

fn document(group: &str, version: &str) -> ApiResult<Value> {
    let served = served(group, version);
    if served.is_empty() {
        return Err(ApiError::path_not_found());
    }
    let mut components = Map::new();
    let mut wanted = BTreeSet::new();
    let mut paths = Map::new();
    for resource in served {
        let schema = kind_schema(resource, version);
        references(&schema, &mut wanted);
        components.insert(schema_name(resource, version), schema);
        add_paths(resource, version, &mut paths);
    }
    close(&mut components, wanted);
    Ok(json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.37.0" },
        "paths": paths,
        "components": { "schemas": components },
    }))
}

/// Adds what is referred to, and what that refers to.
fn close(components: &mut Map<String, Value>, mut wanted: BTreeSet<String>) {
    while let Some(name) = wanted.pop_first() {
        if components.contains_key(&name) {
            continue;
        }
        if let Some(schema) = schemas().get(&name) {
            references(schema, &mut wanted);
            components.insert(name, schema.clone());
        }
    }
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str().and_then(|t| t.strip_prefix(PREFIX)) {
                    Some(name) if key == "$ref" => drop(found.insert(name.to_owned())),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

fn add_paths(resource: &Resource, version: &str, paths: &mut Map<String, Value>) {
    let root = if resource.group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{}/{version}", resource.group)
    };
    let base = if resource.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        format!("{root}/{}", resource.plural)
    };
    let gvk = json!({ "group": resource.group, "version": version, "kind": resource.kind });
    let schema = json!({ "$ref": format!("{PREFIX}{}", schema_name(resource, version)) });
    let response =
        json!({ "200": { "description": "OK", "content": { "application/json": { "schema": schema } } } });
    let query = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } });
    let writing = json!([query("dryRun"), query("fieldManager"), query("fieldValidation")]);
    let body = |types: &[&str]| {
        let content: Map<String, Value> =
            types.iter().map(|t| ((*t).to_owned(), json!({ "schema": schema }))).collect();
        json!({ "content": content, "required": true })
    };
    let operation = |action: &str, body: Option<Value>| {
        let mut operation = json!({ "responses": response, "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk });
        if let (Some(map), Some(body)) = (operation.as_object_mut(), body) {
            map.insert("parameters".into(), writing.clone());
            map.insert("requestBody".into(), body);
        }
        operation
    };
    let post = operation("post", Some(body(&["application/json"])));
    if resource.shape == Shape::Review {
        paths.insert(base, json!({ "post": post }));
        return;
    }
    let mut patches =
        vec!["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
    if resource.is_kubernetes() {
        patches.push("application/strategic-merge-patch+json");
    }
    paths.insert(base.clone(), json!({ "get": operation("list", None), "post": post }));
    paths.insert(
        format!("{base}/{{name}}"),
        json!({
            "get": operation("get", None),
            "put": operation("put", Some(body(&["application/json"]))),
            "patch": operation("patch", Some(body(&patches))),
            "delete": operation("delete", None),
        }),
    );
}

/// The old document, with definitions and no paths.
fn version_two() -> Value {
    let mut components = Map::new();
    let mut wanted = BTreeSet::new();
    for resource in resources::all() {
        for version in resource.versions {
            let schema = kind_schema(resource, version);
            references(&schema, &mut wanted);
            components.insert(schema_name(resource, version), schema);
        }
    }
    close(&mut components, wanted);
    let text = Value::Object(components).to_string().replace(PREFIX, "#/definitions/");
    let definitions: Value = serde_json::from_str(&text).unwrap_or_default();
    json!({
        "swagger": "2.0", "info": { "title": "Kubernetes", "version": "v1.37.0" }, "paths": {},
        "definitions": definitions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_whole_and_say_what_can_be_patched_how() {
        let pods = document("", "v1").expect("the core group");
        let patch = &pods["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
        assert!(patch["parameters"].to_string().contains("fieldValidation"));
        let security = document("security.istio.io", "v1beta1").expect("Istio's");
        assert!(
            security["components"]["schemas"]["io.istio.security.v1beta1.PeerAuthentication"].is_object()
        );
        for document in [pods, security] {
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            for name in found {
                assert!(document["components"]["schemas"][&name].is_object(), "{name}");
            }
        }
        assert!(document("nope", "v1").is_err());
        assert!(!version_two().to_string().contains(PREFIX));
    }
}
