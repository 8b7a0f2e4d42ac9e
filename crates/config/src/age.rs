//! Which of several objects is the oldest: where they contradict each other, it wins.

use std::cmp::Ordering;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Oldest first; in the same second by name, then namespace. An object without a creation time is not stored yet, and
/// newest.
pub(crate) fn by_age(a: &ObjectMeta, b: &ObjectMeta) -> Ordering {
    let seconds = |meta: &ObjectMeta| meta.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second());
    (seconds(a), &a.name, &a.namespace).cmp(&(seconds(b), &b.name, &b.namespace))
}
