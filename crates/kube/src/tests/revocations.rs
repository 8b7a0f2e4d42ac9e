//! Revocations are watched, and the lists of a plugged-in CA distributed.

use maille_control::revocation::{CONFIG_MAP, CRL_CONFIG_MAP, CRL_KEY, KEY};
use serde_json::{Value, json};

use super::fake_api::FakeApi;
use super::{Running, eventually, namespace, start};

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

#[tokio::test]
async fn lists_of_a_plugged_in_ca_are_in_every_namespace_while_there_are_any() {
    let chain = openssl();
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
    let secret = |crl: &str| {
        let data = |text: &str| json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
        json!({
            "metadata": { "namespace": "istio-system", "name": "cacerts" },
            "data": { "root-cert.pem": data(&chain.0), "ca-cert.pem": data(&chain.0), CRL_KEY: data(crl) },
        })
    };
    let crls = async |expected: u64, problems: usize| {
        eventually("the lists", async || {
            let status = status(&running).await;
            let told = status["problems"].as_array().map(Vec::len);
            (status["crls"] == json!(expected) && told == Some(problems)).then_some(())
        })
        .await;
    };
    api.put("secrets", secret(&chain.1));
    crls(1, 0).await;
    for name in ["shop", "istio-system"] {
        eventually(name, async || (held(name)? == chain.1).then_some(())).await;
    }
    let edited =
        json!({ "metadata": { "namespace": "shop", "name": CRL_CONFIG_MAP }, "data": { CRL_KEY: "" } });
    api.put("configmaps", edited);
    eventually("restored", async || (held("shop")? == chain.1).then_some(())).await;
    api.put("secrets", secret("no list"));
    crls(1, 1).await;
    assert_eq!(held("shop").as_deref(), Some(chain.1.as_str()), "the last good ones stay");
    assert_eq!(held("kube-public"), None);
    api.put("secrets", secret(""));
    crls(0, 0).await;
    eventually("gone", async || held("shop").is_none().then_some(())).await;
}

/// A root and a list of it, PEM.
fn openssl() -> (String, String) {
    let dir = std::env::temp_dir().join(format!("maille-crl-{}", std::process::id()));
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
    let both = (read("ca"), read("crl"));
    let _ = std::fs::remove_dir_all(&dir);
    both
}
