//! Names outside the cluster's domain that Services ask for, as external-dns makes them in a real cluster.
//!
//! A Service with the annotation `external-dns.alpha.kubernetes.io/hostname` gets its addresses under those names,
//! for everyone who asks this server. In a cluster external-dns writes them into a DNS zone; here
//! the cluster's server is the zone.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use kube::ResourceExt;
use maille_config::k8s::api::core::v1::Service;

use super::zone::{Record, Zone};

const HOSTNAME: &str = "external-dns.alpha.kubernetes.io/hostname";
const TTL: &str = "external-dns.alpha.kubernetes.io/ttl";

/// RFC 2181 section 8.
const LONGEST_TTL_S: u32 = i32::MAX as u32;

/// Names that one Service may ask for; more is a slip.
const MOST_NAMES: usize = 64;

/// What a name outside the cluster's domain stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExternalName {
    /// None while no endpoint is ready.
    pub(super) records: Vec<Record>,
    /// How long an answer may be kept; `None` as the cluster's own names.
    pub(super) ttl_s: Option<u32>,
}

/// Names by their owners, and what was wrong with what Services asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ExternalNames {
    names: HashMap<String, ExternalName>,
    /// For people: one line each.
    pub(super) problems: Vec<String>,
}

impl ExternalNames {
    /// What `name` (lower case, no final dot) stands for, if a Service asked for it.
    pub(super) fn get(&self, name: &str) -> Option<&ExternalName> {
        self.names.get(name)
    }

    /// Gives `service` the names it asks for, as far as they are free and not the cluster's.
    ///
    /// The caller adds Services from the oldest to the newest: a name belongs to who had it first. `namespaces` are
    /// those that have Services.
    pub(super) fn add(&mut self, service: &Service, records: &[Record], namespaces: &BTreeSet<String>) {
        let annotations = service.annotations();
        let Some(asked) = annotations.get(HOSTNAME) else { return };
        let owner = format!("Service {}/{}", service.namespace().unwrap_or_default(), service.name_any());
        let ttl_s = annotations.get(TTL).and_then(|text| {
            let ttl = ttl_seconds(text);
            if ttl.is_none() {
                self.problems.push(format!(
                    "{owner}: annotation {TTL} '{}' is no number of seconds and no duration such as 1m",
                    shown(text)
                ));
            }
            ttl
        });
        let mut names = asked.split(',').map(str::trim).filter(|name| !name.is_empty());
        for name in names.by_ref().take(MOST_NAMES) {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let problem = if !is_host_name(&name) {
                "is no DNS name of at least two parts"
            } else if Zone::is_own(&name) {
                "is in the cluster's own domain, whose names follow the Services themselves"
            } else if is_short_form(&name, namespaces) {
                "is a short form of a name in the cluster's own domain, whose names follow the Services themselves"
            } else {
                match self.names.entry(name.clone()) {
                    Entry::Vacant(free) => {
                        free.insert(ExternalName { records: records.to_vec(), ttl_s });
                        continue;
                    }
                    Entry::Occupied(_) => "belongs to an older Service",
                }
            };
            self.problems.push(format!("{owner}: annotation {HOSTNAME}: '{}' {problem}", shown(&name)));
        }
        if names.next().is_some() {
            self.problems.push(format!("{owner}: annotation {HOSTNAME} has more than {MOST_NAMES} names"));
        }
    }
}

/// What Pods write for a Service's full name: `<service>.<namespace>.svc`, `<service>.<namespace>`. A resolver that finds
/// no such Service asks for just that, and whoever has the name then gets what is meant for the Service.
fn is_short_form(name: &str, namespaces: &BTreeSet<String>) -> bool {
    let namespace = name.split_once('.').map(|(_, namespace)| namespace);
    name.ends_with(".svc") || namespace.is_some_and(|namespace| namespaces.contains(namespace))
}

/// Letters, digits, hyphens and underscores in two parts or more (RFC 1123 section 2.1, and `_` as in practice).
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(is_label)
}

/// Seconds, plain (`60`) or as a Go duration (`1m30s`), as external-dns takes them.
fn ttl_seconds(text: &str) -> Option<u32> {
    let text = text.trim();
    if let Ok(plain) = text.parse::<u32>() {
        return (1..=LONGEST_TTL_S).contains(&plain).then_some(plain);
    }
    let mut total = 0u32;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let unit = tail.chars().next()?;
        let seconds = match unit {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u32>().ok()?.checked_mul(seconds)?)?;
        rest = tail.get(unit.len_utf8()..)?;
    }
    (1..=LONGEST_TTL_S).contains(&total).then_some(total)
}

/// Fit for a line of log.
fn shown(text: &str) -> String {
    text.chars().take(100).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, hostname: &str, ttl: Option<&str>) -> Service {
        let mut annotations = json!({HOSTNAME: hostname});
        if let Some(ttl) = ttl {
            annotations[TTL] = json!(ttl);
        }
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "a", "annotations": annotations}}),
        )
        .expect("a Service")
    }

    fn none() -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn record(text: &str) -> Record {
        Record::Address(text.parse().expect("an address"))
    }

    #[test]
    fn each_name_of_the_list_is_given_with_its_ttl() {
        let mut names = ExternalNames::default();
        names.add(
            &service("x", "API.example.com., other.example.com", Some("1m")),
            &[record("10.244.1.1")],
            &none(),
        );
        for name in ["api.example.com", "other.example.com"] {
            let found = names.get(name).expect(name);
            assert_eq!((found.ttl_s, &found.records[..]), (Some(60), &[record("10.244.1.1")][..]));
        }
        assert!(names.problems.is_empty());
    }

    #[test]
    fn names_of_the_cluster_of_others_and_no_names_are_refused_with_the_reason() {
        let mut names = ExternalNames::default();
        let namespaces = ["bank".to_owned(), "com".to_owned()].into();
        names.add(&service("old", "api.example.com", None), &[record("10.244.1.1")], &namespaces);
        names.add(
            &service(
                "new",
                "kubernetes.default.svc.cluster.local,cluster.local,api.example.com,com,a..b,\
                 ledger.bank,LEDGER.bank.svc.,db-0.db.bank.svc,x.svc",
                None,
            ),
            &[record("10.244.1.2")],
            &namespaces,
        );
        assert_eq!(names.get("api.example.com").map(|n| &n.records[..]), Some(&[record("10.244.1.1")][..]));
        assert_eq!((names.names.len(), names.problems.len()), (1, 9), "{:?}", names.problems);
        assert!(names.problems.iter().all(|problem| problem.contains("Service a/new")));
    }

    #[test]
    fn a_ttl_is_seconds_or_a_duration() {
        let rows = [
            ("60", Some(60)),
            ("1m", Some(60)),
            ("1h0m5s", Some(3605)),
            ("0", None),
            ("", None),
            ("x", None),
            ("-5", None),
            ("9999999999", None),
            ("5ms", None),
            ("3é", None),
        ];
        for (text, expected) in rows {
            assert_eq!(ttl_seconds(text), expected, "{text}");
        }
    }
}
