//! JWT-SVIDs, as proxies get them.

use std::time::{Duration, SystemTime};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use maille_control::revocation::{Listed, Listing};
use maille_control::world::Event;
use maille_pki::{JwtKeys, Svid};
use maille_proto::facts::TrustBundle;
use maille_proto::identity::MintJwtSvidRequest;
use maille_proto::identity::identity_client::IdentityClient;
use maille_xds::type_urls::TRUST_BUNDLE;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::lab::{CART, Lab, WEB, eventually};

async fn mint(
    lab: &Lab,
    from: &str,
    svid: Option<&Svid>,
    audience: &[&str],
) -> Result<(String, u64), Status> {
    let channel = lab.channel(from, svid).await.expect("connects");
    let audience = audience.iter().map(|one| (*one).to_owned()).collect();
    let answer =
        IdentityClient::new(channel).mint_jwt_svid(MintJwtSvidRequest { audience }).await?.into_inner();
    Ok((answer.token, answer.expires_s))
}

#[tokio::test]
async fn a_proxy_gets_jwt_svids_of_its_own_identity_that_verify_by_the_bundle() {
    let lab = Lab::new().await;
    let now = SystemTime::now();
    let svid = lab.svid(WEB, "shop:web").await;
    let status = mint(&lab, WEB, Some(&svid), &["orders"]).await.expect_err("no keys yet");
    assert_eq!(status.code(), Code::Unavailable);
    lab.control.set_jwt_keys(JwtKeys::generate(now).expect("keys"));

    let (token, expires) = mint(&lab, WEB, Some(&svid), &["orders", "bills"]).await.expect("minted");
    let proxy = lab.proxy(WEB, svid.clone()).await;
    proxy.client.subscribe_wildcard(TRUST_BUNDLE);
    let jwks = eventually("the keys", || {
        let bundle = proxy.seen.get::<TrustBundle>(TRUST_BUNDLE, "cluster.local")?;
        (!bundle.jwks.is_empty()).then_some(bundle.jwks)
    })
    .await;
    let set: JwkSet = serde_json::from_slice(&jwks).expect("a JWK Set");
    let id = jsonwebtoken::decode_header(&token).expect("header").kid.expect("kid");
    let key = DecodingKey::from_jwk(set.find(&id).expect("its key")).expect("a key");
    let mut rules = Validation::new(Algorithm::ES256);
    rules.set_audience(&["bills"]);
    let claims = jsonwebtoken::decode::<Value>(&token, &key, &rules).expect("verifies").claims;
    assert_eq!(claims["sub"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(claims["aud"], json!(["orders", "bills"]));
    assert_eq!(claims["exp"], expires);
    let lifetime = expires - claims["iat"].as_u64().expect("iat");
    assert_eq!(Duration::from_secs(lifetime), maille_pki::JWT_TTL);
}

#[tokio::test]
async fn nobody_gets_a_jwt_svid_without_a_certificate_of_the_pod() {
    let lab = Lab::new().await;
    lab.control.set_jwt_keys(JwtKeys::generate(SystemTime::now()).expect("keys"));
    let svid = lab.svid(WEB, "shop:web").await;
    let code = async |from: &str, svid: Option<&Svid>, audience: &[&str]| {
        mint(&lab, from, svid, audience).await.expect_err("refused").code()
    };
    assert_eq!(code(WEB, None, &["orders"]).await, Code::Unauthenticated);
    assert_eq!(code(CART, Some(&svid), &["orders"]).await, Code::Unauthenticated);
    assert_eq!(code(WEB, Some(&svid), &[]).await, Code::InvalidArgument);
    assert_eq!(code(WEB, Some(&svid), &[""]).await, Code::InvalidArgument);
    // The connection is from before, so that it is the service that refuses.
    let channel = lab.channel(WEB, Some(&svid)).await.expect("connects");
    let mut client = IdentityClient::new(channel);
    let request = || MintJwtSvidRequest { audience: vec!["orders".to_owned()] };
    client.mint_jwt_svid(request()).await.expect("minted");
    let entries = r#"[{"identity": "spiffe://cluster.local/ns/shop/sa/web"}]"#;
    lab.apply(Event::Revocations(Listed::of(&Listing::Text(entries.to_owned()))));
    let status = client.mint_jwt_svid(request()).await.expect_err("revoked");
    assert!(matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied), "{status}");
}
