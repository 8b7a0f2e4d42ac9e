//! ServiceEntries and DestinationRules over real streams: whom they reach, and whom not.

use std::sync::atomic::Ordering;

use maille_config::istio::{DestinationRule, ServiceEntry};
use maille_control::world::{Change, Event};
use maille_core::NamespacedName;
use maille_proto::facts as wire;
use maille_xds::type_urls::DESTINATION;
use serde_json::{Value, json};
use wire::client_tls::Mode;
use wire::destination::Kind;

use crate::lab::{CART, Lab, Proxy, WEB, eventually, pod};

fn entry(namespace: &str, name: &str, spec: Value) -> Event {
    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
    let entry: ServiceEntry = serde_json::from_value(object).expect("an entry");
    Event::ServiceEntry(Change::Put(entry))
}

fn rule(namespace: &str, name: &str, spec: Value) -> Event {
    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
    let rule: DestinationRule = serde_json::from_value(object).expect("a rule");
    Event::DestinationRule(Change::Put(rule))
}

fn tls(host: &str, mode: &str) -> Value {
    json!({"host": host, "trafficPolicy": {"tls": {"mode": mode}}})
}

fn hosts(hosts: Value, more: Value) -> Value {
    let mut spec = json!({"hosts": hosts, "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]});
    spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    spec
}

async fn asking(lab: &Lab, address: &'static str, account: &str, names: &[&str]) -> Proxy {
    let svid = lab.svid(address, &format!("shop:{account}")).await;
    let proxy = lab.proxy(address, svid).await;
    for name in names {
        proxy.client.subscribe(DESTINATION, name).expect("subscribes");
    }
    for name in names {
        eventually(name, || kind(&proxy, name)).await;
    }
    proxy
}

fn kind(proxy: &Proxy, name: &str) -> Option<Kind> {
    proxy.seen.get::<wire::Destination>(DESTINATION, name).and_then(|d| d.kind)
}

fn is_unknown(proxy: &Proxy, name: &str) -> bool {
    matches!(kind(proxy, name), Some(Kind::Unknown(_)))
}

fn entry_of(proxy: &Proxy, name: &str) -> Option<String> {
    match kind(proxy, name)? {
        Kind::Service(service) => Some(service.service_entry),
        _ => None,
    }
}

fn mode(proxy: &Proxy, name: &str) -> Option<Mode> {
    match kind(proxy, name)? {
        Kind::Service(service) => service.ports.first()?.tls.as_ref().map(wire::ClientTls::mode),
        _ => None,
    }
}

/// How often a change woke a subscriber.
async fn woken(lab: &Lab) -> u64 {
    let (_, text) = lab.http("/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix("maille_subscribers_woken_total"));
    value.and_then(|value| value.trim().parse().ok()).expect("the metric")
}

#[tokio::test]
async fn unknown_hosts_become_known_and_unknown_again() {
    let lab = Lab::new().await;
    let names = ["api.corp", "x.wild.corp", "10.9.1.2", "192.0.2.1", "other.corp"];
    let proxy = asking(&lab, WEB, "web", &names).await;
    assert!(names.iter().all(|name| is_unknown(&proxy, name)));
    let api = json!({"resolution": "DNS", "addresses": ["192.0.2.1"]});
    lab.apply(entry("shop", "a", hosts(json!(["api.corp"]), api)));
    let block = json!({"addresses": ["10.9.0.0/16"]});
    lab.apply(entry("bank", "b", hosts(json!(["*.wild.corp"]), block)));
    for (name, expected) in
        [("api.corp", "shop/a"), ("192.0.2.1", "shop/a"), ("x.wild.corp", "bank/b"), ("10.9.1.2", "bank/b")]
    {
        eventually(name, || entry_of(&proxy, name).filter(|entry| entry == expected)).await;
    }
    assert!(is_unknown(&proxy, "other.corp"));
    // What another namespace keeps for itself is gone from here.
    let private = json!({"addresses": ["10.9.0.0/16"], "exportTo": ["."]});
    lab.apply(entry("bank", "b", hosts(json!(["*.wild.corp"]), private)));
    for name in ["x.wild.corp", "10.9.1.2"] {
        eventually(name, || is_unknown(&proxy, name).then_some(())).await;
    }
    lab.apply(Event::ServiceEntry(Change::Delete(NamespacedName::new("shop", "a"))));
    for name in ["api.corp", "192.0.2.1"] {
        eventually(name, || is_unknown(&proxy, name).then_some(())).await;
    }
}

#[tokio::test]
async fn a_change_reaches_those_it_concerns_and_nobody_else() {
    let lab = Lab::new().await;
    lab.apply(entry("shop", "a", hosts(json!(["api.corp"]), json!({"resolution": "DNS"}))));
    lab.apply(entry("shop", "b", hosts(json!(["b.corp"]), json!({"resolution": "DNS"}))));
    let web = asking(&lab, WEB, "web", &["api.corp", "cart", "10.96.0.20"]).await;
    let cart = asking(&lab, CART, "cart", &["b.corp", "unrelated.corp"]).await;
    let received = |proxy: &Proxy| proxy.seen.received.load(Ordering::SeqCst);
    let before = (woken(&lab).await, received(&web), received(&cart));
    lab.apply(rule("shop", "api", tls("api.corp", "SIMPLE")));
    eventually("the rule", || mode(&web, "api.corp").filter(|m| *m == Mode::Simple)).await;
    lab.apply(rule("shop", "cart", tls("cart", "DISABLE")));
    for name in ["cart", "10.96.0.20"] {
        eventually(name, || mode(&web, name).filter(|m| *m == Mode::Disable)).await;
    }
    lab.apply(Event::DestinationRule(Change::Delete(NamespacedName::new("shop", "cart"))));
    for name in ["cart", "10.96.0.20"] {
        eventually(name, || mode(&web, name).is_none().then_some(())).await;
    }
    assert_eq!(woken(&lab).await - before.0, 3, "one subscriber, three times");
    assert_eq!(received(&web) - before.1, 1 + 2 + 2);
    assert_eq!(received(&cart), before.2);
    // A rule that does not decide is not sent, whomever it wakes.
    lab.apply(rule("bank", "api", tls("api.corp", "DISABLE")));
    lab.apply(rule("shop", "wide", tls("*.corp", "ISTIO_MUTUAL")));
    eventually("the wildcard", || mode(&cart, "b.corp").filter(|m| *m == Mode::IstioMutual)).await;
    assert_eq!(mode(&web, "api.corp"), Some(Mode::Simple), "the exact rule is nearer");
    assert_eq!(received(&web) - before.1, 1 + 2 + 2);
    assert!(is_unknown(&cart, "unrelated.corp"));
}

#[tokio::test]
async fn the_own_labels_decide_which_rule_holds() {
    let lab = Lab::new().await;
    let mut spec = tls("cart", "DISABLE");
    spec["workloadSelector"] = json!({"matchLabels": {"app": "web-v2"}});
    lab.apply(rule("shop", "r", spec));
    let proxy = asking(&lab, WEB, "web", &["cart"]).await;
    assert_eq!(mode(&proxy, "cart"), None);
    let mut relabelled = pod("web-1", "web", WEB);
    relabelled.labels.insert("app".into(), "web-v2".into());
    lab.apply(Event::Pod(Change::Put(relabelled)));
    eventually("the rule", || mode(&proxy, "cart").filter(|m| *m == Mode::Disable)).await;
}
