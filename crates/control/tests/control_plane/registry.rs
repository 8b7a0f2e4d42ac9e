//! Sidecars and credentials over real streams: whom they reach, and whom not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use maille_config::istio::{DestinationRule, Sidecar};
use maille_control::world::{Change, CredentialData, CredentialSource, Event, Material};
use maille_core::NamespacedName;
use maille_proto::facts as wire;
use maille_xds::type_urls::{CREDENTIAL, DESTINATION, MESH_SETTINGS};
use serde_json::{Value, json};
use wire::destination::Kind;
use wire::mesh_settings::OutboundPolicy;

use crate::lab::{CART, Lab, Proxy, WEB, eventually};

fn sidecar(spec: Value) -> Event {
    let object = json!({"metadata": {"namespace": "shop", "name": "s"}, "spec": spec});
    let sidecar: Sidecar = serde_json::from_value(object).expect("a Sidecar");
    Event::Sidecar(Change::Put(sidecar))
}

async fn proxy(lab: &Lab, address: &'static str, account: &str) -> Proxy {
    let svid = lab.svid(address, &format!("shop:{account}")).await;
    let proxy = lab.proxy(address, svid).await;
    proxy.client.subscribe(DESTINATION, "cart").expect("subscribes");
    proxy.client.subscribe_wildcard(MESH_SETTINGS);
    eventually("settings", || policy(&proxy)).await;
    eventually("the service", || knows_cart(&proxy)).await;
    proxy
}

fn policy(proxy: &Proxy) -> Option<OutboundPolicy> {
    proxy.seen.get::<wire::MeshSettings>(MESH_SETTINGS, "mesh").map(|settings| settings.outbound_policy())
}

fn knows_cart(proxy: &Proxy) -> Option<bool> {
    let answer = proxy.seen.get::<wire::Destination>(DESTINATION, "cart")?;
    Some(matches!(answer.kind, Some(Kind::Service(_))))
}

#[tokio::test]
async fn a_sidecar_reaches_the_proxies_it_selects_while_they_run() {
    let lab = Lab::new().await;
    let (web, cart) = (proxy(&lab, WEB, "web").await, proxy(&lab, CART, "cart").await);
    let before = cart.seen.received.load(Ordering::SeqCst);
    let spec = json!({
        "workloadSelector": {"labels": {"app": "web"}}, "egress": [{"hosts": ["other/*"]}],
        "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
    });
    lab.apply(sidecar(spec));
    eventually("hidden", || knows_cart(&web).filter(|knows| !knows)).await;
    eventually("refusing", || policy(&web).filter(|policy| *policy == OutboundPolicy::RegistryOnly)).await;
    lab.apply(Event::Sidecar(Change::Delete(NamespacedName::new("shop", "s"))));
    eventually("seen again", || knows_cart(&web).filter(|knows| *knows)).await;
    eventually("allowing", || policy(&web).filter(|policy| *policy == OutboundPolicy::AllowAny)).await;
    assert_eq!(cart.seen.received.load(Ordering::SeqCst), before, "the other was sent nothing");
}

fn naming(app: &str) -> Event {
    let rule: DestinationRule = serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": "r"},
        "spec": {
            "host": "api.corp", "workloadSelector": {"matchLabels": {"app": app}},
            "trafficPolicy": {"tls": {"mode": "MUTUAL", "credentialName": "api"}},
        },
    }))
    .expect("a rule");
    Event::DestinationRule(Change::Put(rule))
}

fn credential(proxy: &Proxy) -> Option<wire::Credential> {
    proxy.seen.get::<wire::Credential>(CREDENTIAL, "shop/api")
}

#[tokio::test]
async fn a_secret_reaches_those_alone_whom_a_rule_lets_have_it() {
    let lab = Lab::new().await;
    let (web, cart) = (proxy(&lab, WEB, "web").await, proxy(&lab, CART, "cart").await);
    for proxy in [&web, &cart] {
        for name in ["shop/api", "bank/api"] {
            proxy.client.subscribe(CREDENTIAL, name).expect("subscribes");
        }
    }
    lab.apply(naming("web"));
    eventually("awaited", || credential(&web).filter(|found| found.problem.contains("not read yet"))).await;
    let key = |text: &str| {
        let material =
            Material { private_key: text.into(), certificate_chain: b"c".to_vec(), ..Material::default() };
        let source = CredentialSource::parse("shop/api").expect("a name");
        Event::Credential(source, CredentialData::Known(Arc::new(material)))
    };
    let has =
        |proxy: &Proxy, text: &str| credential(proxy).filter(|found| found.private_key == text.as_bytes());
    lab.apply(key("hush-1"));
    eventually("the key", || has(&web, "hush-1")).await;
    lab.apply(key("hush-2"));
    eventually("the new key", || has(&web, "hush-2")).await;
    assert!(credential(&cart).is_none() && web.seen.names(CREDENTIAL) == ["shop/api"]);
    // Now it is the other's.
    lab.apply(naming("cart"));
    eventually("the other has it", || has(&cart, "hush-2")).await;
    eventually("taken back", || credential(&web).is_none().then_some(())).await;
    let (_, metrics) = lab.http("/metrics").await;
    assert!(!metrics.contains("hush"));
    let (status, facts) = lab.http("/facts?proxy=shop/cart-1&destinations=api.corp").await;
    assert!(status == 200 && !facts.contains("aHVzaC") && !facts.contains("hush"), "{facts}");
}
