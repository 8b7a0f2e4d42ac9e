use serde_json::{Value, json};

use super::*;

fn entry(name: &str, namespace: &str, second: u32, spec: Value) -> ServiceEntry {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
        "spec": spec,
    }))
    .expect("an entry")
}

fn owner(entries: &[ServiceEntry], namespace: &str, host: &str) -> Option<(String, Vec<String>)> {
    let (pattern, owners) = owners_of_host(entries, namespace, host)?;
    let names = owners.iter().map(|e| e.metadata.name.clone().unwrap_or_default());
    Some((pattern.as_str().to_owned(), names.collect()))
}

fn found(pattern: &str, names: &[&str]) -> Option<(String, Vec<String>)> {
    Some((pattern.to_owned(), names.iter().map(|n| (*n).to_owned()).collect()))
}

#[test]
fn the_oldest_entry_owns_a_host_and_its_namespace_may_add_ports() {
    let entries = [
        entry("young", "a", 9, json!({"hosts": ["x.corp"], "resolution": "DNS"})),
        entry("old", "b", 1, json!({"hosts": ["x.corp"], "resolution": "DNS"})),
        entry("more", "b", 5, json!({"hosts": ["x.corp"], "resolution": "DNS"})),
        entry("other", "b", 6, json!({"hosts": ["x.corp"], "resolution": "STATIC"})),
    ];
    assert_eq!(owner(&entries, "c", "X.corp"), found("x.corp", &["old", "more"]), "SE-2");
    assert_eq!(owner(&entries, "c", "y.corp"), None);
}

#[test]
fn exact_hosts_go_before_wildcards_and_longer_wildcards_before_shorter() {
    let entries = [
        entry("wide", "a", 0, json!({"hosts": ["*.corp"]})),
        entry("narrow", "a", 1, json!({"hosts": ["*.db.corp"]})),
        entry("exact", "a", 2, json!({"hosts": ["x.db.corp", "corp"]})),
    ];
    assert_eq!(owner(&entries, "a", "x.db.corp"), found("x.db.corp", &["exact"]));
    assert_eq!(owner(&entries, "a", "y.db.corp"), found("*.db.corp", &["narrow"]));
    assert_eq!(owner(&entries, "a", "z.corp"), found("*.corp", &["wide"]));
    assert_eq!(owner(&entries, "a", "corp"), found("corp", &["exact"]));
}

#[test]
fn what_a_namespace_does_not_see_neither_counts_nor_hides() {
    let hosts = |export_to: &[&str]| json!({"hosts": ["x.corp"], "exportTo": export_to});
    let wide = || entry("wide", "a", 9, json!({"hosts": ["*.corp"]}));
    let entries = [wide(), entry("private", "a", 0, hosts(&["."]))];
    assert_eq!(owner(&entries, "a", "x.corp"), found("x.corp", &["private"]));
    assert_eq!(owner(&entries, "b", "x.corp"), found("*.corp", &["wide"]));
    let entries = [wide(), entry("nobody", "a", 0, hosts(&["~"]))];
    assert_eq!(owner(&entries, "a", "x.corp"), found("*.corp", &["wide"]));
    // What is for few goes before what is for everybody.
    let entries = [
        entry("all", "a", 0, hosts(&[])),
        entry("some", "a", 1, hosts(&["b"])),
        entry("own", "b", 2, hosts(&["."])),
    ];
    assert_eq!(owner(&entries, "b", "x.corp"), found("x.corp", &["own"]));
    assert_eq!(owner(&entries, "c", "x.corp"), found("x.corp", &["all"]));
    assert_eq!(owner(&entries[..2], "b", "x.corp"), found("x.corp", &["some", "all"]));
}

#[test]
fn endpoint_ports_are_taken_by_name_then_target_then_number() {
    let port = |target: Option<u32>| ServiceEntryPort {
        number: 80,
        name: "http".into(),
        protocol: String::new(),
        target_port: target,
    };
    let named = WorkloadEntrySpec { ports: [("http".to_owned(), 9000)].into(), ..Default::default() };
    assert_eq!(endpoint_port(&named, &port(Some(8080))), Some(9000));
    assert_eq!(endpoint_port(&WorkloadEntrySpec::default(), &port(Some(8080))), Some(8080));
    assert_eq!(endpoint_port(&WorkloadEntrySpec::default(), &port(None)), Some(80));
    assert_eq!(endpoint_port(&WorkloadEntrySpec::default(), &port(Some(70000))), None);
}

#[test]
fn protocols_are_istios() {
    for (text, class) in [
        ("", Some(PortClass::Auto)),
        ("HTTP", Some(PortClass::Http)),
        ("grpc", Some(PortClass::Http2)),
        ("HTTPS", Some(PortClass::Tls)),
        ("tls", Some(PortClass::Tls)),
        ("MONGO", Some(PortClass::Tcp)),
        ("UDP", None),
        ("SCTP", None),
    ] {
        assert_eq!(PortClass::parse(text), class, "{text}");
    }
}

/// SE-15.
#[test]
fn hosts_without_addresses_get_some() {
    let given = |spec: Value, label: Option<&str>| {
        let mut entry = entry("e", "a", 0, spec);
        entry.metadata.labels = label.map(|value| [(ALLOCATION_LABEL.to_owned(), value.to_owned())].into());
        allocates(&entry)
    };
    let dns = || json!({"hosts": ["x.corp"], "resolution": "DNS"});
    assert!(given(dns(), None));
    assert!(given(dns(), Some("true")));
    assert!(!given(dns(), Some("False")));
    assert!(given(json!({"hosts": ["x.corp"], "resolution": "STATIC"}), None));
    assert!(!given(json!({"hosts": ["x.corp"], "resolution": "STATIC", "addresses": ["10.0.0.1"]}), None));
    assert!(!given(json!({"hosts": ["x.corp"]}), None));
    assert!(!given(json!({"hosts": ["*.corp"], "resolution": "STATIC"}), None));
    assert!(given(json!({"hosts": ["*.corp", "x.corp"], "resolution": "STATIC"}), None));
    assert!(given(json!({"hosts": ["*.corp"], "resolution": "DYNAMIC_DNS"}), None));
}
