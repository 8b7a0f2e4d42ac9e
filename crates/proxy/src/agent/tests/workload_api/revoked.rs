//! Whose right is withdrawn is validated by nobody, and gets nothing more.

use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use maille_pki::BACKDATE;
use maille_proto::spiffe::X509svidResponse;
use tonic::Status;

use super::*;

fn revoking(identity: &Identity, before: Option<SystemTime>) -> wire::Revocations {
    let start = before.map_or(UNIX_EPOCH, |before| before - BACKDATE);
    let not_after_ms = start.duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let identities = vec![wire::RevokedIdentity { id: identity.uri(), not_after_ms }];
    wire::Revocations { version: format!("{not_after_ms}"), identities, ..Default::default() }
}

fn now() -> SystemTime {
    SystemTime::now()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

#[tokio::test]
async fn a_token_of_a_revoked_identity_is_no_good() {
    let lab = Lab::new().await;
    lab.set_trust(None);
    let (agent, _) = start(lab.with_workload_api());
    let shared = shared(&agent).await;
    let mut client = client(&lab).await;
    drop(eventually_jwt_bundles(&mut client).await);
    let web = identity("web");
    let made = seconds(now());
    let token = lab.script.jwt.sign(&web, &["orders".to_owned()], made + 300, made);
    let mut validate = async || {
        let asked = ValidateJwtsvidRequest { audience: "orders".to_owned(), svid: token.clone() };
        client.validate_jwtsvid(meant(asked)).await.map(|good| good.into_inner().spiffe_id)
    };
    assert_eq!(within(validate()).await.expect("good"), web.uri());
    let hour = Duration::from_secs(3600);
    let rows = [
        (Some(revoking(&web, None)), false),
        (Some(revoking(&web, Some(now() + hour))), false),
        // It was made after that.
        (Some(revoking(&web, Some(now() - hour))), true),
        (Some(revoking(&identity("other"), None)), true),
        (
            Some(wire::Revocations {
                version: "serial".into(),
                serials: vec!["77".into()],
                ..Default::default()
            }),
            true,
        ),
        (Some(revoking(&web, None)), false),
        (None, true),
    ];
    for (revoked, is_good) in rows {
        match &revoked {
            Some(revoked) => lab.script.set(type_urls::REVOCATIONS, "mesh", revoked),
            None => lab.script.remove(type_urls::REVOCATIONS, "mesh"),
        }
        let version = revoked.as_ref().map(|revoked| revoked.version.clone()).unwrap_or_default();
        eventually("it is in force", || shared.tls.current().trust().revoked.version() == version).await;
        let answer = within(validate()).await;
        match is_good {
            true => assert_eq!(answer.expect("good"), web.uri(), "{revoked:?}"),
            false => {
                let refused = answer.expect_err("a token of a revoked identity is good");
                assert_eq!(refused.code(), Code::InvalidArgument);
                assert!(refused.message().contains("revoked"), "{refused}");
            }
        }
    }
}

/// Reads until the stream ends.
async fn end_of(stream: &mut tonic::Streaming<X509svidResponse>) -> Status {
    within(async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a word"),
                Err(status) => return status,
            }
        }
    })
    .await
}

#[tokio::test]
async fn who_is_denied_loses_what_is_kept_for_him_and_is_told() {
    let lab = Lab::new().await;
    lab.set_trust(None);
    // Each is to be asked for anew soon, long before it ends.
    *lab.script.ttl.lock() = Some(Duration::from_secs(8));
    *lab.script.jwt.life.lock() = Duration::from_secs(8);
    let (agent, _) = start(lab.with_workload_api());
    shared(&agent).await;
    let mut client = client(&lab).await;
    let mut stream =
        within(client.fetch_x509svid(meant(X509svidRequest {}))).await.expect("a stream").into_inner();
    within(stream.message()).await.expect("no error").expect("at once");
    let asked = || meant(JwtsvidRequest { audience: vec!["orders".into()], spiffe_id: String::new() });
    let token = within(client.fetch_jwtsvid(asked())).await.expect("a token").into_inner();
    lab.script.refuses.store(true, Ordering::Relaxed);
    assert_eq!(end_of(&mut stream).await.code(), Code::PermissionDenied);
    let refused = within(client.fetch_x509svid(meant(X509svidRequest {}))).await.expect_err("denied");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = within(async {
        loop {
            match client.fetch_jwtsvid(asked()).await {
                Ok(kept) => assert_eq!(kept.into_inner(), token, "another one is minted"),
                Err(refused) => return refused,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(refused.code(), Code::PermissionDenied);
    lab.script.refuses.store(false, Ordering::Relaxed);
    within(async {
        while client.fetch_x509svid(meant(X509svidRequest {})).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    within(client.fetch_jwtsvid(asked())).await.expect("a token again");
}

/// At once, not when it is next renewed.
#[tokio::test]
async fn what_is_kept_is_given_to_nobody_once_it_is_revoked() {
    let lab = Lab::new().await;
    lab.set_trust(None);
    let (agent, _) = start(lab.with_workload_api());
    shared(&agent).await;
    let mut client = client(&lab).await;
    let mut stream =
        within(client.fetch_x509svid(meant(X509svidRequest {}))).await.expect("a stream").into_inner();
    let first = within(stream.message()).await.expect("no error").expect("at once");
    let asked = || meant(JwtsvidRequest { audience: vec!["orders".into()], spiffe_id: String::new() });
    within(client.fetch_jwtsvid(asked())).await.expect("a token");
    // A serial number costs the certificate, and its owner gets another.
    let serials = vec![serial(&first)];
    let of_serial = wire::Revocations { version: "serial".into(), serials, ..Default::default() };
    lab.script.set(type_urls::REVOCATIONS, "mesh", &of_serial);
    let second = within(stream.message()).await.expect("no error").expect("another");
    assert_ne!(serial(&second), serial(&first));
    within(client.fetch_jwtsvid(asked())).await.expect("the token is still good");
    // And an identity everything.
    lab.script.refuses.store(true, Ordering::Relaxed);
    lab.script.set(type_urls::REVOCATIONS, "mesh", &revoking(&identity("cart"), None));
    assert_eq!(end_of(&mut stream).await.code(), Code::PermissionDenied);
    let refused = within(client.fetch_jwtsvid(asked())).await.expect_err("denied");
    assert_eq!(refused.code(), Code::PermissionDenied);
}
