//! Who gets which certificate (reference mtls 5.2, CA-1 to CA-12).

use std::time::{Duration, SystemTime};

use maille_control::IssueRules;
use maille_control::revocation::{Listed, Listing};
use maille_control::world::Event;
use maille_pki::{Authority, BACKDATE, create_csr, generate_key, peer_identity};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tonic::{Code, Request, Status};

use crate::lab::{CART, Lab, NOBODY, WEB, identity};

const HOUR: Duration = Duration::from_secs(3600);

fn request() -> IstioCertificateRequest {
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity("shop", "admin")).expect("csr");
    IstioCertificateRequest { csr, ..Default::default() }
}

/// CA-1, CA-12.
#[tokio::test]
async fn ca_1_ca_12_a_token_gives_its_own_identity_whatever_the_csr_says() {
    let lab = Lab::new().await;
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity("shop", "admin")).expect("csr");
    let asked = IstioCertificateRequest { csr, ..Default::default() };
    let chain = lab.sign(WEB, Some("shop:web"), asked).await.expect("issued").into_inner().cert_chain;
    assert!(chain.len() >= 2, "leaf and roots");
    assert_eq!(chain.last().map(String::as_str), Some(lab.roots_pem.as_str()));
    let svid = maille_pki::Svid::from_pem(&chain[..chain.len() - 1], key).expect("the key is the CSR's");
    assert_eq!(svid.identity(), &identity("shop", "web"));
}

#[tokio::test]
async fn ca_2_a_proof_is_of_no_use_at_another_pods_address() {
    let lab = Lab::new().await;
    for (from, token) in [
        // Another pod's account.
        (CART, Some("shop:web")),
        // No pod at all.
        (NOBODY, Some("shop:web")),
        // A token bound to an earlier pod of the same name, and to another pod of the account.
        (WEB, Some("shop:web:web-1:uid-old")),
        (WEB, Some("shop:web:web-2:uid-web-2")),
        // CA-2.
        (WEB, Some("garbage")),
        (WEB, None),
    ] {
        let status = lab.sign(from, token, request()).await.expect_err("refused");
        assert_eq!(status.code(), Code::Unauthenticated, "{from} {token:?}");
        assert_eq!(status.message(), "request authenticate failure", "{from} {token:?}");
    }
    lab.sign(WEB, Some("shop:web:web-1:uid-web-1"), request()).await.expect("the pod's own token");
}

#[tokio::test]
async fn a_proxy_faster_than_the_watch_waits_for_its_pod() {
    let lab = Lab::new().await;
    let (control, asked) = (lab.control.clone(), lab.sign("127.0.0.13", Some("shop:late"), request()));
    let later = async move {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let pod = crate::lab::pod("late-1", "late", "127.0.0.13");
        control.hub.apply([maille_control::world::Event::Pod(maille_control::world::Change::Put(pod))]);
    };
    let (answer, ()) = tokio::join!(asked, later);
    answer.expect("issued once the pod is known");
}

/// Reference mtls 5.2: no PEM, or another key's signature.
#[tokio::test]
async fn ca_3_a_request_that_proves_nothing_is_invalid() {
    let lab = Lab::new().await;
    let no_pem = IstioCertificateRequest { csr: "hello".into(), ..Default::default() };
    // Another CSR's signature over this one's key.
    let (mut broken, other) = (request(), request());
    let half = |csr: &str| csr.lines().map(str::to_owned).collect::<Vec<_>>();
    let (own, others) = (half(&broken.csr), half(&other.csr));
    assert_eq!(own.len(), others.len());
    let end = own.len() - 3;
    broken.csr = [&own[..end], &others[end..]].concat().join("\n");
    for asked in [no_pem, broken] {
        let status = lab.sign(WEB, Some("shop:web"), asked).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}

/// How long the certificate holds that is issued for this request, from now.
async fn lifetime(lab: &Lab, validity_duration: i64) -> Result<Duration, Status> {
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity("shop", "web")).expect("csr");
    let asked = IstioCertificateRequest { csr, validity_duration, ..Default::default() };
    let chain = lab.sign(WEB, Some("shop:web"), asked).await?.into_inner().cert_chain;
    let svid = maille_pki::Svid::from_pem(&chain[..chain.len() - 1], key).expect("an SVID");
    Ok(svid.not_after().duration_since(svid.not_before()).expect("ordered") - BACKDATE)
}

#[tokio::test]
async fn ca_4_none_or_a_negative_lifetime_is_the_default() {
    let rules = IssueRules { default_ttl: HOUR * 5, max_ttl: HOUR * 10, ..IssueRules::default() };
    let lab = Lab::with(|control| control.rules = rules).await;
    for asked in [0, -1, i64::MIN] {
        assert_eq!(lifetime(&lab, asked).await.expect("issued"), HOUR * 5, "{asked}");
    }
    assert_eq!(lifetime(&lab, 60).await.expect("issued"), HOUR / 60);
}

#[tokio::test]
async fn ca_5_more_than_the_maximum_is_refused_and_not_shortened() {
    let rules = IssueRules { default_ttl: HOUR * 5, max_ttl: HOUR * 10, ..IssueRules::default() };
    let lab = Lab::with(|control| control.rules = rules).await;
    assert_eq!(lifetime(&lab, 36_000).await.expect("issued"), HOUR * 10);
    for asked in [36_001, i64::MAX] {
        let status = lifetime(&lab, asked).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("36000 s"), "{status}");
    }
}

#[tokio::test]
async fn ca_9_without_an_authority_the_answer_is_internal() {
    let lab = Lab::new().await;
    // It serves with a certificate of the one that it began with.
    lab.svid(WEB, "shop:web").await;
    lab.control.authority.store(None);
    let status = lab.sign(WEB, Some("shop:web"), request()).await.expect_err("no authority");
    assert_eq!(status.code(), Code::Internal);
}

#[tokio::test]
async fn ca_10_only_the_own_cluster_or_none_may_be_named() {
    let lab = Lab::new().await;
    let channel = lab.channel(WEB, None).await.expect("connects");
    for (cluster, fine) in [("", true), ("Kubernetes", true), ("elsewhere", false)] {
        let mut asked = Request::new(request());
        asked.metadata_mut().insert("authorization", "Bearer shop:web".parse().expect("header"));
        asked.metadata_mut().insert("clusterid", cluster.parse().expect("header"));
        let answer = IstioCertificateServiceClient::new(channel.clone()).create_certificate(asked).await;
        let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(code, if fine { Code::Ok } else { Code::Unauthenticated }, "cluster {cluster:?}");
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_reviewed_now_may_be_shown_again() {
    let lab = Lab::new().await;
    let status = lab.sign(WEB, Some("away:web"), request()).await.expect_err("cannot be judged");
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_svid_is_renewed_with_itself_but_not_from_elsewhere() {
    let lab = Lab::new().await;
    let svid = lab.svid(WEB, "shop:web").await;
    let channel = lab.channel(WEB, Some(&svid)).await.expect("connects");
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request()).await;
    let chain = answer.expect("renewed").into_inner().cert_chain;
    let der = maille_pki::certificates_from_pem("leaf", chain.first().expect("leaf")).expect("PEM");
    assert_eq!(peer_identity(&der[0]).expect("SVID"), identity("shop", "web"));

    let channel = lab.channel(CART, Some(&svid)).await.expect("the handshake itself is fine");
    let status = IstioCertificateServiceClient::new(channel).create_certificate(request()).await;
    assert_eq!(status.expect_err("stolen").code(), Code::Unauthenticated);
}

#[tokio::test]
async fn too_many_requests_of_one_pod_are_put_off_with_the_limit_named() {
    let lab = Lab::new().await;
    let mut put_off = None;
    for _ in 0..14 {
        let status = lab.sign(NOBODY, None, request()).await.expect_err("refused");
        if status.code() == Code::ResourceExhausted {
            put_off = Some(status);
        }
    }
    let put_off = put_off.expect("one of fourteen");
    assert!(put_off.message().contains("of this pod: 10 at once and 0.5 per second"), "{put_off}");
    lab.sign(WEB, Some("shop:web"), request()).await.expect("others are not concerned");
}

/// Gives the running control plane another authority.
fn replace_authority(lab: &Lab, made: SystemTime, ttl: Duration) {
    let domain = maille_core::TrustDomain::parse("cluster.local").expect("valid");
    let made = Authority::self_signed(&domain, made, ttl).expect("root");
    lab.control.authority.store(Some(made.into()));
}

#[tokio::test]
async fn ca_6_nothing_outlives_what_signed_it() {
    let lab = Lab::new().await;
    // Once it has answered, it serves with a certificate of the authority it began with.
    lab.svid(WEB, "shop:web").await;
    replace_authority(&lab, SystemTime::now(), HOUR);
    for asked in [86_400, 0] {
        let got = lifetime(&lab, asked).await.expect("issued");
        assert!(got <= HOUR && got > HOUR - Duration::from_secs(60), "{got:?}, of {asked} s asked for");
    }
}

#[tokio::test]
async fn ca_7_an_expired_authority_signs_nothing() {
    let lab = Lab::new().await;
    lab.svid(WEB, "shop:web").await;
    replace_authority(&lab, SystemTime::now() - HOUR * 2, HOUR);
    let status = lab.sign(WEB, Some("shop:web"), request()).await.expect_err("refused");
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("renew the authority"), "{status}");
}

#[tokio::test]
async fn nothing_is_issued_to_who_is_revoked() {
    let lab = Lab::new().await;
    let svid = lab.svid(WEB, "shop:web").await;
    let entries = r#"[{"identity": "spiffe://cluster.local/ns/shop/sa/web", "reason": "stolen"}]"#;
    lab.apply(Event::Revocations(Listed::of(&Listing::Text(entries.to_owned()))));
    let status = lab.sign(WEB, Some("shop:web"), request()).await.expect_err("revoked");
    assert_eq!(status.code(), Code::PermissionDenied);
    // By its certificate as little, whether or not the connection itself is refused.
    if let Ok(channel) = lab.channel(WEB, Some(&svid)).await {
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request()).await;
        answer.expect_err("revoked");
    }
    lab.sign(CART, Some("shop:cart"), request()).await.expect("others are not concerned");
    lab.apply(Event::Revocations(Listed::of(&Listing::Text("[]".to_owned()))));
    lab.sign(WEB, Some("shop:web"), request()).await.expect("taken back");
}
