//! The mesh's configuration and the policies about tokens, while proxies are connected.

use std::sync::atomic::Ordering;

use maille_config::istio::{self, Action, JwtRule, RequestAuthentication};
use maille_config::mesh::MeshConfig;
use maille_control::world::{Change, Event, KeySource};
use maille_core::{NamespacedName, TrustDomain};
use maille_pki::{Svid, create_csr, generate_key};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use maille_proto::facts as wire;
use maille_xds::type_urls::{
    AUTHORIZATION, DESTINATION, INBOUND, MESH_SETTINGS, REQUEST_AUTHENTICATION, TRUST_BUNDLE,
};
use wire::destination::Kind;

use crate::lab::{CART, Lab, Proxy, WEB, eventually, identity, policy};

async fn proxy(lab: &Lab, from: &'static str, account: &str) -> Proxy {
    let svid = lab.svid(from, &format!("shop:{account}")).await;
    let proxy = lab.proxy(from, svid).await;
    for type_url in [MESH_SETTINGS, TRUST_BUNDLE, AUTHORIZATION, REQUEST_AUTHENTICATION] {
        proxy.client.subscribe_wildcard(type_url);
    }
    let own = format!("shop/{account}-1");
    proxy.client.subscribe(INBOUND, &own).expect("subscribes");
    eventually("settings", || proxy.seen.get::<wire::MeshSettings>(MESH_SETTINGS, "mesh")).await;
    eventually("inbound", || proxy.seen.get::<wire::Inbound>(INBOUND, &own)).await;
    proxy
}

fn tokens(namespace: &str, name: &str, app: Option<&str>, rules: Vec<JwtRule>) -> RequestAuthentication {
    let mut found = RequestAuthentication::default();
    found.metadata.namespace = Some(namespace.into());
    found.metadata.name = Some(name.into());
    found.spec.selector =
        app.map(|app| istio::WorkloadSelector { match_labels: [("app".to_owned(), app.to_owned())].into() });
    found.spec.jwt_rules = rules;
    found
}

fn put(found: RequestAuthentication) -> Event {
    Event::RequestAuthentication(Change::Put(found))
}

fn fetched(uri: &str) -> JwtRule {
    JwtRule { issuer: "https://idp".into(), jwks_uri: uri.into(), ..Default::default() }
}

fn rule_of(proxy: &Proxy, name: &str) -> Option<wire::JwtRule> {
    let found: wire::RequestAuthentication = proxy.seen.get(REQUEST_AUTHENTICATION, name)?;
    found.jwt_rules.into_iter().next()
}

#[tokio::test]
async fn a_proxy_has_exactly_the_request_authentications_that_apply_to_it() {
    let lab = Lab::new().await;
    let secret = r#"{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB","d":"SECRET"}]}"#;
    let inline = JwtRule { issuer: "https://idp".into(), jwks: secret.into(), ..Default::default() };
    lab.apply(put(tokens("istio-system", "all", None, vec![inline])));
    lab.apply(put(tokens("shop", "cart", Some("cart"), Vec::new())));
    lab.apply(put(tokens("shop", "web", Some("web"), Vec::new())));
    lab.apply(put(tokens("bank", "bank", None, Vec::new())));
    let mut of_gateway = tokens("shop", "edge", None, Vec::new());
    let target = istio::TargetRef { kind: "Gateway".into(), name: "edge".into(), ..Default::default() };
    of_gateway.spec.target_refs = Some(vec![target]);
    lab.apply(put(of_gateway));
    let proxy = proxy(&lab, CART, "cart").await;
    eventually("what applies", || {
        (proxy.seen.names(REQUEST_AUTHENTICATION) == ["istio-system/all", "shop/cart"]).then_some(())
    })
    .await;
    let rule = rule_of(&proxy, "istio-system/all").expect("a rule");
    assert!(rule.jwks.contains("AQAB") && !rule.jwks.contains("SECRET"), "{}", rule.jwks);
    lab.apply(Event::RequestAuthentication(Change::Delete(NamespacedName::new("shop", "cart"))));
    eventually("gone", || (proxy.seen.names(REQUEST_AUTHENTICATION) == ["istio-system/all"]).then_some(()))
        .await;
}

#[tokio::test]
async fn fetched_keys_reach_those_whose_policy_names_them_and_nobody_else() {
    let lab = Lab::new().await;
    let wanted = lab.control.hub.key_sources();
    let (cart, web) = (proxy(&lab, CART, "cart").await, proxy(&lab, WEB, "web").await);
    lab.apply(put(tokens("shop", "cart", Some("cart"), vec![fetched("https://idp/keys")])));
    let awaited = eventually("the rule", || rule_of(&cart, "shop/cart")).await;
    assert!(awaited.jwks.is_empty() && awaited.jwks_problem.contains("https://idp/keys"), "{awaited:?}");
    let sources: Vec<KeySource> = wanted.borrow().keys().cloned().collect();
    assert_eq!(sources, [KeySource::Url("https://idp/keys".into())]);
    let others = web.seen.received.load(Ordering::SeqCst);
    lab.apply(Event::Keys(sources[0].clone(), Err("https://idp/keys cannot be reached".into())));
    eventually("why there are none", || {
        rule_of(&cart, "shop/cart").filter(|rule| rule.jwks_problem.ends_with("cannot be reached"))
    })
    .await;
    lab.apply(Event::Keys(sources[0].clone(), Ok(r#"{"keys":[]}"#.into())));
    let known =
        eventually("the keys", || rule_of(&cart, "shop/cart").filter(|rule| !rule.jwks.is_empty())).await;
    assert_eq!((known.jwks.as_str(), known.jwks_problem.as_str()), (r#"{"keys":[]}"#, ""));
    // Everybody hears of this, so the other one has heard of all before it.
    lab.apply(Event::MeshConfig(MeshConfig { registry_only: true, ..MeshConfig::default() }));
    eventually("the other one's settings", || {
        let settings: wire::MeshSettings = web.seen.get(MESH_SETTINGS, "mesh")?;
        (settings.outbound_policy() == wire::mesh_settings::OutboundPolicy::RegistryOnly).then_some(())
    })
    .await;
    assert_eq!(web.seen.received.load(Ordering::SeqCst), others + 1, "the settings and nothing else");
    lab.apply(Event::RequestAuthentication(Change::Delete(NamespacedName::new("shop", "cart"))));
    assert!(wanted.borrow().is_empty());
}

#[tokio::test]
async fn proxies_follow_the_root_namespace() {
    let lab = Lab::new().await;
    for (namespace, name) in [("istio-system", "old"), ("istio-config", "new"), ("shop", "own")] {
        lab.apply(Event::Authorization(Change::Put(policy(namespace, name, None, Action::Allow))));
        lab.apply(put(tokens(namespace, name, None, Vec::new())));
    }
    let proxy = proxy(&lab, CART, "cart").await;
    let holds = |names: &[&str]| {
        [AUTHORIZATION, REQUEST_AUTHENTICATION].iter().all(|type_url| proxy.seen.names(type_url) == names)
    };
    eventually("the first root's", || holds(&["istio-system/old", "shop/own"]).then_some(())).await;
    let mesh = |root: &str| MeshConfig { root_namespace: root.into(), ..MeshConfig::default() };
    lab.apply(Event::MeshConfig(mesh("istio-config")));
    eventually("the new root's", || holds(&["istio-config/new", "shop/own"]).then_some(())).await;
    // What happens in the new root is heard of, what happens in the old one is not.
    let before = proxy.seen.received.load(Ordering::SeqCst);
    lab.apply(Event::Authorization(Change::Put(policy("istio-system", "more", None, Action::Deny))));
    lab.apply(Event::Authorization(Change::Put(policy("istio-config", "more", None, Action::Deny))));
    eventually("the policy", || proxy.seen.get::<wire::Authorization>(AUTHORIZATION, "istio-config/more"))
        .await;
    assert_eq!(proxy.seen.received.load(Ordering::SeqCst), before + 1);
    lab.apply(Event::Authorization(Change::Delete(NamespacedName::new("istio-config", "more"))));
    // A proxy's own namespace can be the root, and stop being it.
    for root in ["shop", "istio-config"] {
        lab.apply(Event::MeshConfig(mesh(root)));
        let settings = || proxy.seen.get::<wire::MeshSettings>(MESH_SETTINGS, "mesh");
        eventually(root, || settings().filter(|settings| settings.root_namespace == root)).await;
    }
    eventually("both again", || holds(&["istio-config/new", "shop/own"]).then_some(())).await;
    lab.apply(Event::Authorization(Change::Put(policy("shop", "late", None, Action::Deny))));
    eventually("the own namespace", || proxy.seen.get::<wire::Authorization>(AUTHORIZATION, "shop/late"))
        .await;
}

/// SN-12: new certificates are of the new trust domain at once, old ones are good for as long as it is an alias.
#[tokio::test]
async fn a_trust_domain_changes_under_connected_proxies() {
    let lab = Lab::new().await;
    let old = lab.svid(CART, "shop:cart").await;
    let connected = proxy(&lab, CART, "cart").await;
    connected.client.subscribe(DESTINATION, "cart").expect("subscribes");
    let names = |proxy: &Proxy| match proxy.seen.get::<wire::Destination>(DESTINATION, "cart")?.kind? {
        Kind::Service(service) => Some(service.subject_alt_names),
        _ => None,
    };
    assert_eq!(eventually("the service", || names(&connected)).await, [identity("shop", "cart").uri()]);
    let domain = |text: &str| TrustDomain::parse(text).expect("valid");
    let mut mesh = MeshConfig {
        trust_domain: Some(domain("new.td")),
        trust_domain_aliases: vec![domain("cluster.local")],
        ..MeshConfig::default()
    };
    lab.apply(Event::MeshConfig(mesh.clone()));
    let both = [identity("shop", "cart").uri(), "spiffe://new.td/ns/shop/sa/cart".to_owned()];
    eventually("both names", || (names(&connected)? == both).then_some(())).await;
    eventually("the bundle of the new domain in place of the old one's", || {
        (connected.seen.names(TRUST_BUNDLE) == ["new.td"]).then_some(())
    })
    .await;
    let inbound: wire::Inbound = connected.seen.get(INBOUND, "shop/cart-1").expect("there");
    assert_eq!(inbound.workload.and_then(|w| w.identity).expect("an identity").trust_domain, "new.td");

    // The old certificate gets a new one, which the same port accepts.
    let renewed = renew(&lab, &old).await.expect("renewed");
    assert_eq!(renewed.identity().uri(), both[1]);
    let again = renew(&lab, &renewed).await.expect("renewed with the new one");
    assert_eq!(again.identity().uri(), both[1]);

    // Once the old domain is an alias no more, its certificates are no good, neither new connections nor open streams.
    assert!(connected.seen.errors.lock().expect("lock").is_empty());
    mesh.trust_domain_aliases.clear();
    lab.apply(Event::MeshConfig(mesh));
    eventually("the stream's end", || connected.seen.errors.lock().expect("lock").first().cloned()).await;
    eventually_refused(&lab, &old).await;
    renew(&lab, &again).await.expect("the new one stays good");
}

async fn renew(lab: &Lab, with: &Svid) -> Result<Svid, String> {
    let channel = lab.channel(CART, Some(with)).await.map_err(|error| error.to_string())?;
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity("shop", "cart")).expect("csr");
    let request = IstioCertificateRequest { csr, ..Default::default() };
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
    let chain = answer.map_err(|status| status.to_string())?.into_inner().cert_chain;
    Ok(Svid::from_pem(&chain[..chain.len() - 1], key).expect("an SVID"))
}

/// The serving configuration follows a moment after the world.
async fn eventually_refused(lab: &Lab, svid: &Svid) {
    for _ in 0..500 {
        if renew(lab, svid).await.is_err() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the certificate of the former domain is still accepted");
}
