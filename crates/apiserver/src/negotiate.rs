//! In which shape a client wants the answer (`Accept`).

use http::HeaderMap;
use http::header::ACCEPT;

use crate::status::{ApiError, ApiResult};

/// The shape of an answer; all are JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The object or list itself.
    Plain,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `PartialObjectMetadata` and its list.
    Metadata,
    /// `apidiscovery.k8s.io/v2 APIGroupDiscoveryList`.
    AggregatedDiscovery,
}

/// The first acceptable shape, in the client's order.
pub(crate) fn shape(headers: &HeaderMap) -> ApiResult<Shape> {
    let mut any = false;
    for value in headers.get_all(ACCEPT) {
        let Ok(value) = value.to_str() else { continue };
        for media in value.split(',') {
            any = true;
            if let Some(shape) = parse(media) {
                return Ok(shape);
            }
        }
    }
    if any { Err(ApiError::not_acceptable()) } else { Ok(Shape::Plain) }
}

fn parse(media: &str) -> Option<Shape> {
    let mut parts = media.split(';').map(str::trim);
    let kind = parts.next()?;
    let (mut target, mut group, mut version) = ("", "", "");
    for parameter in parts {
        match parameter.split_once('=') {
            Some(("as", v)) => target = v,
            Some(("g", v)) => group = v,
            Some(("v", v)) => version = v,
            _ => {}
        }
    }
    if !matches!(kind, "application/json" | "application/*" | "*/*" | "text/*" | "text/plain") {
        return None;
    }
    match (target, group, version) {
        ("", _, _) => Some(Shape::Plain),
        ("Table", "meta.k8s.io", "v1") => Some(Shape::Table),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => Some(Shape::Metadata),
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Some(Shape::AggregatedDiscovery),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_gets_tables_and_others_plain_json() {
        let with = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("header"));
            shape(&headers)
        };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(with(kubectl).expect("table"), Shape::Table);
        assert_eq!(with("application/vnd.kubernetes.protobuf,application/json").expect("json"), Shape::Plain);
        assert!(with("application/vnd.kubernetes.protobuf").is_err());
        assert_eq!(shape(&HeaderMap::new()).expect("plain"), Shape::Plain);
    }
}
