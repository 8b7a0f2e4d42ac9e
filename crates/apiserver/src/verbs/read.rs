//! `get` and `list`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::convert;
use crate::json;
use crate::negotiate::Shape;
use crate::request::{Query, Target};
use crate::selector::{FieldSelector, LabelSelector};
use crate::status::{ApiError, ApiResult};
use crate::store::{State, Store};
use crate::table;

/// Which objects a list or watch is about.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Selection {
    pub(crate) fn new(target: &Target, query: &Query) -> ApiResult<Self> {
        let labels = LabelSelector::parse(query.text("labelSelector").unwrap_or_default())?;
        let fields = FieldSelector::parse(query.text("fieldSelector").unwrap_or_default(), target.resource)?;
        let name = target.name.clone().or_else(|| fields.name().map(str::to_owned));
        Ok(Self { namespace: target.namespace.clone(), name, labels, fields })
    }

    /// Whether an object at this place is in it, whatever its content.
    pub(crate) fn covers(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|ns| ns == namespace)
            && self.name.as_deref().is_none_or(|n| n == name)
    }

    /// Whether the object's content satisfies the selectors.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }

    /// The objects of it, in order.
    pub(crate) fn of<'a>(&'a self, state: &'a State, store: &str) -> impl Iterator<Item = &'a Arc<Value>> {
        state
            .list(store, self.namespace.as_deref())
            .filter(|o| self.covers(json::namespace(o), json::name(o)) && self.matches(o))
    }
}

/// One object, or 404.
pub(crate) fn object(store: &Store, target: &Target) -> ApiResult<Arc<Value>> {
    let name = target.name.as_deref().unwrap_or_default();
    store
        .read(|state| state.get(&target.resource.store, target.ns(), name).cloned())
        .ok_or_else(|| ApiError::not_found(target.resource, name))
}

/// One object in the shape asked for.
pub(crate) fn present(target: &Target, object: &Value, shape: Shape, query: &Query) -> ApiResult<Value> {
    let served = convert::to_served(target.resource, target.version, object);
    Ok(match shape {
        Shape::Table => {
            let version = json::text(object, &["metadata", "resourceVersion"]).to_owned();
            table::render(target.resource, [&*served], &json!({ "resourceVersion": version }), query)
        }
        Shape::Metadata => metadata_only(&served),
        Shape::Plain | Shape::AggregatedDiscovery => served.into_owned(),
    })
}

/// `PartialObjectMetadata` of an object.
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// Where a paged list goes on: the revision of its first page and the last place that was sent.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Continue {
    #[serde(rename = "rv")]
    revision: u64,
    namespace: String,
    name: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> ApiResult<Self> {
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or_else(|| ApiError::bad_request("continue key is not valid"))
    }
}

/// The resource version a list or watch asks for.
pub(crate) fn revision(query: &Query) -> ApiResult<Option<u64>> {
    query
        .text("resourceVersion")
        .map(|text| {
            text.parse::<u64>().map_err(|_| {
                ApiError::bad_request(format!(
                    "resourceVersion: Invalid value: \"{text}\": not a resource version of this server"
                ))
            })
        })
        .transpose()
}

/// A list in the shape asked for.
pub(crate) fn list(store: &Store, target: &Target, query: &Query, shape: Shape) -> ApiResult<Bytes> {
    let selection = Selection::new(target, query)?;
    let limit = query.number("limit")?.filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
    let after = query.text("continue").map(Continue::decode).transpose()?;
    let exact = query.text("resourceVersionMatch") == Some("Exact");
    let wanted = revision(query)?;
    let (objects, at) = store.read(|state| -> ApiResult<(Vec<Arc<Value>>, u64)> {
        let fixed = match (&after, wanted) {
            (Some(token), _) => Some(token.revision),
            (None, Some(revision)) if exact => Some(revision),
            _ => None,
        };
        match fixed {
            // The pages of one list all show the same moment.
            Some(revision) => {
                let mut objects = state
                    .list_at(&target.resource.store, selection.namespace.as_deref(), revision)
                    .ok_or_else(|| {
                        ApiError::expired(
                            "The provided continue parameter is too old to display a consistent list result. \
                             You can start a new list without the continue parameter.",
                        )
                    })?;
                objects
                    .retain(|o| selection.covers(json::namespace(o), json::name(o)) && selection.matches(o));
                Ok((objects, revision))
            }
            None => Ok((selection.of(state, &target.resource.store).cloned().collect(), state.revision())),
        }
    })?;
    let place = |o: &Value| (json::namespace(o).to_owned(), json::name(o).to_owned());
    let start = match &after {
        Some(token) => {
            let last = (token.namespace.clone(), token.name.clone());
            objects.partition_point(|o| place(o) <= last)
        }
        None => 0,
    };
    let rest = objects.get(start..).unwrap_or_default();
    let page = rest.get(..limit.unwrap_or(usize::MAX).min(rest.len())).unwrap_or_default();
    let mut metadata = json!({ "resourceVersion": at.to_string() });
    if let (Some(last), true) = (page.last(), page.len() < rest.len())
        && let Some(map) = metadata.as_object_mut()
    {
        let (namespace, name) = place(last);
        map.insert("continue".into(), Continue { revision: at, namespace, name }.encode().into());
        map.insert("remainingItemCount".into(), (rest.len() - page.len()).into());
    }
    encode_list(target, page, &metadata, query, shape)
}

fn encode_list(
    target: &Target,
    page: &[Arc<Value>],
    metadata: &Value,
    query: &Query,
    shape: Shape,
) -> ApiResult<Bytes> {
    let resource = target.resource;
    let served = page.iter().map(|o| convert::to_served(resource, target.version, o));
    let failed = |e: serde_json::Error| ApiError::internal(e);
    if shape == Shape::Table {
        let served: Vec<_> = served.collect();
        let table = table::render(resource, served.iter().map(|o| &**o), metadata, query);
        return serde_json::to_vec(&table).map(Bytes::from).map_err(failed);
    }
    let (kind, api_version) = match shape {
        Shape::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        _ => (format!("{}List", resource.kind), resource.api_version(target.version)),
    };
    // Written piece by piece, so that a large list is not copied first.
    let head = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
    let mut out = serde_json::to_vec(&head).map_err(failed)?;
    out.pop();
    out.extend_from_slice(b",\"items\":[");
    for (index, object) in served.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if shape == Shape::Metadata {
            serde_json::to_writer(&mut out, &metadata_only(&object)).map_err(failed)?;
        } else {
            serde_json::to_writer(&mut out, &*object).map_err(failed)?;
        }
    }
    out.extend_from_slice(b"]}\n");
    Ok(out.into())
}
