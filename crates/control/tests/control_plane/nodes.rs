//! Proxies that act for the workloads of their node (reference mtls 5.3, CA-8 and CA-13 to CA-15).

use maille_control::IssueRules;
use maille_control::world::{Change, Event, Pod};
use maille_core::NamespacedName;
use maille_pki::{Svid, create_csr, generate_key};
use maille_proto::ca::IstioCertificateRequest;
use prost_types::value::Kind;
use tonic::{Code, Status};

use crate::lab::{CART, Lab, WEB, identity, pod};

const ZTUNNEL: &str = "127.0.0.21";
const CART_ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// A node proxy on node-1, as are `shop/web-1` and `shop/cart-1`.
async fn lab(trusted: &str) -> Lab {
    let node_accounts = trusted.parse().expect("accounts");
    let lab =
        Lab::with(|control| control.rules = IssueRules { node_accounts, ..IssueRules::default() }).await;
    lab.apply(Event::Pod(Change::Put(ztunnel("uid-1"))));
    lab
}

fn ztunnel(uid: &str) -> Pod {
    let name = NamespacedName::new("istio-system", "ztunnel-1");
    Pod { name, uid: uid.into(), ..pod("ztunnel-1", "ztunnel", ZTUNNEL) }
}

/// Who the certificate is for that is issued for this request.
async fn act(lab: &Lab, from: &str, token: &str, wanted: Kind) -> Result<Svid, Status> {
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity("istio-system", "ztunnel")).expect("csr");
    let value = prost_types::Value { kind: Some(wanted) };
    let metadata = Some(prost_types::Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() });
    let asked = IstioCertificateRequest { csr, metadata, ..Default::default() };
    let chain = lab.sign(from, Some(token), asked).await?.into_inner().cert_chain;
    Ok(Svid::from_pem(&chain[..chain.len() - 1], key).expect("an SVID"))
}

fn text(wanted: &str) -> Kind {
    Kind::StringValue(wanted.to_owned())
}

const TRUSTED: &str = "istio-system/ztunnel";
const TOKEN: &str = "istio-system:ztunnel:ztunnel-1:uid-1";

fn assert_refused(answer: Result<Svid, Status>, why: &str) {
    let status = answer.expect_err(why);
    assert_eq!(status.code(), Code::Unauthenticated, "{why}: {status}");
    assert_eq!(status.message(), "request impersonation authentication failure", "{why}");
}

#[tokio::test]
async fn ca_13_a_node_proxy_gets_the_identities_of_its_node() {
    let lab = lab(TRUSTED).await;
    let svid = act(&lab, ZTUNNEL, TOKEN, text(CART_ID)).await.expect("issued");
    assert_eq!(svid.identity(), &identity("shop", "cart"), "that identity only");
    // Its own, where it asks for no other.
    let svid = act(&lab, ZTUNNEL, TOKEN, text("")).await.expect("issued");
    assert_eq!(svid.identity(), &identity("istio-system", "ztunnel"));
    // The log says who acted for whom.
    let (_, log) = lab.http(&format!("/ca/issued?identity={CART_ID}")).await;
    assert!(log.contains("token of spiffe://cluster.local/ns/istio-system/sa/ztunnel"), "{log}");
}

#[tokio::test]
async fn ca_14_nothing_for_workloads_of_other_nodes() {
    let lab = lab(TRUSTED).await;
    let elsewhere = Pod { node: "node-2".into(), ..pod("cart-1", "cart", CART) };
    lab.apply(Event::Pod(Change::Put(elsewhere)));
    assert_refused(act(&lab, ZTUNNEL, TOKEN, text(CART_ID)).await, "cart is on node-2 only");
    let both = Pod { name: NamespacedName::new("shop", "cart-2"), ..pod("cart-2", "cart", "127.0.0.22") };
    lab.apply(Event::Pod(Change::Put(both)));
    act(&lab, ZTUNNEL, TOKEN, text(CART_ID)).await.expect("one of them is on node-1 now");
    let nowhere = Pod { node: String::new(), ..ztunnel("uid-1") };
    lab.apply(Event::Pod(Change::Put(nowhere)));
    assert_refused(act(&lab, ZTUNNEL, TOKEN, text(CART_ID)).await, "the caller is on no node");
}

#[tokio::test]
async fn ca_15_a_token_of_an_earlier_pod_of_the_same_name_is_refused() {
    let lab = lab(TRUSTED).await;
    lab.apply(Event::Pod(Change::Put(ztunnel("uid-2"))));
    let status = act(&lab, ZTUNNEL, TOKEN, text(CART_ID)).await.expect_err("of the earlier one");
    assert_eq!(status.code(), Code::Unauthenticated);
    let own = "istio-system:ztunnel:ztunnel-1:uid-2";
    act(&lab, ZTUNNEL, own, text(CART_ID)).await.expect("its own token");
}

#[tokio::test]
async fn ca_8_nobody_else_acts_for_others() {
    let off = lab("").await;
    assert_refused(act(&off, ZTUNNEL, TOKEN, text(CART_ID)).await, "nobody is trusted so");
    let lab = lab(TRUSTED).await;
    assert_refused(act(&lab, WEB, "shop:web", text(CART_ID)).await, "web is no node proxy");
    for (wanted, why) in [
        (text("spiffe://cluster.local/ns/shop/sa/nobody"), "no such pod"),
        (text("spiffe://elsewhere/ns/shop/sa/cart"), "another trust domain"),
        (text("cart"), "no identity"),
        (text("spiffe://cluster.local/ns/shop/sa/cart/"), "no identity either"),
        (Kind::BoolValue(true), "no text"),
    ] {
        assert_refused(act(&lab, ZTUNNEL, TOKEN, wanted).await, why);
    }
    let (_, log) = lab.http("/ca/issued").await;
    for reason in
        ["is no trusted node account", "no pod of that account is on node node-1", "of another trust domain"]
    {
        assert!(log.contains(reason), "{reason} in {log}");
    }
}
