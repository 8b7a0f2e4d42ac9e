//! Label and field selectors of lists and watches.
//!
//! Source: apimachinery `labels.Parse` and `fields.ParseSelector`; the fields are those Kubernetes
//! indexes for each kind.

use serde_json::Value;

use crate::json;
use crate::resources::Resource;
use crate::status::{ApiError, ApiResult};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Demand {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    NotExists,
    Greater(i64),
    Less(i64),
}

/// A label selector: all demands hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<(String, Demand)>);

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),h,!i`.
    pub(crate) fn parse(text: &str) -> ApiResult<Self> {
        let bad = |why: &str| {
            ApiError::bad_request(format!(
                "unable to parse requirement: {why}: \"{text}\" is not a label selector"
            ))
        };
        let mut demands = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            demands.push(parse_demand(part).ok_or_else(|| bad(part))?);
        }
        Ok(Self(demands))
    }

    /// The selector of a spec: `matchLabels` and `matchExpressions`.
    pub(crate) fn of_spec(selector: &Value) -> Self {
        let mut demands = Vec::new();
        for (key, value) in
            json::at(selector, &["matchLabels"]).and_then(Value::as_object).into_iter().flatten()
        {
            demands.push((key.clone(), Demand::In(vec![value.as_str().unwrap_or_default().to_owned()])));
        }
        for expression in json::items(selector, &["matchExpressions"]) {
            let values: Vec<String> = json::items(expression, &["values"])
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            let demand = match json::text(expression, &["operator"]) {
                "In" => Demand::In(values),
                "NotIn" => Demand::NotIn(values),
                "Exists" => Demand::Exists,
                "DoesNotExist" => Demand::NotExists,
                // Validation refuses others; whatever slips through selects nothing.
                _ => Demand::In(Vec::new()),
            };
            demands.push((json::text(expression, &["key"]).to_owned(), demand));
        }
        Self(demands)
    }

    /// Whether the labels of an object satisfy it.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.matches_labels(json::at(object, &["metadata", "labels"]).unwrap_or(&Value::Null))
    }

    /// Whether these labels satisfy it.
    pub(crate) fn matches_labels(&self, labels: &Value) -> bool {
        self.0.iter().all(|(key, demand)| {
            let value = labels.get(key).and_then(Value::as_str);
            let number = || value.and_then(|v| v.parse::<i64>().ok());
            match demand {
                Demand::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
                Demand::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
                Demand::Exists => value.is_some(),
                Demand::NotExists => value.is_none(),
                Demand::Greater(than) => number().is_some_and(|n| n > *than),
                Demand::Less(than) => number().is_some_and(|n| n < *than),
            }
        })
    }

    /// In the form [`LabelSelector::parse`] reads: what `status.selector` of a Scale holds.
    pub(crate) fn to_text(&self) -> String {
        let parts = self.0.iter().map(|(key, demand)| match demand {
            Demand::In(values) => match values.as_slice() {
                [one] => format!("{key}={one}"),
                many => format!("{key} in ({})", many.join(",")),
            },
            Demand::NotIn(values) => format!("{key} notin ({})", values.join(",")),
            Demand::Exists => key.clone(),
            Demand::NotExists => format!("!{key}"),
            Demand::Greater(n) => format!("{key}>{n}"),
            Demand::Less(n) => format!("{key}<{n}"),
        });
        parts.collect::<Vec<_>>().join(",")
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

fn parse_demand(part: &str) -> Option<(String, Demand)> {
    let key = |k: &str| is_label_key(k.trim()).then(|| k.trim().to_owned());
    let value = |v: &str| is_label_value(v.trim()).then(|| v.trim().to_owned());
    if let Some(rest) = part.strip_prefix('!') {
        return Some((key(rest)?, Demand::NotExists));
    }
    if let Some((k, v)) = part.split_once("!=") {
        return Some((key(k)?, Demand::NotIn(vec![value(v)?])));
    }
    if let Some((k, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some((key(k)?, Demand::In(vec![value(v)?])));
    }
    if let Some((k, v)) = part.split_once('>') {
        return Some((key(k)?, Demand::Greater(v.trim().parse().ok()?)));
    }
    if let Some((k, v)) = part.split_once('<') {
        return Some((key(k)?, Demand::Less(v.trim().parse().ok()?)));
    }
    if let Some((head, list)) = part.split_once('(') {
        let values: Option<Vec<String>> = list.strip_suffix(')')?.split(',').map(value).collect();
        let mut words = head.split_whitespace();
        let (name, operator) = (words.next()?, words.next()?);
        if words.next().is_some() {
            return None;
        }
        return match operator {
            "in" => Some((key(name)?, Demand::In(values?))),
            "notin" => Some((key(name)?, Demand::NotIn(values?))),
            _ => None,
        };
    }
    Some((key(part)?, Demand::Exists))
}

/// Whether `text` may be a label's or annotation's key: `[prefix/]name`.
pub(crate) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    prefix.is_none_or(maille_core::is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

/// Whether `text` may be a label's value: 63 characters, letters, digits, `-`, `_`, `.`, alphanumeric at
/// both ends; may be empty.
pub(crate) fn is_label_value(text: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && ends(bytes.first())
        && ends(bytes.last())
}

/// A field selector: all pairs equal, or differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSelector(Vec<(String, bool, String)>);

impl FieldSelector {
    /// Parses `metadata.name=x,status.phase!=Running`, for fields that `resource` can be selected by.
    pub(crate) fn parse(text: &str, resource: &Resource) -> ApiResult<Self> {
        let mut terms = Vec::new();
        for part in split_escaped(text) {
            if part.is_empty() {
                continue;
            }
            let (field, equal, value) = part
                .split_once("!=")
                .map(|(f, v)| (f, false, v))
                .or_else(|| part.split_once("==").map(|(f, v)| (f, true, v)))
                .or_else(|| part.split_once('=').map(|(f, v)| (f, true, v)))
                .ok_or_else(|| {
                    ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'"))
                })?;
            if !is_selectable(resource, field) {
                return Err(ApiError::bad_request(format!("field label not supported: {field}")));
            }
            terms.push((field.to_owned(), equal, value.to_owned()));
        }
        Ok(Self(terms))
    }

    /// Whether an object satisfies it.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(field, equal, wanted)| {
            let stored = stored_field(field);
            let path: Vec<&str> = stored.split('.').collect();
            let found = match json::at(object, &path) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            (found == *wanted) == *equal
        })
    }

    /// The name that it demands, if it does.
    pub(crate) fn name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|(field, equal, _)| *equal && field == "metadata.name")
            .map(|(_, _, name)| name.as_str())
    }
}

/// Events are stored as core events, whichever group asks.
fn stored_field(field: &str) -> String {
    match field.strip_prefix("regarding.") {
        Some(rest) => format!("involvedObject.{rest}"),
        None if field == "reportingController" => "reportingComponent".to_owned(),
        None => field.to_owned(),
    }
}

fn is_selectable(resource: &Resource, field: &str) -> bool {
    let extra: &[&str] = match resource.plural {
        "pods" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "events" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
        ],
        "secrets" => &["type"],
        "namespaces" => &["status.phase"],
        "nodes" => &["spec.unschedulable"],
        "services" => &["spec.clusterIP", "spec.type"],
        "replicasets" => &["status.replicas"],
        _ => &[],
    };
    matches!(field, "metadata.name" | "metadata.namespace") || extra.contains(&field)
}

/// Splits at commas; `\,`, `\=` and `\\` stand for the character itself.
fn split_escaped(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        match c {
            ',' if !escaped => parts.push(String::new()),
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            c => {
                if let Some(last) = parts.last_mut() {
                    last.push(c);
                }
            }
        }
        escaped = false;
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_read_as_kubernetes_writes_them() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front", "n": "5"}}});
        for (text, want) in [
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (web, api)", true),
            ("app notin (web)", false),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>4,n<6", true),
            ("missing=", false),
            ("", true),
        ] {
            assert_eq!(LabelSelector::parse(text).expect(text).matches(&object), want, "{text}");
        }
        for bad in ["a b", "=x", "a in b", "a=b=c", "a in (b", "a=-"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn field_selectors_know_their_fields() {
        let pods = crate::resources::by_name("", "pods").expect("pods are served");
        let pod = json!({"metadata": {"name": "a"}, "status": {"phase": "Running"}});
        assert!(
            FieldSelector::parse("status.phase!=Failed,metadata.name=a", pods).expect("valid").matches(&pod)
        );
        assert!(!FieldSelector::parse("spec.nodeName=x", pods).expect("valid").matches(&pod));
        assert!(FieldSelector::parse("spec.nodeName=", pods).expect("valid").matches(&pod));
        assert!(FieldSelector::parse("spec.nope=1", pods).is_err());
    }
}
