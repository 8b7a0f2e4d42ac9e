use serde_json::{Value, json};

use super::fake_api::FakeApi;
use super::{eventually, start};

fn policy(name: &str, generation: i64, spec: Value) -> Value {
    json!({ "metadata": { "namespace": "shop", "name": name, "generation": generation }, "spec": spec })
}

fn of_gateway() -> Value {
    let target = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" });
    json!({ "targetRefs": [target], "rules": [{}] })
}

fn conditions(api: &FakeApi, plural: &str, name: &str) -> Vec<(String, String)> {
    let object = api.get(plural, "shop", name).expect("there");
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.iter().map(|condition| (text(&condition["type"]), text(&condition["reason"]))).collect()
}

fn one(claim: &str, reason: &str) -> Vec<(String, String)> {
    vec![(claim.to_owned(), reason.to_owned())]
}

#[tokio::test]
async fn what_is_not_in_force_is_said_in_the_status_until_it_is() {
    let api = FakeApi::new();
    api.put("authorizationpolicies", policy("edge", 3, of_gateway()));
    api.put("requestauthentications", policy("edge", 1, of_gateway()));
    let custom = json!({ "action": "CUSTOM", "provider": { "name": "opa" }, "rules": [{}] });
    let mut asks = policy("asks", 1, custom);
    asks["status"]["conditions"] = json!([{ "type": "Theirs", "status": "True" }]);
    api.put("authorizationpolicies", asks);
    api.put("authorizationpolicies", policy("fine", 1, json!({ "rules": [{}] })));
    let running = start(api.clone()).await;
    running.ready().await;
    let gateway = one("Enforced", "TargetNotEnforced");
    for plural in ["authorizationpolicies", "requestauthentications"] {
        eventually(plural, async || (conditions(&api, plural, "edge") == gateway).then_some(())).await;
    }
    let stored = api.get("authorizationpolicies", "shop", "edge").expect("there");
    let condition = &stored["status"]["conditions"][0];
    assert_eq!((&condition["status"], &condition["observedGeneration"]), (&json!("False"), &json!(3)));
    let since = condition["lastTransitionTime"].as_str().unwrap_or_default();
    assert!(since.ends_with('Z') && !since.contains('.'), "whole seconds: {condition}");
    let rule = json!({ "issuer": "https://idp", "jwksUri": "http://127.0.0.1:1/keys" });
    api.put("requestauthentications", policy("keys", 1, json!({ "jwtRules": [rule] })));
    let unfetched = one("KeysAvailable", "FetchFailed");
    eventually("keys", async || {
        (conditions(&api, "requestauthentications", "keys") == unfetched).then_some(())
    })
    .await;
    let mut asking = one("Theirs", "");
    asking.extend(one("ResolvedRefs", "ProviderNotFound"));
    eventually("asks", async || (conditions(&api, "authorizationpolicies", "asks") == asking).then_some(()))
        .await;
    assert!(api.get("authorizationpolicies", "shop", "fine").expect("there").get("status").is_none());

    // A new control plane finds everything said, and so does a second replica.
    let written = api.status_writes();
    assert_eq!(written, 4);
    running.stop.send_replace(true);
    running.task.await.expect("joins").expect("fine");
    let (successor, replica) = (start(api.clone()).await, start(api.clone()).await);
    successor.ready().await;
    replica.ready().await;
    api.put("authorizationpolicies", policy("later", 1, of_gateway()));
    eventually("later", async || {
        (conditions(&api, "authorizationpolicies", "later") == gateway).then_some(())
    })
    .await;
    assert_eq!(api.status_writes(), written + 1, "nothing but what is new");

    // What holds again is said no more.
    let stored = api.get("authorizationpolicies", "shop", "edge").expect("there");
    let mut plain = policy("edge", 4, json!({ "rules": [{}] }));
    plain["status"] = stored["status"].clone();
    api.put("authorizationpolicies", plain);
    eventually("nothing said", async || {
        api.get("authorizationpolicies", "shop", "edge")?.get("status").is_none().then_some(())
    })
    .await;
}
