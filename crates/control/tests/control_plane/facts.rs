//! What reaches a proxy over a real stream, and what does not.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use maille_config::istio::{Action, MutualTlsMode};
use maille_control::world::{Change, Event};
use maille_core::NamespacedName;
use maille_proto::facts as wire;
use maille_xds::type_urls::{AUTHORIZATION, DESTINATION, INBOUND, MESH_SETTINGS, TRUST_BUNDLE};
use wire::destination::Kind;

use crate::lab::{
    CART, Lab, Proxy, WEB, cart_service, cart_slice, eventually, peer_authentication, pod, policy,
};

async fn cart_proxy(lab: &Lab) -> Proxy {
    let svid = lab.svid(CART, "shop:cart").await;
    let proxy = lab.proxy(CART, svid).await;
    proxy.client.subscribe_wildcard(MESH_SETTINGS);
    proxy.client.subscribe_wildcard(TRUST_BUNDLE);
    proxy.client.subscribe_wildcard(AUTHORIZATION);
    proxy.client.subscribe(INBOUND, "shop/cart-1").expect("subscribes");
    proxy
}

#[tokio::test]
async fn everything_a_proxy_lives_by_arrives() {
    let lab = Lab::new().await;
    lab.apply(Event::Authorization(Change::Put(policy("shop", "cart", Some("cart"), Action::Allow))));
    lab.apply(Event::Authorization(Change::Put(policy("shop", "web", Some("web"), Action::Allow))));
    lab.apply(Event::Authorization(Change::Put(policy("istio-system", "all", None, Action::Deny))));
    lab.apply(Event::PeerAuthentication(Change::Put(peer_authentication("shop", MutualTlsMode::Strict))));
    let proxy = cart_proxy(&lab).await;
    let inbound: wire::Inbound = eventually("inbound", || proxy.seen.get(INBOUND, "shop/cart-1")).await;
    assert_eq!(inbound.mode(), wire::MtlsMode::Strict);
    assert_eq!(inbound.ports.first().map(|p| (p.port, p.protocol())), Some((8080, wire::Protocol::Http)));
    let settings: wire::MeshSettings = eventually("settings", || proxy.seen.get(MESH_SETTINGS, "mesh")).await;
    assert_eq!(settings.trust_domain, "cluster.local");
    let bundle: wire::TrustBundle =
        eventually("bundle", || proxy.seen.get(TRUST_BUNDLE, "cluster.local")).await;
    assert_eq!(bundle.roots.len(), 1);
    eventually("exactly the policies that apply", || {
        (proxy.seen.names(AUTHORIZATION) == ["istio-system/all", "shop/cart"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_policy_change_is_there_well_within_a_second() {
    let lab = Lab::new().await;
    let proxy = cart_proxy(&lab).await;
    eventually("inbound", || proxy.seen.get::<wire::Inbound>(INBOUND, "shop/cart-1")).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let hub = lab.control.hub.clone();
    tokio::spawn(async move { hub.run(receiver).await });
    let start = Instant::now();
    let deny = policy("shop", "deny", None, Action::Deny);
    sender.send(Event::Authorization(Change::Put(deny))).await.expect("taken");
    eventually("the policy", || proxy.seen.get::<wire::Authorization>(AUTHORIZATION, "shop/deny")).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let gone = Change::Delete(NamespacedName::new("shop", "deny"));
    sender.send(Event::Authorization(gone)).await.expect("taken");
    eventually("its end", || proxy.seen.names(AUTHORIZATION).is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_label_change_changes_the_policies_that_apply() {
    let lab = Lab::new().await;
    lab.apply(Event::Authorization(Change::Put(policy("shop", "v2", Some("cart-v2"), Action::Deny))));
    let proxy = cart_proxy(&lab).await;
    eventually("inbound", || proxy.seen.get::<wire::Inbound>(INBOUND, "shop/cart-1")).await;
    assert!(proxy.seen.names(AUTHORIZATION).is_empty());
    let mut relabelled = pod("cart-1", "cart", CART);
    relabelled.labels.insert("app".into(), "cart-v2".into());
    lab.apply(Event::Pod(Change::Put(relabelled)));
    eventually("the policy", || (proxy.seen.names(AUTHORIZATION) == ["shop/v2"]).then_some(())).await;
}

#[tokio::test]
async fn another_pods_inbound_facts_and_policies_are_refused() {
    let lab = Lab::new().await;
    lab.apply(Event::Authorization(Change::Put(policy("shop", "web", Some("web"), Action::Allow))));
    let proxy = cart_proxy(&lab).await;
    proxy.client.subscribe(INBOUND, "shop/web-1").expect("asks");
    proxy.client.subscribe(AUTHORIZATION, "shop/web").expect("asks");
    eventually("own inbound", || proxy.seen.get::<wire::Inbound>(INBOUND, "shop/cart-1")).await;
    eventually("the others are said to be absent", || {
        let removed = proxy.seen.removed.lock().expect("lock");
        (removed.contains(&"shop/web-1".to_owned()) && removed.contains(&"shop/web".to_owned())).then_some(())
    })
    .await;
    assert_eq!(proxy.seen.names(INBOUND), ["shop/cart-1"]);
    assert!(proxy.seen.names(AUTHORIZATION).is_empty());
    // Changes to the other pod do not reach it either.
    lab.apply(Event::PeerAuthentication(Change::Put(peer_authentication("shop", MutualTlsMode::Strict))));
    eventually("the own change", || {
        proxy.seen.get::<wire::Inbound>(INBOUND, "shop/cart-1").filter(|i| i.mode() == wire::MtlsMode::Strict)
    })
    .await;
    assert_eq!(proxy.seen.names(INBOUND), ["shop/cart-1"]);
}

#[tokio::test]
async fn destinations_are_answered_on_demand_and_followed() {
    let lab = Lab::new().await;
    let svid = lab.svid(WEB, "shop:web").await;
    let proxy = lab.proxy(WEB, svid).await;
    for name in ["cart", "cart.shop.svc.cluster.local", "10.96.0.20", CART, "new", "example.com"] {
        proxy.client.subscribe(DESTINATION, name).expect("subscribes");
    }
    let kind = |name: &str| proxy.seen.get::<wire::Destination>(DESTINATION, name).and_then(|d| d.kind);
    for name in ["cart", "cart.shop.svc.cluster.local", "10.96.0.20"] {
        let Kind::Service(service) = eventually(name, || kind(name)).await else { panic!("{name}") };
        let endpoint = service.endpoints.first().expect("one is ready");
        assert_eq!(endpoint.address, CART);
        let port = endpoint.ports.first().expect("one port");
        assert_eq!((port.target_port, port.tls()), (8080, wire::EndpointTls::IstioMutual));
        assert_eq!(service.subject_alt_names, ["spiffe://cluster.local/ns/shop/sa/cart"]);
    }
    assert!(matches!(eventually("the pod", || kind(CART)).await, Kind::Workload(_)));
    for name in ["new", "example.com"] {
        assert!(matches!(eventually(name, || kind(name)).await, Kind::Unknown(_)));
    }
    // What comes into being, and an endpoint that is no longer ready, are pushed.
    let mut new = cart_service();
    new.name = NamespacedName::new("shop", "new");
    new.addresses = vec!["10.96.0.21".parse().expect("address")];
    lab.apply(Event::Service(Change::Put(new)));
    eventually("the new service", || kind("new").filter(|k| matches!(k, Kind::Service(_)))).await;
    lab.apply(Event::Slice(Change::Put(cart_slice(false))));
    for name in ["cart", "10.96.0.20"] {
        eventually("no endpoint", || {
            kind(name).filter(|k| matches!(k, Kind::Service(s) if s.endpoints.is_empty()))
        })
        .await;
    }
}

#[tokio::test]
async fn a_stolen_certificate_opens_no_stream_elsewhere() {
    let lab = Lab::new().await;
    let svid = lab.svid(CART, "shop:cart").await;
    let thief = lab.proxy(WEB, svid).await;
    thief.client.subscribe(INBOUND, "shop/cart-1").expect("asks");
    let error = eventually("a refusal", || thief.seen.errors.lock().expect("lock").first().cloned()).await;
    assert!(error.contains("request authenticate failure"), "{error}");
    assert!(thief.seen.names(INBOUND).is_empty());
}

#[tokio::test]
async fn a_stream_ends_with_its_pod() {
    let lab = Lab::new().await;
    let proxy = cart_proxy(&lab).await;
    eventually("inbound", || proxy.seen.get::<wire::Inbound>(INBOUND, "shop/cart-1")).await;
    let mut successor = pod("cart-1", "cart", CART);
    successor.uid = "another".into();
    lab.apply(Event::Pod(Change::Put(successor)));
    let error = eventually("the end", || proxy.seen.errors.lock().expect("lock").first().cloned()).await;
    assert!(error.contains("is gone"), "{error}");
}

#[tokio::test]
async fn a_rejection_is_shown_with_its_reason_and_the_rest_holds() {
    let lab = Lab::new().await;
    lab.apply(Event::Authorization(Change::Put(policy("shop", "a", None, Action::Allow))));
    lab.apply(Event::Authorization(Change::Put(policy("shop", "b", None, Action::Allow))));
    let svid = lab.svid(CART, "shop:cart").await;
    let proxy = lab.proxy(CART, svid).await;
    *proxy.seen.reject.lock().expect("lock") = Some("shop/a".into());
    proxy.client.subscribe_wildcard(AUTHORIZATION);
    eventually("the good one", || proxy.seen.get::<wire::Authorization>(AUTHORIZATION, "shop/b")).await;
    let rejected = eventually("the status", || {
        let proxies = lab.control.proxies.list();
        proxies.first().and_then(|p| p.types.get("Authorization")?.rejected.clone())
    })
    .await;
    assert_eq!(rejected, "shop/a: told to");
    let (status, body) = lab.http("/proxies").await;
    assert_eq!(status, 200);
    assert!(body.contains("shop/a: told to") && body.contains("\"uid\":\"shop/cart-1\""), "{body}");
}

#[tokio::test]
async fn proxies_are_listed_with_who_they_are_and_how_far_each_type_got() {
    let lab = Lab::new().await;
    let proxy = cart_proxy(&lab).await;
    eventually("inbound", || proxy.seen.get::<wire::Inbound>(INBOUND, "shop/cart-1")).await;
    let listed = eventually("all acknowledged", || {
        let proxy = lab.control.proxies.list().into_iter().next()?;
        let acked = proxy.types.values().all(|t| t.settled && t.acked_nonce.is_some());
        (acked && proxy.types.len() == 4).then_some(proxy)
    })
    .await;
    assert_eq!((listed.namespace.as_str(), listed.pod.as_str()), ("shop", "cart-1"));
    assert_eq!((listed.node.as_str(), listed.version.as_str()), ("test", env!("CARGO_PKG_VERSION")));
    let inbound = &listed.types["Inbound"];
    assert_eq!((inbound.wildcard, inbound.names, inbound.resources), (false, 1, 1));
    assert_eq!(inbound.sent_nonce, inbound.acked_nonce);
    assert!(inbound.sent_ms > 0 && inbound.acked_ms >= inbound.sent_ms, "{inbound:?}");
    assert!(listed.types["Authorization"].wildcard);
    let (_, body) = lab.http("/proxies").await;
    for part in ["\"connectedSinceMs\":", "\"sentNonce\":", "\"ackedNonce\":", "\"sentMs\":", "\"workload\":"]
    {
        assert!(body.contains(part), "{part} in {body}");
    }
}

#[tokio::test]
async fn stopping_ends_streams_quickly_and_clients_hear_of_it() {
    let mut lab = Lab::new().await;
    let proxy = cart_proxy(&lab).await;
    eventually("inbound", || proxy.seen.get::<wire::Inbound>(INBOUND, "shop/cart-1")).await;
    let start = Instant::now();
    lab.stop.send_replace(true);
    lab.server.take().expect("running").await.expect("ends");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    eventually("the loss", || proxy.seen.errors.lock().expect("lock").first().cloned()).await;
    assert!(proxy.seen.get::<wire::Inbound>(INBOUND, "shop/cart-1").is_some(), "facts outlive the stream");
}

#[tokio::test]
async fn a_proxy_resumes_when_the_control_plane_returns() {
    let mut lab = Lab::new().await;
    for name in ["keep", "change", "remove"] {
        lab.apply(Event::Authorization(Change::Put(policy("shop", name, None, Action::Allow))));
    }
    let proxy = cart_proxy(&lab).await;
    proxy.client.subscribe(DESTINATION, "new").expect("subscribes");
    eventually("all", || (proxy.seen.names(AUTHORIZATION).len() == 3).then_some(())).await;
    eventually("unknown", || proxy.seen.get::<wire::Destination>(DESTINATION, "new")).await;
    lab.stop.send_replace(true);
    lab.server.take().expect("running").await.expect("ends");
    let before = proxy.seen.received.load(Ordering::SeqCst);

    lab.apply(Event::Authorization(Change::Delete(NamespacedName::new("shop", "remove"))));
    lab.apply(Event::Authorization(Change::Put(policy("shop", "change", None, Action::Deny))));
    let mut new = cart_service();
    new.name = NamespacedName::new("shop", "new");
    lab.apply(Event::Service(Change::Put(new)));
    // Asked for while nobody listens.
    proxy.client.subscribe(DESTINATION, "cart").expect("subscribes");
    lab.restart().await;

    eventually("the change", || {
        let changed: wire::Authorization = proxy.seen.get(AUTHORIZATION, "shop/change")?;
        let deny = changed.action() == wire::authorization::Action::Deny;
        (deny && proxy.seen.names(AUTHORIZATION) == ["shop/change", "shop/keep"]).then_some(())
    })
    .await;
    for name in ["new", "cart"] {
        eventually(name, || {
            let found: wire::Destination = proxy.seen.get(DESTINATION, name)?;
            matches!(found.kind, Some(Kind::Service(_))).then_some(())
        })
        .await;
    }
    let again = proxy.seen.received.load(Ordering::SeqCst) - before;
    assert_eq!(again, 3, "only what differs is sent: one policy, two destinations");
}

#[tokio::test]
async fn a_pod_has_so_many_streams_and_no_more() {
    let lab = Lab::new().await;
    let svid = lab.svid(CART, "shop:cart").await;
    let open = async || {
        let proxy = lab.proxy(CART, svid.clone()).await;
        proxy.client.subscribe(INBOUND, "shop/cart-1").expect("subscribes");
        proxy
    };
    let has_facts = |proxy: &Proxy| proxy.seen.get::<wire::Inbound>(INBOUND, "shop/cart-1").is_some();
    let mut all = Vec::new();
    for _ in 0..8 {
        let proxy = open().await;
        eventually("facts", || has_facts(&proxy).then_some(())).await;
        all.push(proxy);
    }
    let late = open().await;
    let refused = eventually("a refusal", || late.seen.errors.lock().expect("lock").first().cloned()).await;
    assert!(refused.contains("this pod has too many discovery streams"), "{refused}");
    assert!(!has_facts(&late));
    // Its neighbours have theirs, and it has its own as soon as one of the others ends.
    let web = lab.proxy(WEB, lab.svid(WEB, "shop:web").await).await;
    web.client.subscribe(INBOUND, "shop/web-1").expect("subscribes");
    eventually("a neighbour's facts", || web.seen.get::<wire::Inbound>(INBOUND, "shop/web-1")).await;
    all.pop();
    eventually("facts", || has_facts(&late).then_some(())).await;
}
