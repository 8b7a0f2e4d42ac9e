//! Who gets which certificate (reference mtls 5.2, CA-1 to CA-12).

use std::time::{Duration, SystemTime};

use maille_pki::{Authority, create_csr, generate_key, peer_identity};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tonic::{Code, Request};

use crate::lab::{CART, Lab, NOBODY, WEB, identity};

fn request() -> IstioCertificateRequest {
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity("shop", "admin")).expect("csr");
    IstioCertificateRequest { csr, ..Default::default() }
}

/// CA-1, CA-12.
#[tokio::test]
async fn a_token_gives_its_own_identity_whatever_the_csr_says() {
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
async fn a_proof_is_of_no_use_at_another_pods_address() {
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

/// CA-3, CA-4, CA-5.
#[tokio::test]
async fn bad_requests_are_named_as_such() {
    let lab = Lab::new().await;
    let sign = |request| lab.sign(WEB, Some("shop:web"), request);
    let no_pem = IstioCertificateRequest { csr: "hello".into(), ..Default::default() };
    assert_eq!(sign(no_pem).await.expect_err("refused").code(), Code::InvalidArgument);
    // Another CSR's signature over this one's key.
    let mut broken = request();
    broken.csr = broken.csr.replacen("MI", "MJ", 1);
    assert_eq!(sign(broken).await.expect_err("refused").code(), Code::InvalidArgument);
    let too_long = IstioCertificateRequest { validity_duration: 91 * 86_400, ..request() };
    assert_eq!(sign(too_long).await.expect_err("refused").code(), Code::InvalidArgument);
    for default in [0, -1] {
        let asked = IstioCertificateRequest { validity_duration: default, ..request() };
        sign(asked).await.expect("issued with the default lifetime");
    }
}

/// CA-8, CA-9, CA-10, and an API server that is away.
#[tokio::test]
async fn odd_callers_get_the_code_that_istio_gives() {
    let lab = Lab::new().await;
    let mut acting = request();
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("spiffe://x".into())) };
    let fields = [("ImpersonatedIdentity".to_owned(), value)].into();
    acting.metadata = Some(prost_types::Struct { fields });
    let status = lab.sign(WEB, Some("shop:web"), acting).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.message(), "request impersonation authentication failure");

    let status = lab.sign(WEB, Some("away:web"), request()).await.expect_err("cannot be judged");
    assert_eq!(status.code(), Code::Unavailable);

    let channel = lab.channel(WEB, None).await.expect("connects");
    for (cluster, fine) in [("", true), ("Kubernetes", true), ("elsewhere", false)] {
        let mut asked = Request::new(request());
        asked.metadata_mut().insert("authorization", "Bearer shop:web".parse().expect("header"));
        asked.metadata_mut().insert("clusterid", cluster.parse().expect("header"));
        let answer = IstioCertificateServiceClient::new(channel.clone()).create_certificate(asked).await;
        assert_eq!(answer.is_ok(), fine, "cluster {cluster:?}");
    }

    lab.control.authority.store(None);
    let status = lab.sign(WEB, Some("shop:web"), request()).await.expect_err("no authority");
    assert_eq!(status.code(), Code::Internal);
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
async fn too_many_requests_of_one_address_are_put_off() {
    let lab = Lab::new().await;
    let mut codes = Vec::new();
    for _ in 0..14 {
        codes.push(lab.sign(NOBODY, None, request()).await.expect_err("refused").code());
    }
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
    lab.sign(WEB, Some("shop:web"), request()).await.expect("others are not concerned");
}

/// CA-6, CA-7.
#[tokio::test]
async fn a_certificate_does_not_outlive_its_authority_and_an_expired_one_signs_nothing() {
    let lab = Lab::new().await;
    // Once it has answered, it serves with a certificate of the authority it began with.
    lab.svid(WEB, "shop:web").await;
    let domain = maille_core::TrustDomain::parse("cluster.local").expect("valid");
    let authority = |made: SystemTime| {
        let made = Authority::self_signed(&domain, made, Duration::from_secs(3600)).expect("root");
        lab.control.authority.store(Some(made.into()));
    };
    authority(SystemTime::now());
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity("shop", "web")).expect("csr");
    let asked = IstioCertificateRequest { csr, validity_duration: 86_400, ..Default::default() };
    let chain = lab.sign(WEB, Some("shop:web"), asked).await.expect("issued").into_inner().cert_chain;
    let svid = maille_pki::Svid::from_pem(&chain[..chain.len() - 1], key).expect("an SVID");
    assert!(svid.not_after() <= SystemTime::now() + Duration::from_secs(3600));

    authority(SystemTime::now() - Duration::from_secs(7200));
    let status = lab.sign(WEB, Some("shop:web"), request()).await.expect_err("refused");
    assert_eq!(status.code(), Code::Internal);
}
