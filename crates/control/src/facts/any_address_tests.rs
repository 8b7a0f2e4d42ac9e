//! What a port means of any address (reference mtls 4.1, 4.3).

use maille_config::istio::ServiceEntry;
use serde_json::{Value, json};

use super::external_tests::Mesh;
use super::*;
use crate::world::{Change, Event};
use wire::destination::Kind;

/// An entry with one port and no address.
fn spec(host: &str, port: u16, protocol: &str, more: Value) -> Value {
    let mut spec = json!({
        "hosts": [host], "ports": [{"number": port, "name": "p", "protocol": protocol}],
        "resolution": "STATIC", "endpoints": [{"address": "192.0.2.1"}],
    });
    spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    spec
}

impl Mesh {
    /// An entry that is `age` seconds younger than the oldest.
    fn aged(self, name: &str, age: u8, spec: Value) -> Self {
        self.aged_with(name, age, spec, json!(null))
    }

    fn aged_with(self, name: &str, age: u8, spec: Value, status: Value) -> Self {
        let created = format!("2026-01-01T00:00:{age:02}Z");
        let metadata = json!({"namespace": "corp", "name": name, "creationTimestamp": created});
        let object = json!({"metadata": metadata, "spec": spec, "status": status});
        let entry: ServiceEntry = serde_json::from_value(object).expect("an entry");
        self.with(Event::ServiceEntry(Change::Put(entry)))
    }

    /// Whether requests and server names are looked at, and who gets the rest.
    fn at(&self, port: &str) -> (bool, bool, String) {
        match self.ask("shop", &format!("*:{port}")) {
            Kind::AnyAddress(any) => {
                (any.http, any.tls, any.service.map(|s| s.service_entry).unwrap_or_default())
            }
            other => panic!("{port}: {other:?}"),
        }
    }
}

fn nothing() -> (bool, bool, String) {
    (false, false, String::new())
}

fn for_entry(name: &str) -> (bool, bool, String) {
    (false, false, format!("corp/{name}"))
}

/// OT-1, OT-2.
#[test]
fn requests_are_looked_at_where_somebody_takes_them() {
    let mesh = Mesh::new().cart(false).entry("corp", "api", spec("api.corp", 8080, "GRPC", json!({})));
    for port in ["80", "81", "8080"] {
        assert_eq!(mesh.at(port), (true, false, String::new()), "{port}");
    }
    assert_eq!(mesh.at("443"), nothing(), "nobody has it");
    // Addresses do not restrict requests (SE-9), and what has an address of its own is opaque elsewhere.
    let addressed = json!({"addresses": ["10.9.0.1"]});
    let mesh = Mesh::new()
        .entry("corp", "web", spec("web.corp", 80, "HTTP", addressed.clone()))
        .entry("corp", "auto", spec("auto.corp", 81, "", addressed.clone()))
        .entry("corp", "block", spec("block.corp", 82, "", json!({"addresses": ["10.9.0.0/16"]})))
        .entry("corp", "tls", spec("tls.corp", 443, "TLS", addressed.clone()))
        .entry("corp", "db", spec("db.corp", 5432, "TCP", addressed));
    assert_eq!(mesh.at("80"), (true, false, String::new()));
    assert_eq!(mesh.at("82"), (true, false, String::new()));
    for port in ["81", "443", "5432"] {
        assert_eq!(mesh.at(port), nothing(), "{port}");
    }
}

/// SE-10, OT-4.
#[test]
fn server_names_are_looked_at_where_an_entry_has_no_address() {
    let mesh = Mesh::new().entry("corp", "tls", spec("*.corp", 443, "TLS", json!({"resolution": "NONE"})));
    assert_eq!(mesh.at("443"), (false, true, String::new()));
    // Where a rule has TLS begin at the client, plain requests are taken, too.
    let rule = |mode: &str| json!({"host": "*.corp", "trafficPolicy": {"tls": {"mode": mode}}});
    assert_eq!(mesh.rule("corp", "tls", rule("SIMPLE")).at("443"), (true, true, String::new()));
    let mesh = Mesh::new().entry("corp", "tls", spec("*.corp", 443, "TLS", json!({})));
    assert_eq!(mesh.rule("corp", "tls", rule("DISABLE")).at("443"), (false, true, String::new()));
}

/// SE-11, SE-12.
#[test]
fn the_oldest_entry_without_address_catches_opaque_bytes() {
    let mesh = Mesh::new()
        .aged("young", 9, spec("a.corp", 5432, "TCP", json!({})))
        .aged("old", 1, spec("b.corp", 5432, "TCP", json!({"resolution": "NONE", "endpoints": []})))
        .aged("auto", 1, spec("c.corp", 5433, "", json!({})));
    assert_eq!(mesh.at("5432"), for_entry("old"));
    assert_eq!(mesh.at("5433"), (true, false, "corp/auto".into()));
    // One that only the own namespace sees goes first, and what is not seen is not there.
    let private = spec("d.corp", 5432, "TCP", json!({"exportTo": ["."]}));
    let mesh = mesh.entry("shop", "own", private.clone()).entry("bank", "other", private);
    assert_eq!(mesh.at("5432").2, "shop/own");
    let mesh = mesh.aged("old", 1, spec("b.corp", 5432, "TCP", json!({"exportTo": ["bank"]})));
    assert_eq!(mesh.at("5432").2, "shop/own");
}

#[test]
fn an_entry_whose_host_is_somebody_elses_catches_nothing() {
    let host = "cart.shop.svc.cluster.local";
    let mesh = Mesh::new().aged("thief", 1, spec(host, 5432, "TCP", json!({})));
    assert_eq!(mesh.at("5432"), for_entry("thief"), "while there is no such Service");
    assert_eq!(mesh.cart(false).at("5432"), nothing());
    let mesh = Mesh::new().aged("owner", 1, spec("db.corp", 5432, "TCP", json!({}))).entry(
        "bank",
        "late",
        spec("db.corp", 6000, "TCP", json!({})),
    );
    assert_eq!((mesh.at("5432"), mesh.at("6000")), (for_entry("owner"), nothing()));
    // An entry of the same namespace adds its port, and the host is the owner's.
    let mesh = mesh.aged("more", 2, spec("db.corp", 6001, "TCP", json!({})));
    assert_eq!(mesh.at("6001"), for_entry("owner"));
}

/// SE-13.
#[test]
fn protocols_whose_servers_speak_first_share_no_port() {
    let mysql = |age| Mesh::new().aged("db", age, spec("db.corp", 3306, "MYSQL", json!({})));
    let web = |age| move |mesh: Mesh| mesh.aged("web", age, spec("web.corp", 3306, "HTTP", json!({})));
    assert_eq!(web(5)(mysql(1)).at("3306"), for_entry("db"), "the requests came later");
    assert_eq!(web(1)(mysql(5)).at("3306"), (true, false, String::new()), "the database came later");
    let both = mysql(1).aged("tcp", 5, spec("tcp.corp", 3306, "TCP", json!({})));
    assert_eq!(both.at("3306"), for_entry("db"));
    let both = mysql(5).aged("tcp", 1, spec("tcp.corp", 3306, "TCP", json!({})));
    assert_eq!(both.at("3306"), for_entry("tcp"));
    // A Service of the cluster counts, too; it was created a second after 1970 here.
    let mesh = Mesh::new().cart(false).aged("db", 1, spec("db.corp", 80, "MONGO", json!({})));
    assert_eq!(mesh.at("80"), (true, false, String::new()));
    // Other opaque protocols share a port with requests.
    let mesh = Mesh::new().cart(false).aged("db", 1, spec("db.corp", 80, "REDIS", json!({})));
    assert_eq!(mesh.at("80"), (true, false, "corp/db".into()));
}

/// SE-17.
#[test]
fn allocated_addresses_tell_entries_apart_for_those_who_are_given_them() {
    let status = json!({"addresses": [{"host": "db.corp", "value": "240.240.0.1"}]});
    let mesh =
        Mesh::new().aged_with("db", 1, spec("db.corp", 5432, "TCP", json!({"resolution": "DNS"})), status);
    assert_eq!(mesh.at("5432"), for_entry("db"), "who asks DNS himself dials any address");
    assert_eq!(mesh.at("5432/dns"), nothing());
    let mesh =
        mesh.aged("none", 5, spec("x.corp", 5432, "TCP", json!({"resolution": "NONE", "endpoints": []})));
    assert_eq!(mesh.at("5432"), for_entry("db"));
    assert_eq!(mesh.at("5432/dns"), for_entry("none"));
}

#[test]
fn what_is_reached_otherwise_is_not_reached_by_its_port() {
    let selecting =
        json!({"resolution": "NONE", "endpoints": [], "workloadSelector": {"labels": {"app": "x"}}});
    let mesh = Mesh::new().entry("corp", "selecting", spec("a.corp", 5432, "TCP", selecting)).entry(
        "corp",
        "dynamic",
        spec("*.corp", 5433, "", json!({"resolution": "DYNAMIC_DNS", "endpoints": []})),
    );
    assert_eq!(mesh.at("5432"), nothing());
    assert_eq!(mesh.at("5433"), (true, false, String::new()));
}
