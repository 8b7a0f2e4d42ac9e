use serde_json::{Value, json};

use super::fake_api::FakeApi;
use super::{eventually, pod, start};

fn entry(name: &str, hosts: &[&str], created: &str) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": name, "creationTimestamp": created },
        "spec": {
            "hosts": hosts, "resolution": "DNS", "location": "MESH_EXTERNAL",
            "ports": [{ "number": 5432, "name": "tcp", "protocol": "TCP" }],
        },
    })
}

/// What stands in the status: address by address.
fn addresses(api: &FakeApi, name: &str) -> Vec<String> {
    let object = api.get("serviceentries", "shop", name).expect("there");
    let all = object["status"]["addresses"].as_array().cloned().unwrap_or_default();
    all.iter().map(|found| found["value"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn hosts_without_an_address_get_ones_that_outlive_a_restart() {
    let api = FakeApi::new();
    api.put("pods", pod("cart-1", "10.0.0.1"));
    api.put("serviceentries", entry("db", &["db1.corp", "db2.corp"], "2026-01-01T00:00:00Z"));
    let mut written = entry("written", &["c.corp"], "2026-01-01T00:00:00Z");
    written["spec"]["addresses"] = json!(["192.0.2.1"]);
    written["status"] = json!({ "addresses": [{ "value": "240.240.0.9", "host": "c.corp" }] });
    api.put("serviceentries", written);
    let running = start(api.clone()).await;
    running.ready().await;
    let given = async |name: &str, n: usize| {
        eventually(name, async || Some(addresses(&api, name)).filter(|all| all.len() == n)).await
    };
    let db = given("db", 4).await;
    assert!(db.iter().any(|a| a.starts_with("240.240.")) && db.iter().any(|a| a.starts_with("2001:2::")));
    given("written", 0).await;
    // Proxies are told once the address is in force.
    let path = format!("shop/cart-1&destinations=db1.corp,{}", db[0]);
    let told = eventually("facts", async || {
        let facts = running.facts(&path).await;
        let all = facts["destinations"].as_array().cloned().unwrap_or_default();
        let service = |found: &Value| found["destination"]["service"].clone();
        let all: Vec<Value> = all.iter().map(service).collect();
        let has_addresses = |s: &Value| s["addresses"].as_array().is_some_and(|a| a.len() == 2);
        (all.len() == 2 && all.iter().all(has_addresses)).then_some(all)
    })
    .await;
    assert!(told.iter().all(|service| service["hostname"] == "db1.corp"), "{told:?}");
    running.stop.send_replace(true);
    running.task.await.expect("joins").expect("fine");

    let writes = api.status_writes();
    let (successor, replica) = (start(api.clone()).await, start(api.clone()).await);
    successor.ready().await;
    replica.ready().await;
    api.put("serviceentries", entry("later", &["db3.corp"], "2026-01-02T00:00:00Z"));
    let later = given("later", 2).await;
    assert_eq!(addresses(&api, "db"), db, "those of before stay");
    assert!(later.iter().all(|address| !db.contains(address)));
    assert_eq!(api.status_writes(), writes + 1, "of two replicas one writes");
}

fn secret(name: &str, pairs: &[(&str, &str)]) -> Value {
    let data: serde_json::Map<String, Value> =
        pairs.iter().map(|(key, value)| ((*key).to_owned(), json!(base64(value)))).collect();
    json!({ "metadata": { "namespace": "shop", "name": name }, "data": data })
}

/// RFC 4648, for what a Secret holds.
fn base64(text: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let chunks = text.as_bytes().chunks(3).map(|chunk| {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let letter = |n: usize| char::from(LETTERS[(bits >> (18 - 6 * n)) as usize & 63]);
        (0..4).map(|n| if n <= chunk.len() { letter(n) } else { '=' }).collect::<String>()
    });
    chunks.collect()
}

#[tokio::test]
async fn secrets_are_read_only_while_a_rule_names_them() {
    use maille_control::world::{CredentialSource, Event};
    let certificate = "-----BEGIN CERTIFICATE-----\nfirst\n-----END CERTIFICATE-----\n";
    let api = FakeApi::new();
    api.put("secrets", secret("other", &[("cacert", certificate)]));
    let (named, sources) = tokio::sync::watch::channel(std::collections::BTreeMap::new());
    let (sender, mut events) = tokio::sync::mpsc::channel(16);
    tokio::spawn(crate::credentials::follow(api.client(), sources, sender));
    let mut next =
        async || match tokio::time::timeout(std::time::Duration::from_secs(10), events.recv()).await {
            Ok(Some(Event::Credential(source, data))) => (source.to_string(), format!("{data:?}")),
            other => panic!("no news: {other:?}"),
        };
    let source = CredentialSource::parse("shop/api").expect("a name");
    named.send_replace([(source.clone(), 1)].into());
    let (name, missing) = next().await;
    assert!(name == "shop/api" && missing.contains("there is no Secret shop/api"), "{missing}");
    api.put("secrets", secret("api-cacert", &[("cacert", certificate)]));
    assert!(next().await.1.contains("Known"), "the authority alone");
    api.put("secrets", secret("api", &[("wrong", "x")]));
    api.delete("secrets", "shop", "api-cacert");
    while !next().await.1.contains("it has: wrong") {}
    let key = "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n";
    api.put("secrets", secret("api", &[("tls.crt", certificate), ("tls.key", key)]));
    let (_, known) = next().await;
    assert!(known.contains("Known") && !known.contains("hush"), "{known}");
    // Named anew, it is read anew; named no more, it is not followed.
    named.send_replace([(source, 2)].into());
    assert!(next().await.1.contains("Known"));
    named.send_replace(std::collections::BTreeMap::new());
    eventually("nobody watches", async || (api.watchers() == 0).then_some(())).await;
}
