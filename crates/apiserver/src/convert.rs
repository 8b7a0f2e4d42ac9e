//! Between the stored form of an object and the version it is asked for in.
//!
//! All versions of a kind share one shape, so that only `apiVersion` differs; the exception are events,
//! which two groups show in two shapes.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::json;
use crate::resources::Resource;

/// Field names of an event: in `events.k8s.io/v1`, and as stored (core `v1`).
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// The object as `resource` in `version` shows it.
pub(crate) fn to_served<'a>(resource: &Resource, version: &str, object: &'a Value) -> Cow<'a, Value> {
    let api_version = resource.api_version(version);
    if json::text(object, &["apiVersion"]) == api_version {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    let map = json::map_of(&mut object);
    if resource.is("events.k8s.io", "events") {
        rename(map, |stored| EVENT_FIELDS.iter().find(|(_, s)| *s == stored).map(|(n, _)| *n));
        json::default_to(map, "eventTime", Value::Null);
    }
    map.insert("apiVersion".into(), api_version.into());
    Cow::Owned(object)
}

/// The object as it is stored.
pub(crate) fn to_stored(resource: &Resource, object: &mut Value) {
    let map = json::map_of(object);
    if resource.is("events.k8s.io", "events") {
        rename(map, |served| EVENT_FIELDS.iter().find(|(n, _)| *n == served).map(|(_, s)| *s));
        map.insert("apiVersion".into(), "v1".into());
    } else {
        map.insert("apiVersion".into(), resource.storage_version().into());
    }
    map.insert("kind".into(), resource.kind.into());
}

fn rename(map: &mut Map<String, Value>, new_name: impl Fn(&str) -> Option<&'static str>) {
    let old = std::mem::take(map);
    for (key, value) in old {
        let key = new_name(&key).map_or(key, str::to_owned);
        map.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_the_same_in_both_groups() {
        let new = crate::resources::by_name("events.k8s.io", "events").expect("served");
        let original = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "x"}, "note": "n",
            "regarding": {"kind": "Pod"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        });
        let mut stored = original.clone();
        to_stored(new, &mut stored);
        assert_eq!(stored["message"], "n");
        assert_eq!(stored["involvedObject"]["kind"], "Pod");
        assert_eq!(*to_served(new, "v1", &stored), original);
    }
}
