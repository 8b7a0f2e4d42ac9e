//! The own certificate through its life, and what the control plane hears of it.

use maille_pki::{Authority, fingerprint};
use maille_proto::flows::ProxyState;

use super::*;

fn other_authority() -> Authority {
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let day = Duration::from_secs(86_400);
    Authority::self_signed(&domain, std::time::SystemTime::now(), day).expect("authority")
}

fn fingerprints(authorities: &[&Authority]) -> Vec<String> {
    let mut all: Vec<_> =
        authorities.iter().flat_map(|authority| authority.roots()).map(fingerprint).collect();
    all.sort();
    all
}

fn bundle(authorities: &[&Authority], signer: String) -> wire::TrustBundle {
    wire::TrustBundle {
        trust_domain: "cluster.local".into(),
        roots: authorities
            .iter()
            .flat_map(|authority| authority.roots())
            .map(|root| root.to_vec().into())
            .collect(),
        signer,
        ..Default::default()
    }
}

impl Lab {
    fn last_state(&self) -> Option<ProxyState> {
        self.script.states.lock().last().cloned()
    }

    async fn told(&self, what: &str, holds: impl Fn(&ProxyState) -> bool) {
        eventually(what, || self.last_state().is_some_and(|state| holds(&state))).await;
    }
}

#[tokio::test]
async fn the_control_plane_is_told_what_handshakes_use_when_it_changes_and_when_nothing_does() {
    let lab = Lab::new().await;
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    lab.told("the first state", |_| true).await;
    let current = shared.tls.current();
    let first = lab.last_state().expect("told");
    let own = fingerprints(&[&lab.script.authority]);
    assert_eq!(first.serial, current.svid().serial());
    assert_eq!((&first.roots, &first.control_roots, &first.signer), (&own, &own, &own[0]));
    assert!(first.renewal_error.is_empty() && first.revocations.is_empty() && first.clock_ms > 0, "{first:?}");
    assert!(first.not_before_ms < first.clock_ms && first.clock_ms < first.not_after_ms, "{first:?}");

    // Without news and without flows it is told again.
    let clock = first.clock_ms;
    lab.told("the same again", |state| state.clock_ms > clock && state.serial == first.serial).await;

    let other = other_authority();
    let both = fingerprints(&[&lab.script.authority, &other]);
    lab.script.set(
        type_urls::TRUST_BUNDLE,
        "cluster.local",
        &bundle(&[&lab.script.authority, &other], own[0].clone()),
    );
    lab.told("the roots in use", |state| state.roots == both && state.control_roots == own).await;
    assert_eq!(shared.tls.current().trust().bundles.roots(identity("cart").trust_domain()).len(), 2);

    // Replaced as the kubelet does it: another file under the same name.
    let pem = lab.script.authority.roots_pem() + &other.roots_pem();
    std::fs::write(lab.file("next"), pem).expect("written");
    std::fs::rename(lab.file("next"), lab.file("root-cert.pem")).expect("renamed");
    lab.told("the file of the control plane", |state| state.control_roots == both).await;
    std::fs::remove_file(lab.file("root-cert.pem")).expect("removed");
    lab.told("that there is no file", |state| state.control_roots.is_empty()).await;
}
