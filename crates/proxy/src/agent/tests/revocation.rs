//! Revocations are put in force, kept for a restart, and cost the own certificate only until the next one.

use std::sync::atomic::Ordering;

use super::*;

fn revoking(version: &str, serial: &str) -> wire::Revocations {
    wire::Revocations { version: version.into(), serials: vec![serial.into()], ..Default::default() }
}

fn version(shared: &Shared) -> String {
    shared.tls.current().trust().revoked.version().to_owned()
}

#[tokio::test]
async fn revocations_outlive_a_restart_while_the_control_plane_is_away() {
    let mut lab = Lab::new().await;
    lab.script.set(type_urls::REVOCATIONS, "mesh", &revoking("first", "77"));
    {
        let (agent, _) = lab.agent();
        let shared = shared(&agent).await;
        eventually("they are in force", || version(&shared) == "first").await;
        let facts = lab.file("proxy/facts.pb");
        eventually("they are kept", || {
            std::fs::read(&facts).is_ok_and(|bytes| bytes.windows(11).any(|w| w == b"Revocations"))
        })
        .await;
    }
    lab.control = None;
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    assert_eq!(version(&shared), "first");
}

#[tokio::test]
async fn a_list_that_cannot_be_read_leaves_the_last_one_in_force() {
    let lab = Lab::new().await;
    lab.script.set(type_urls::REVOCATIONS, "mesh", &revoking("first", "77"));
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    eventually("they are in force", || version(&shared) == "first").await;
    let bad = wire::Revocations { crls: vec![vec![1, 2, 3].into()], ..revoking("second", "78") };
    lab.script.set(type_urls::REVOCATIONS, "mesh", &bad);
    eventually("it is rejected", || lab.script.nacks.lock().iter().any(|nack| nack.contains("list 0"))).await;
    assert_eq!(version(&shared), "first");
}

#[tokio::test]
async fn a_proxy_whose_certificate_is_revoked_gets_another_at_once() {
    let lab = Lab::new().await;
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    let serial = shared.tls.current().svid().serial().to_owned();
    lab.script.set(type_urls::REVOCATIONS, "mesh", &revoking("first", &serial));
    eventually("another certificate is in use", || shared.tls.current().svid().serial() != serial).await;
}

#[tokio::test]
async fn a_proxy_that_is_revoked_no_more_has_another_certificate_at_once() {
    let lab = Lab::new().await;
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    let own = || shared.tls.current().svid().serial().to_owned();
    let before = own();
    lab.script.refuses.store(true, Ordering::Relaxed);
    let id = identity("cart").uri();
    let whole = wire::RevokedIdentity { id, not_after_ms: 0 };
    let revoked =
        wire::Revocations { version: "first".into(), identities: vec![whole], ..Default::default() };
    lab.script.set(type_urls::REVOCATIONS, "mesh", &revoked);
    let failed = || agent.facts.lock().own_revocation().is_some();
    eventually("it knows that it is revoked", failed).await;
    lab.script.refuses.store(false, Ordering::Relaxed);
    lab.script.remove(type_urls::REVOCATIONS, "mesh");
    eventually("another certificate is in use", || own() != before).await;
    eventually("it is revoked no more", || agent.facts.lock().own_revocation().is_none()).await;
}
