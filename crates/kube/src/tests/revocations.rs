//! Revocations are watched, and the lists of a plugged-in CA distributed.

use maille_control::authority::Phase;
use maille_control::revocation::{CONFIG_MAP, CRL_CONFIG_MAP, CRL_KEY, KEY};
use serde_json::{Value, json};

use super::fake_api::FakeApi;
use super::{Running, eventually, namespace, pod, start};
use crate::in_force;

fn list(text: &str) -> Value {
    json!({ "metadata": { "namespace": "istio-system", "name": CONFIG_MAP }, "data": { KEY: text } })
}

async fn status(running: &Running) -> Value {
    let (_, text) = running.http("/ca/revocations").await;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    serde_json::from_str(body).unwrap_or_default()
}

async fn serials(running: &Running, expected: &[&str], problems: usize) {
    eventually("the serial numbers", async || {
        let status = status(running).await;
        let is_it = status["serials"] == json!(expected)
            && status["problems"].as_array().is_some_and(|found| found.len() == problems);
        is_it.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_list_is_in_force_until_another_can_be_read_and_bad_entries_are_told() {
    let api = FakeApi::new();
    api.put("configmaps", list(r#"[{"serial":"0A:1B"}]"#));
    let running = start(api.clone()).await;
    running.ready().await;
    serials(&running, &["a1b"], 0).await;
    api.put("configmaps", list(r#"[{"serial":"2"},{"serial":"no"}]"#));
    serials(&running, &["2", "a1b"], 1).await;
    api.put("configmaps", list("[{"));
    serials(&running, &["2", "a1b"], 1).await;
    api.put("configmaps", list(r#"[{"serial":"3"}]"#));
    serials(&running, &["3"], 0).await;
    api.set_away(true);
    serials(&running, &["3"], 0).await;
    api.set_away(false);
    api.delete("configmaps", "istio-system", CONFIG_MAP);
    serials(&running, &[], 0).await;
}

/// The control plane ends, and what is to be done before the next one starts is done.
async fn restart(running: Running, between: impl FnOnce(&FakeApi)) -> Running {
    let api = running.api.clone();
    running.stop.send_replace(true);
    running.task.await.expect("no panic").expect("stops");
    between(&api);
    start(api).await
}

/// What is stored for the next control plane.
fn stored(api: &FakeApi) -> Option<Value> {
    let text = api.get("configmaps", "istio-system", in_force::NAME)?["data"][in_force::KEY].clone();
    serde_json::from_str(text.as_str()?).ok()
}

async fn stored_serials(api: &FakeApi, expected: &[&str]) {
    eventually("what is stored", async || (stored(api)?["serials"] == json!(expected)).then_some(())).await;
}

#[tokio::test]
async fn a_list_that_cannot_be_read_at_the_start_takes_nothing_back() {
    let api = FakeApi::new();
    api.put("configmaps", list(r#"[{"serial":"1"},{"identity":"spiffe://cluster.local/ns/a/sa/b"}]"#));
    let running = start(api.clone()).await;
    running.ready().await;
    stored_serials(&api, &["1"]).await;
    let without_key = json!({ "metadata": { "namespace": "istio-system", "name": CONFIG_MAP } });
    let running = restart(running, |api| api.put("configmaps", without_key)).await;
    running.ready().await;
    assert_eq!(status(&running).await["identities"][0]["id"], "spiffe://cluster.local/ns/a/sa/b");
    serials(&running, &["1"], 1).await;
    // What could be read in between is kept as well.
    api.put("configmaps", list(r#"[{"serial":"2"},{}]"#));
    stored_serials(&api, &["1", "2"]).await;
    let running = restart(running, |api| api.put("configmaps", list("[{"))).await;
    running.ready().await;
    serials(&running, &["1", "2"], 1).await;
    // A list that can be read decides, and so does its deletion.
    api.put("configmaps", list(r#"[{"serial":"3"}]"#));
    serials(&running, &["3"], 0).await;
    stored_serials(&api, &["3"]).await;
    let running = restart(running, |api| api.delete("configmaps", "istio-system", CONFIG_MAP)).await;
    running.ready().await;
    serials(&running, &[], 0).await;
    stored_serials(&api, &[]).await;
}

#[tokio::test]
async fn of_two_control_planes_both_store_what_is_in_force() {
    let api = FakeApi::new();
    let faster = json!({
        "metadata": { "namespace": "istio-system", "name": in_force::NAME },
        "data": { in_force::KEY: r#"{"serials":["9"],"identities":{}}"# },
    });
    let running = [start(api.clone()).await, start(api.clone()).await];
    for running in &running {
        running.ready().await;
    }
    assert_eq!(stored(&api), None, "nobody was ever revoked");
    api.lose_race_against(faster);
    for serial in ["1", "2", "3"] {
        api.put("configmaps", list(&format!(r#"[{{"serial":"{serial}"}}]"#)));
        stored_serials(&api, &[serial]).await;
        for running in &running {
            serials(running, &[serial], 0).await;
        }
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_in_force_and_told() {
    let api = FakeApi::new();
    let running = start(api.clone()).await;
    running.ready().await;
    api.forbid(in_force::NAME);
    api.put("configmaps", list(r#"[{"serial":"1"}]"#));
    serials(&running, &["1"], 1).await;
    let told = status(&running).await["problems"][0].as_str().unwrap_or_default().to_owned();
    assert!(told.contains("not kept for a restart") && told.contains("forbidden"), "{told}");
    api.permit(in_force::NAME);
    stored_serials(&api, &["1"]).await;
    serials(&running, &["1"], 0).await;
}

#[tokio::test]
async fn nobody_is_served_before_it_is_known_who_is_revoked() {
    let api = FakeApi::new();
    api.put("pods", pod("cart-1", "10.0.0.1"));
    for name in [CONFIG_MAP, in_force::NAME, "cacerts"] {
        api.forbid(name);
        let running = start(api.clone()).await;
        eventually("some attempts", async || (api.tried(name) > 2).then_some(())).await;
        eventually("the rest of the world", async || running.metric("maille_workloads").await).await;
        assert_eq!(running.http("/ready").await.0, 503, "{name}");
        api.permit(name);
        running.ready().await;
        running.stop.send_replace(true);
    }
    // Neither the list can be read nor what was in force.
    let broken = |name: &str, key: &str| json!({ "metadata": { "namespace": "istio-system", "name": name }, "data": { key: "[{" } });
    api.put("configmaps", broken(in_force::NAME, in_force::KEY));
    api.put("configmaps", broken(CONFIG_MAP, KEY));
    let running = start(api.clone()).await;
    eventually("the rest of the world", async || running.metric("maille_workloads").await).await;
    api.put("configmaps", list(r#"[{"serial":"1"},{}]"#));
    for _ in 0..50 {
        assert_eq!(running.http("/ready").await.0, 503);
    }
    api.put("configmaps", list(r#"[{"serial":"1"}]"#));
    running.ready().await;
    serials(&running, &["1"], 0).await;
    stored_serials(&api, &["1"]).await;
}

#[tokio::test]
async fn lists_of_a_plugged_in_ca_are_in_every_namespace_while_there_are_any() {
    let root = root("published");
    let api = FakeApi::new();
    for name in ["shop", "istio-system", "kube-public"] {
        api.put("namespaces", namespace(name));
    }
    let running = start(api.clone()).await;
    running.ready().await;
    let held = |namespace: &str| {
        let found = api.get("configmaps", namespace, CRL_CONFIG_MAP)?;
        found["data"][CRL_KEY].as_str().map(str::to_owned)
    };
    assert_eq!(held("shop"), None);
    let secret = |crl: &str| plugged_in(&root, crl);
    let crls = async |expected: u64, problems: usize| {
        eventually("the lists", async || {
            let status = status(&running).await;
            let told = status["problems"].as_array().map(Vec::len);
            (status["crls"] == json!(expected) && told == Some(problems)).then_some(())
        })
        .await;
    };
    api.put("secrets", secret(&root.list));
    crls(1, 0).await;
    for name in ["shop", "istio-system"] {
        eventually(name, async || (held(name)? == root.list).then_some(())).await;
    }
    api.put("configmaps", published("shop", ""));
    eventually("restored", async || (held("shop")? == root.list).then_some(())).await;
    api.put("secrets", secret("no list"));
    crls(1, 1).await;
    assert_eq!(held("shop").as_deref(), Some(root.list.as_str()), "the last good ones stay");
    assert_eq!(held("kube-public"), None);
    api.put("secrets", secret(""));
    crls(0, 0).await;
    eventually("gone", async || held("shop").is_none().then_some(())).await;
}

#[tokio::test]
async fn lists_stay_published_while_it_is_not_known_whether_there_are_any() {
    let root = root("unknown");
    let api = FakeApi::new();
    for name in ["shop", "istio-system"] {
        api.put("namespaces", namespace(name));
        api.put("configmaps", published(name, &root.list));
    }
    api.put("secrets", plugged_in(&root, &root.list));
    let held = || {
        let of = |name| api.get("configmaps", name, CRL_CONFIG_MAP).map(|found| found["metadata"].clone());
        ["shop", "istio-system"].map(of)
    };
    let before = held();
    api.forbid("cacerts");
    let running = start(api.clone()).await;
    eventually("some attempts", async || (api.tried("cacerts") > 4).then_some(())).await;
    assert_eq!(held(), before, "left alone");
    api.permit("cacerts");
    running.ready().await;
    assert_eq!(status(&running).await["crls"], 1);
    assert_eq!(held(), before, "neither deleted nor written anew");
}

#[tokio::test]
async fn lists_that_cannot_be_read_at_the_start_are_those_last_published() {
    let root = root("restart");
    let api = FakeApi::new();
    for name in ["shop", "istio-system"] {
        api.put("namespaces", namespace(name));
    }
    let running = start(api.clone()).await;
    running.ready().await;
    api.put("secrets", plugged_in(&root, &root.list));
    let held = |namespace: &str| {
        api.get("configmaps", namespace, CRL_CONFIG_MAP)?["data"][CRL_KEY].as_str().map(str::to_owned)
    };
    for name in ["shop", "istio-system"] {
        eventually(name, async || (held(name)? == root.list).then_some(())).await;
    }
    let running = restart(running, |api| {
        api.put("secrets", plugged_in(&root, "no list"));
        api.delete("configmaps", "shop", CRL_CONFIG_MAP);
    })
    .await;
    running.ready().await;
    let told = status(&running).await;
    assert_eq!((&told["crls"], told["problems"].as_array().map(Vec::len)), (&json!(1), Some(1)), "{told}");
    eventually("published again", async || (held("shop")? == root.list).then_some(())).await;
    // Neither is readable: nobody is served until one is.
    let running = restart(running, |api| api.put("configmaps", published("istio-system", "no list"))).await;
    eventually("the rest of the world", async || running.metric("maille_workloads").await).await;
    api.put("secrets", plugged_in(&root, "no list either"));
    for _ in 0..50 {
        assert_eq!(running.http("/ready").await.0, 503);
    }
    assert_eq!(held("istio-system").as_deref(), Some("no list"), "left alone");
    api.put("secrets", plugged_in(&root, &root.list));
    running.ready().await;
    assert_eq!(status(&running).await["crls"], 1);
    // Where none were ever published, none were in force.
    let running = restart(running, |api| {
        api.put("secrets", plugged_in(&root, "no list"));
        api.delete("configmaps", "istio-system", CRL_CONFIG_MAP);
    })
    .await;
    running.ready().await;
    assert_eq!(status(&running).await["crls"], 0);
}

#[tokio::test]
async fn lists_stay_in_force_while_their_ca_does() {
    let root = root("gone");
    let api = FakeApi::new();
    for name in ["shop", "istio-system"] {
        api.put("namespaces", namespace(name));
    }
    api.put("secrets", plugged_in(&root, &root.list));
    let running = start(api.clone()).await;
    running.ready().await;
    let held = || api.get("configmaps", "shop", CRL_CONFIG_MAP).map(|found| found["data"][CRL_KEY].clone());
    eventually("published", async || (held()? == root.list).then_some(())).await;
    api.delete("secrets", "istio-system", "cacerts");
    let still = async |running: &Running| {
        eventually("the problem", async || {
            let status = status(running).await;
            let problem = status["problems"][0].as_str().unwrap_or_default();
            (problem.contains("is gone") && status["crls"] == 1).then_some(())
        })
        .await;
        assert_eq!(held(), Some(json!(root.list)));
    };
    still(&running).await;
    let running = restart(running, |_| {}).await;
    running.ready().await;
    still(&running).await;
    // Another CA: none is plugged in, nor was.
    let running = restart(running, |api| api.delete("secrets", "istio-system", "istio-ca-rotation")).await;
    running.ready().await;
    assert_eq!(status(&running).await["crls"], 0);
    eventually("gone", async || held().is_none().then_some(())).await;
}

#[tokio::test]
async fn lists_stay_in_force_while_a_ca_that_is_replaced_is_believed() {
    let (old, new) = (root("former"), root("latter"));
    let api = FakeApi::new();
    for name in ["shop", "istio-system"] {
        api.put("namespaces", namespace(name));
    }
    api.put("secrets", plugged_in(&old, &old.list));
    let running = start(api.clone()).await;
    running.ready().await;
    let held = || api.get("configmaps", "shop", CRL_CONFIG_MAP)?["data"][CRL_KEY].as_str().map(str::to_owned);
    let crls = async |running: &Running, expected: u64| {
        eventually("the lists", async || (status(running).await["crls"] == json!(expected)).then_some(()))
            .await;
    };
    crls(&running, 1).await;
    eventually("published", async || (held()? == old.list).then_some(())).await;
    // A CA that cannot be used changes nothing.
    let mut broken = plugged_in(&new, &new.list);
    broken["data"]["ca-key.pem"] = plugged_in(&old, "")["data"]["ca-key.pem"].clone();
    api.put("secrets", broken);
    crls(&running, 2).await;
    // Nor does a restart, with what is published alone to go by.
    let running = restart(running, |_| {}).await;
    running.ready().await;
    crls(&running, 2).await;
    eventually("both", async || (held()?.matches("BEGIN X509 CRL").count() == 2).then_some(())).await;
    // With one that can, its predecessor is withdrawn, and so are its lists.
    api.put("secrets", plugged_in(&new, &new.list));
    running.at(Phase::Idle).await;
    crls(&running, 1).await;
    eventually("published", async || (held()? == new.list).then_some(())).await;
}

/// A Secret `cacerts` with these lists.
fn plugged_in(root: &Root, crl: &str) -> Value {
    let data = |text: &str| json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
    let (certificate, key) = (data(&root.certificate), data(&root.key));
    json!({
        "metadata": { "namespace": "istio-system", "name": "cacerts" },
        "data": {
            "root-cert.pem": certificate, "ca-cert.pem": certificate, "ca-key.pem": key, "cert-chain.pem": data(""),
            CRL_KEY: data(crl),
        },
    })
}

/// The lists as a control plane has published them.
fn published(namespace: &str, crl: &str) -> Value {
    json!({ "metadata": { "namespace": namespace, "name": CRL_CONFIG_MAP }, "data": { CRL_KEY: crl } })
}

/// A root with its key and a list of it, PEM.
pub(super) struct Root {
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) list: String,
}

/// One as a company's own tools make it; `name` is the test's.
pub(super) fn root(name: &str) -> Root {
    let dir = std::env::temp_dir().join(format!("maille-crl-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let run = |arguments: &str| {
        let output =
            std::process::Command::new("openssl").args(arguments.split(' ')).current_dir(&dir).output();
        let output = output.expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("writable");
    write(
        "config",
        "[ca]\ndefault_ca = own\n[own]\ndatabase = index\ncrlnumber = number\ndefault_md = sha256\n",
    );
    write("number", "01\n");
    write("index", "");
    run(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out ca -subj /O=root -days 9",
    );
    run("ca -gencrl -config config -keyfile key -cert ca -crlhours 1 -out crl");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("written");
    let root = Root { certificate: read("ca"), key: read("key"), list: read("crl") };
    let _ = std::fs::remove_dir_all(&dir);
    root
}
