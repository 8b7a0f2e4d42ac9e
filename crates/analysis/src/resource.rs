//! Objects, and where they come from.

use std::collections::BTreeMap;

use maille_config::kinds;
use maille_config::yaml::Document;
use serde_json::Value;

use crate::message::Origin;

/// One object as it was written.
#[derive(Debug, Clone)]
pub struct Resource {
    /// The object as JSON, with `apiVersion` and `kind`.
    pub value: Value,
    /// The document it was read from; `None` for a live object.
    document: Option<Box<Document>>,
    namespace: Option<String>,
}

impl Resource {
    /// An object of the API.
    pub fn live(value: Value) -> Self {
        let namespace = text(&value, "/metadata/namespace").map(str::to_owned);
        Self { value, document: None, namespace }
    }

    /// An item of a list of the API, which does not say itself what it is.
    pub fn listed(mut item: Value, kind: &kinds::Kind) -> Self {
        if let Some(members) = item.as_object_mut() {
            members.entry("apiVersion").or_insert_with(|| Value::String(kind.api_version()));
            members.entry("kind").or_insert_with(|| Value::String(kind.kind.to_owned()));
        }
        Self::live(item)
    }

    /// An object of a file; one that names no namespace goes to `default_namespace`.
    pub fn of_file(document: Document, default_namespace: &str) -> Self {
        let mut value = document.value.clone();
        let written = text(&value, "/metadata/namespace").map(str::to_owned);
        let namespace = written.or_else(|| is_namespaced(&value).then(|| default_namespace.to_owned()));
        if let (Some(namespace), Some(metadata)) =
            (&namespace, value.get_mut("metadata").and_then(Value::as_object_mut))
        {
            metadata.insert("namespace".to_owned(), Value::String(namespace.clone()));
        }
        Self { value, document: Some(Box::new(document)), namespace }
    }

    /// Whether it comes from a file.
    pub fn is_of_file(&self) -> bool {
        self.document.is_some()
    }

    /// The document it was read from.
    pub fn document(&self) -> Option<&Document> {
        self.document.as_deref()
    }

    /// Its kind.
    pub fn kind(&self) -> &str {
        text(&self.value, "/kind").unwrap_or_default()
    }

    /// The group of its `apiVersion`.
    pub fn group(&self) -> &str {
        kinds::split_api_version(text(&self.value, "/apiVersion").unwrap_or_default()).0
    }

    /// Its name.
    pub fn name(&self) -> &str {
        text(&self.value, "/metadata/name").unwrap_or_default()
    }

    /// Its namespace; `None` for objects of the whole cluster.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Labels or annotations (`metadata.<field>`) that are texts.
    pub fn metadata(&self, field: &str) -> BTreeMap<String, String> {
        text_map(self.value.get("metadata").and_then(|metadata| metadata.get(field)))
    }

    /// How messages name it.
    pub fn origin(&self) -> Origin {
        Origin {
            kind: self.kind().to_owned(),
            namespace: self.namespace.clone(),
            name: self.name().to_owned(),
        }
    }

    /// `file:line` of a field, or of the nearest one around it.
    pub fn reference(&self, field: &str) -> Option<String> {
        let document = self.document.as_deref()?;
        let line = document.position(field).map_or(document.line, |(line, _)| line);
        Some(format!("{}:{line}", document.file))
    }

    fn key(&self) -> (String, Origin) {
        (self.group().to_owned(), self.origin())
    }
}

/// Texts of a JSON object.
pub(crate) fn text_map(value: Option<&Value>) -> BTreeMap<String, String> {
    let members = value.and_then(Value::as_object).into_iter().flatten();
    members.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn text<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    value.pointer(pointer).and_then(Value::as_str)
}

fn is_namespaced(value: &Value) -> bool {
    let (api_version, kind) = (text(value, "/apiVersion"), text(value, "/kind"));
    match kinds::find(api_version.unwrap_or_default(), kind.unwrap_or_default()) {
        Some(kind) => kind.namespaced,
        // Of the kinds nobody here knows, most live in namespaces; the cluster's own say so by their names.
        None => !kind.unwrap_or_default().starts_with("Cluster") && kind != Some("CustomResourceDefinition"),
    }
}

/// Objects of files over those that are live: of two with one name the later counts.
pub fn overlay(layers: impl IntoIterator<Item = Resource>) -> Vec<Resource> {
    let mut index: BTreeMap<(String, Origin), usize> = BTreeMap::new();
    let mut all: Vec<Resource> = Vec::new();
    for resource in layers {
        match index.get(&resource.key()).and_then(|at| all.get_mut(*at)) {
            Some(before) => {
                // A file does not say when the object was created; it stays the object that is there.
                let created = before.value.pointer("/metadata/creationTimestamp").cloned();
                let mut resource = resource;
                if let (Some(created), Some(metadata)) =
                    (created, resource.value.get_mut("metadata").and_then(Value::as_object_mut))
                {
                    metadata.entry("creationTimestamp").or_insert(created);
                }
                *before = resource;
            }
            None => {
                index.insert(resource.key(), all.len());
                all.push(resource);
            }
        }
    }
    all
}
