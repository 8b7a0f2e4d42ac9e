use serde_json::{Value, json};

use super::fake_api::FakeApi;
use super::{Running, eventually, pod, start};

const PROXY: &str = "shop/cart-1";

fn config_map(mesh: &str) -> Value {
    json!({
        "metadata": { "namespace": "istio-system", "name": "istio", "uid": "u" },
        "data": { "mesh": mesh },
    })
}

fn policy(namespace: &str, name: &str) -> Value {
    json!({ "metadata": { "namespace": namespace, "name": name, "generation": 1 }, "spec": {} })
}

async fn settings(running: &Running) -> Value {
    running.facts(PROXY).await["meshSettings"].clone()
}

/// The names of the policies that a proxy should hold.
async fn held(running: &Running, field: &str) -> Vec<String> {
    let facts = running.facts(PROXY).await;
    let all = facts[field].as_array().cloned().unwrap_or_default();
    all.iter().map(|one| format!("{}/{}", one["namespace"], one["name"]).replace('"', "")).collect()
}

#[tokio::test]
async fn every_field_of_the_mesh_configuration_takes_effect_while_running() {
    let api = FakeApi::new();
    api.put("pods", pod("cart-1", "10.0.0.1"));
    for (namespace, name) in [("istio-system", "old"), ("istio-config", "new"), ("shop", "own")] {
        api.put("authorizationpolicies", policy(namespace, name));
        api.put("requestauthentications", policy(namespace, name));
    }
    let running = start(api.clone()).await;
    running.ready().await;
    let before = settings(&running).await;
    assert_eq!(before["rootNamespace"], "istio-system");
    assert_eq!(held(&running, "authorizations").await, ["istio-system/old", "shop/own"]);

    api.put(
        "configmaps",
        config_map(
            "rootNamespace: istio-config\ntrustDomain: new.td\ntrustDomainAliases: [cluster.local]\n\
         outboundTrafficPolicy: {mode: REGISTRY_ONLY}\npathNormalization: {normalization: MERGE_SLASHES}\n\
         accessLogFile: /dev/stdout\naccessLogEncoding: JSON\nprotocolDetectionTimeout: 5s\n\
         maille: {explainInResponse: true}\nextensionProviders:\n- name: opa\n  envoyExtAuthzGrpc:\n    \
         service: auth/opa.auth.svc.cluster.local\n    port: 9191\n    timeout: 2s\n    failOpen: true\n",
        ),
    );
    let after =
        eventually("the new settings", async || Some(settings(&running).await).filter(|new| *new != before))
            .await;
    assert_eq!(
        after,
        json!({
            "trustDomain": "new.td", "trustDomainAliases": ["cluster.local"], "rootNamespace": "istio-config",
            "outboundPolicy": "OUTBOUND_POLICY_REGISTRY_ONLY", "pathNormalization": "PATH_NORMALIZATION_MERGE_SLASHES",
            "protocolDetectionTimeoutMs": 5000, "clusterDomain": "cluster.local", "accessLog": "ACCESS_LOG_JSON",
            "explainInResponse": true,
            "extensionProviders": [{
                "name": "opa", "host": "opa.auth.svc.cluster.local", "port": 9191, "timeoutMs": 2000, "failOpen": true,
                "statusOnError": 403, "grpc": {},
                "problem": after["extensionProviders"][0]["problem"],
            }],
        })
    );
    assert!(after["extensionProviders"][0]["problem"].as_str().is_some_and(|p| p.contains("opa.auth.svc")));
    for field in ["authorizations", "requestAuthentications"] {
        assert_eq!(held(&running, field).await, ["istio-config/new", "shop/own"], "{field}");
    }
    let facts = running.facts(PROXY).await;
    assert_eq!(facts["trustBundles"][0]["trustDomain"], "new.td");
    assert_eq!(facts["inbound"]["workload"]["identity"]["trustDomain"], "new.td");

    // The provider's Service comes into being.
    let service =
        json!({ "metadata": { "namespace": "auth", "name": "opa" }, "spec": { "clusterIP": "10.96.0.9" } });
    api.put("services", service);
    eventually("no problem any more", async || {
        settings(&running).await["extensionProviders"][0].get("problem").is_none().then_some(())
    })
    .await;

    // The defaults again; the trust domain is kept, since nothing says that the old one may still be believed.
    api.delete("configmaps", "istio-system", "istio");
    eventually("the defaults", async || {
        (settings(&running).await["rootNamespace"] == "istio-system").then_some(())
    })
    .await;
    assert_eq!(settings(&running).await["trustDomain"], "new.td");
    assert_eq!(running.metric("maille_mesh_config_rejected").await, Some(1));
}

#[tokio::test]
async fn a_bad_configuration_leaves_the_last_good_one_in_force_and_is_reported() {
    let api = FakeApi::new();
    api.put("pods", pod("cart-1", "10.0.0.1"));
    api.put("configmaps", config_map("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"));
    let running = start(api.clone()).await;
    running.ready().await;
    assert_eq!(running.metric("maille_mesh_config_rejected").await, Some(0));
    api.put("configmaps", config_map("outboundTrafficPolicy: {mode: ALLOW_ANY}\nrootNamespce: x\n"));
    let event = eventually("an event", async || api.all("events").first().cloned()).await;
    assert_eq!((&event["reason"], &event["type"]), (&json!("InvalidMeshConfig"), &json!("Warning")));
    assert_eq!(event["involvedObject"]["name"], "istio");
    assert!(
        event["message"].as_str().is_some_and(|m| m.contains("rootNamespce") && m.contains("rootNamespace")),
        "{event}"
    );
    assert_eq!(settings(&running).await["outboundPolicy"], "OUTBOUND_POLICY_REGISTRY_ONLY");
    assert_eq!(running.metric("maille_mesh_config_rejected").await, Some(1));
    assert!(running.http("/proxies").await.1.contains("rootNamespce"));
    assert_eq!(running.http("/ready").await.0, 200, "it serves on");
    api.put("configmaps", config_map("outboundTrafficPolicy: {mode: ALLOW_ANY}\n"));
    eventually("in force", async || {
        (settings(&running).await["outboundPolicy"] == "OUTBOUND_POLICY_ALLOW_ANY").then_some(())
    })
    .await;
    assert_eq!(running.metric("maille_mesh_config_rejected").await, Some(0));
}

#[tokio::test]
async fn without_a_last_good_configuration_nothing_is_served() {
    let api = FakeApi::new();
    api.put("pods", pod("cart-1", "10.0.0.1"));
    api.put("configmaps", config_map("rootNamespace: [x]\n"));
    let running = start(api.clone()).await;
    eventually("the reason", async || {
        running.http("/ready").await.1.contains("mesh configuration").then_some(())
    })
    .await;
    assert_eq!(running.http("/ready").await.0, 503);
    api.put("configmaps", config_map(""));
    running.ready().await;
    assert_eq!(settings(&running).await["rootNamespace"], "istio-system");
}
