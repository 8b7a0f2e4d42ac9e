//! The own certificate through its life, and what the control plane hears of it.

use maille_pki::{Authority, fingerprint};
use maille_proto::flows::ProxyState;

use super::super::channel::connect;
use super::super::clock::Reading;
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
    assert!(
        first.renewal_error.is_empty() && first.revocations.is_empty() && first.clock_ms > 0,
        "{first:?}"
    );
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

/// Clocks that tests set.
#[derive(Debug)]
struct TestClocks {
    /// Seconds that the time of day is ahead of the machine's, and those that have passed besides.
    set: parking_lot::Mutex<(i64, u64)>,
}

impl TestClocks {
    fn ahead_by(seconds: i64) -> Arc<Self> {
        Arc::new(Self { set: parking_lot::Mutex::new((seconds, 0)) })
    }

    fn set_by(&self, seconds: i64) {
        self.set.lock().0 += seconds;
    }

    fn sleep(&self, seconds: u32) {
        let mut set = self.set.lock();
        *set = (set.0 + i64::from(seconds), set.1 + u64::from(seconds));
    }
}

impl Clocks for TestClocks {
    fn read(&self) -> Reading {
        let (ahead, passed) = *self.set.lock();
        let Reading { wall, elapsed } = SystemClocks.read();
        let by = Duration::from_secs(ahead.unsigned_abs());
        let wall = if ahead < 0 { wall - by } else { wall + by };
        Reading { wall, elapsed: elapsed + Duration::from_secs(passed) }
    }
}

impl Lab {
    async fn issued(&self, what: &str, count: usize) {
        eventually(what, || self.script.issued.lock().len() >= count).await;
    }

    /// The last certificate that was issued is the one in use.
    async fn uses_the_last(&self, shared: &Shared) {
        eventually("the last certificate is in use", || {
            let serial = shared.tls.current().svid().serial().to_owned();
            self.script.issued.lock().last() == Some(&serial)
        })
        .await;
    }
}

const HOUR: i64 = 3600;

#[tokio::test]
async fn a_clock_that_is_set_or_a_long_sleep_leads_to_a_fresh_certificate() {
    let lab = Lab::new().await;
    let clocks = TestClocks::ahead_by(0);
    let (agent, _) = start_by(lab.options(), clocks.clone());
    let shared = shared(&agent).await;
    for (count, what) in [(2, "set forward"), (3, "set back"), (4, "slept")] {
        // The one before is being looked after.
        tokio::time::sleep(Duration::from_millis(50)).await;
        match what {
            "set forward" => clocks.set_by(5 * HOUR),
            "set back" => clocks.set_by(-3 * HOUR),
            _ => clocks.sleep(13 * 3600),
        }
        // Another token is there by now.
        let token = format!("token after it was {what}");
        lab.script.tokens.lock().clear();
        lab.script.tokens.lock().insert(token.clone(), identity("cart"));
        std::fs::write(lab.file("token"), token).expect("token written");
        lab.issued(what, count).await;
        lab.uses_the_last(&shared).await;
    }
}

#[tokio::test]
async fn a_wrong_clock_is_measured_and_does_not_keep_certificates_from_being_renewed() {
    let lab = Lab::new().await;
    *lab.script.ttl.lock() = Some(Duration::from_secs(24 * 3600));
    // By this clock, every certificate has expired when it comes.
    let clocks = TestClocks::ahead_by(30 * HOUR + 600);
    let (agent, telemetry) = start_by(lab.options(), clocks.clone());
    let shared = shared(&agent).await;
    lab.uses_the_last(&shared).await;
    let page = telemetry.render_prometheus();
    let skew =
        page.lines().find_map(|line| line.strip_prefix("maille_clock_skew_seconds{peer=\"control_plane\"} "));
    let skew: f64 = skew.and_then(|value| value.parse().ok()).expect("measured");
    assert!((skew - 108_600.0).abs() < 5.0, "{skew}");
    // It is not asked for again and again because of that.
    let before = lab.script.issued.lock().len();
    lab.told("that all is well", |state| state.renewal_error.is_empty()).await;
    lab.told("that all is well, seconds later", |state| state.clock_ms > first_clock(&lab) + 3000).await;
    assert_eq!(lab.script.issued.lock().len(), before);
    // But when half of its life has passed.
    clocks.sleep(12 * 3600 + 1800);
    lab.issued("the renewal", before + 1).await;
    lab.uses_the_last(&shared).await;
}

fn first_clock(lab: &Lab) -> u64 {
    lab.script.states.lock().first().map_or(u64::MAX, |state| state.clock_ms)
}

#[tokio::test]
async fn when_everything_has_expired_a_fresh_token_gets_a_fresh_certificate() {
    let lab = Lab::new().await;
    *lab.script.ttl.lock() = Some(Duration::from_secs(3));
    let (agent, telemetry) = lab.agent();
    let shared = shared(&agent).await;
    agent.readiness.met(Need::Listeners);
    lab.script.tokens.lock().clear();
    lab.told("why it is not renewed", |state| state.renewal_error.contains("request authenticate failure"))
        .await;
    let readiness = agent.servers.listening.readiness;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !get(readiness, "/healthz/ready").await.1.contains("expired") {
        assert!(Instant::now() < deadline, "the certificate never ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let failed = failures(&telemetry);
    eventually("it goes on asking", || failures(&telemetry) > failed).await;
    let before = lab.script.issued.lock().len();

    lab.script.tokens.lock().insert("token-of-tomorrow".to_owned(), identity("cart"));
    std::fs::write(lab.file("token"), "token-of-tomorrow").expect("token written");
    *lab.script.ttl.lock() = None;
    lab.issued("a fresh certificate", before + 1).await;
    lab.uses_the_last(&shared).await;
    assert_eq!(get(readiness, "/healthz/ready").await.0, 200);
    lab.told("that all is well", |state| {
        state.renewal_error.is_empty() && state.serial == shared.tls.current().svid().serial()
    })
    .await;
}

fn failures(telemetry: &Registry) -> u64 {
    let page = telemetry.render_prometheus();
    let count = page.lines().find_map(|line| line.strip_prefix("maille_certificate_failures_total "));
    count.and_then(|count| count.parse().ok()).expect("counted")
}

#[tokio::test]
async fn a_restart_with_an_expired_certificate_gets_a_fresh_one() {
    let lab = Lab::new().await;
    *lab.script.ttl.lock() = Some(Duration::from_secs(2));
    let ends = {
        let (agent, _) = lab.agent();
        shared(&agent).await.tls.current().svid().not_after()
    };
    assert!(lab.file("proxy/svid.pem").exists());
    eventually("it has expired", || std::time::SystemTime::now() > ends).await;
    *lab.script.ttl.lock() = None;
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    lab.uses_the_last(&shared).await;
    assert!(!shared.tls.current().svid().is_expired(std::time::SystemTime::now()));
}

#[tokio::test]
async fn another_signing_certificate_is_followed_soon_and_a_disagreeing_authority_not_hammered() {
    let mut lab = Lab::new().await;
    let next = Arc::new(other_authority());
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    lab.uses_the_last(&shared).await;
    let signer = fingerprint(&next.roots()[0]);
    lab.script.set(
        type_urls::TRUST_BUNDLE,
        "cluster.local",
        &bundle(&[&lab.script.authority, &next], signer.clone()),
    );
    // Another replica signs with the old one still.
    lab.issued("the first attempt", 2).await;
    let asked = Instant::now();
    lab.issued("another one", 4).await;
    let limit = 3 + asked.elapsed().as_secs() as usize * 2;
    let count = lab.script.issued.lock().len();
    assert!(count <= limit, "{count} certificates within {:?}", asked.elapsed());
    assert!(lab.last_state().is_some_and(|state| state.signer != signer));

    *lab.script.successor.lock() = Some(next);
    lab.control = None;
    eventually("it has ended", || std::net::TcpListener::bind(lab.address).is_ok()).await;
    lab.start_control().await;
    lab.told("the new signer", |state| state.signer == signer).await;
    // Renewed for nothing more.
    let count = lab.script.issued.lock().len();
    lab.uses_the_last(&shared).await;
    let clock = lab.last_state().expect("told").clock_ms;
    lab.told("the same, seconds later", |state| state.clock_ms > clock + 4000).await;
    assert_eq!(lab.script.issued.lock().len(), count);
}

/// Reference mtls 5.6.
#[tokio::test]
async fn a_change_of_roots_is_followed_by_one_renewal() {
    let lab = Lab::new().await;
    let own = fingerprint(&lab.script.authority.roots()[0]);
    lab.script.set(type_urls::TRUST_BUNDLE, "cluster.local", &bundle(&[&lab.script.authority], own.clone()));
    let (agent, _) = lab.agent();
    let _shared = shared(&agent).await;
    lab.told("the state", |_| true).await;
    assert_eq!(lab.script.issued.lock().len(), 1);
    let other = other_authority();
    lab.script.set(type_urls::TRUST_BUNDLE, "cluster.local", &bundle(&[&lab.script.authority, &other], own));
    lab.issued("the renewal", 2).await;
    let clock = lab.last_state().expect("told").clock_ms;
    lab.told("the same, seconds later", |state| state.clock_ms > clock + 4000).await;
    assert_eq!(lab.script.issued.lock().len(), 2);
}

#[tokio::test]
async fn a_control_plane_whose_certificate_seems_over_is_named_and_tried_on() {
    let mut lab = Lab::new().await;
    *lab.script.server_ttl.lock() = Duration::from_secs(1);
    lab.control = None;
    eventually("it has ended", || std::net::TcpListener::bind(lab.address).is_ok()).await;
    lab.start_control().await;
    let address = lab.address.to_string();
    let reason = loop {
        match connect(&address, Some(SERVER_NAME), &lab.file("root-cert.pem"), None).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => break error.to_string(),
        }
    };
    assert!(reason.contains("it expired at") && reason.contains("clock"), "{reason}");
    let (agent, telemetry) = lab.agent();
    eventually("the attempt fails", || failures(&telemetry) > 0).await;
    assert!(agent.shared.borrow().is_none());

    *lab.script.server_ttl.lock() = Duration::from_secs(3600);
    lab.control = None;
    eventually("it has ended", || std::net::TcpListener::bind(lab.address).is_ok()).await;
    lab.start_control().await;
    lab.uses_the_last(&shared(&agent).await).await;
}

/// Or connections that are open would be judged by the trust of now only when somebody next looks after them.
#[tokio::test]
async fn workers_hear_of_every_change_of_trust() {
    let lab = Lab::new().await;
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    let domain = TrustDomain::parse("other.example").expect("valid");
    let other = Authority::self_signed(&domain, std::time::SystemTime::now(), Duration::from_secs(3600))
        .expect("an authority");
    let theirs = wire::TrustBundle { trust_domain: domain.to_string(), ..bundle(&[&other], String::new()) };
    let is_trusted = || !shared.tls.current().trust().bundles.roots(&domain).is_empty();
    let mut heard = shared.snapshot.watch();
    heard.mark_unchanged();
    lab.script.set(type_urls::TRUST_BUNDLE, "other.example", &theirs);
    eventually("they are trusted", is_trusted).await;
    assert!(heard.has_changed().expect("open"), "nobody is told");
    heard.mark_unchanged();
    lab.script.remove(type_urls::TRUST_BUNDLE, "other.example");
    eventually("they are trusted no more", || !is_trusted()).await;
    assert!(heard.has_changed().expect("open"), "nobody is told");
}
