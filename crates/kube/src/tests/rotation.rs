//! Rotations as their Secrets tell them, over control planes that come and go.

use std::time::SystemTime;

use k8s_openapi::ByteString;
use maille_control::authority::{
    Action, Offer, Outcome, Phase, REQUEST_ANNOTATION, Request, SECRET, SECRET_TYPE, Status,
};
use maille_pki::certificates_from_pem;

use super::*;

pub(super) const SYSTEM: &str = "istio-system";

impl Running {
    pub(super) async fn authority(&self) -> Option<Status> {
        let (_, text) = self.http("/ca").await;
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body).ok()
    }

    /// Waits for a phase: a control plane that was killed is waited for until it has been silent for long enough to be gone.
    pub(super) async fn at(&self, phase: Phase) -> Status {
        for _ in 0..4000 {
            if let Some(status) = self.authority().await.filter(|status| status.phase == phase) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("within forty seconds: {}; {:#?}", phase.name(), self.authority().await);
    }

    /// Asks as a person's tool does, and waits for the answer.
    pub(super) async fn ask(&self, request: &Request) -> (Outcome, String) {
        let text = serde_json::to_string(request).expect("JSON");
        let mut secret = self.api.get("secrets", SYSTEM, SECRET).unwrap_or_else(
            || json!({ "metadata": { "namespace": SYSTEM, "name": SECRET }, "type": SECRET_TYPE }),
        );
        secret["metadata"]["annotations"][REQUEST_ANNOTATION] = json!(text);
        self.api.put("secrets", secret);
        let answer = eventually("an answer", async || {
            self.authority().await?.answer.filter(|answer| answer.id == request.id)
        })
        .await;
        (answer.outcome, answer.message)
    }

    pub(super) async fn end(self) -> FakeApi {
        self.stop.send_replace(true);
        self.task.await.expect("joins").expect("fine");
        self.api
    }
}

pub(super) fn request(id: &str, action: Action) -> Request {
    let to = Offer::Generated;
    Request { id: id.to_owned(), action, to, dry_run: false, phase: None, past: Vec::new() }
}

pub(super) fn root(seconds_ago: u64, life: u64) -> Authority {
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let made = SystemTime::now() - Duration::from_secs(seconds_ago);
    Authority::self_signed(&domain, made, Duration::from_secs(life)).expect("a root")
}

pub(super) fn secret_of(name: &str, authority: &Authority) -> Value {
    let mut secret = json!({ "metadata": { "namespace": SYSTEM, "name": name } });
    for (key, text) in authority.to_secret() {
        secret["data"][key] = json!(ByteString(text.as_bytes().to_vec()));
    }
    secret
}

pub(super) fn entry(api: &FakeApi, secret: &str, key: &str) -> Option<String> {
    let value = api.get("secrets", SYSTEM, secret)?["data"].get(key)?.clone();
    let bytes: ByteString = serde_json::from_value(value).ok()?;
    String::from_utf8(bytes.0).ok()
}

/// Whether a text is in any entry of any Secret.
fn is_kept(api: &FakeApi, text: &str) -> bool {
    let in_data = |secret: &Value| {
        let data = secret["data"].as_object().cloned().unwrap_or_default();
        data.values().any(|value| {
            let bytes: ByteString = serde_json::from_value(value.clone()).expect("bytes");
            String::from_utf8_lossy(&bytes.0).contains(text.trim())
        })
    };
    api.all("secrets").iter().any(in_data)
}

async fn bundle_has(api: &FakeApi, what: &str, roots: &[&str]) {
    eventually(what, async || {
        let held = bundle_of(api, "shop")?;
        let count = certificates_from_pem("bundle", &held).ok()?.len();
        (count == roots.len() && roots.iter().all(|root| held.contains(root.trim()))).then_some(())
    })
    .await;
}

/// A mesh with a proxy that never says anything, so that each phase waits until it is told not to.
pub(super) fn mesh() -> FakeApi {
    let api = FakeApi::new();
    api.put("namespaces", namespace("shop"));
    api.put("pods", pod("cart-1", "10.0.0.1"));
    api
}

#[tokio::test]
async fn a_rotation_goes_on_after_a_restart_in_each_phase_and_leaves_no_old_key() {
    let api = mesh();
    let mut running = start(api.clone()).await;
    running.at(Phase::Idle).await;
    let old_key = entry(&api, SELF_SIGNED, "ca-key.pem").expect("a key");
    let old_root = entry(&api, SELF_SIGNED, "root-cert.pem").expect("a root");
    bundle_has(&api, "the old root", &[&old_root]).await;
    running.ready().await;
    let (outcome, message) = running.ask(&request("one", Action::Rotate)).await;
    assert_eq!(outcome, Outcome::Accepted, "{message}");
    let (outcome, message) = running.ask(&request("two", Action::Rotate)).await;
    assert_eq!(outcome, Outcome::Refused, "{message}");
    let new_root = entry(&api, SECRET, "target-root-cert.pem").expect("stored before it is distributed");
    let new_key = entry(&api, SECRET, "target-ca-key.pem").expect("with its key");
    let signer = |root: &str| {
        let ders = certificates_from_pem("root", root).expect("PEM");
        maille_pki::fingerprint(&ders[0])
    };
    for (phase, roots, signs) in [
        (Phase::Distributing, vec![&old_root, &new_root], &old_root),
        (Phase::Signing, vec![&old_root, &new_root], &new_root),
        (Phase::Withdrawing, vec![&new_root], &new_root),
    ] {
        for restarted in [false, true] {
            if restarted {
                running.end().await;
                running = start(api.clone()).await;
            }
            let status = running.at(phase).await;
            assert_eq!(
                status.authority.signer.fingerprint,
                signer(signs),
                "{phase:?}, restarted: {restarted}"
            );
            let roots: Vec<&str> = roots.iter().map(|root| root.as_str()).collect();
            bundle_has(&api, phase.name(), &roots).await;
            let waiting = eventually("the one that is waited for", async || {
                running.authority().await?.rotation?.waiting.into_iter().next()
            })
            .await;
            assert_eq!(waiting.name, "shop/cart-1");
            assert!(waiting.why.contains("has not said"), "{waiting:?}");
            assert!(is_kept(&api, &old_key), "there is a way back");
        }
        running.ready().await;
        let leave = Request {
            phase: Some(phase),
            past: vec!["shop/cart-1".to_owned()],
            ..request(phase.name(), Action::Proceed)
        };
        let (outcome, message) = running.ask(&leave).await;
        assert_eq!(outcome, Outcome::Accepted, "{message}");
    }
    let status = running.at(Phase::Idle).await;
    let last = status.last.expect("ended");
    assert_eq!((last.id.as_str(), last.rolled_back), ("one", false));
    assert_eq!(last.waived, ["shop/cart-1"]);
    assert!(!is_kept(&api, &old_key), "the old key is wiped");
    assert!(!is_kept(&api, &old_root), "and so is the old root");
    assert_eq!(entry(&api, SELF_SIGNED, "ca-key.pem").as_ref(), Some(&new_key));
    assert_eq!(
        api.get("secrets", SYSTEM, SECRET).expect("there")["metadata"]["annotations"][REQUEST_ANNOTATION],
        Value::Null
    );
    // And another start is of the new one.
    running.end().await;
    let running = start(api.clone()).await;
    assert_eq!(running.at(Phase::Idle).await.authority.signer.fingerprint, signer(&new_root));
}

/// CA-18, also while nobody is there to see it.
#[tokio::test]
async fn a_ca_that_is_replaced_while_the_control_plane_is_away_is_rotated_to_and_back() {
    let api = mesh();
    let (old, new) = (root(0, 7200), root(0, 7200));
    api.put("secrets", secret_of(PLUGGED_IN, &old));
    let running = start(api.clone()).await;
    eventually("what is in force is kept", async || entry(&api, SECRET, "current-ca-key.pem")).await;
    running.end().await;
    api.put("secrets", secret_of(PLUGGED_IN, &new));
    let running = start(api.clone()).await;
    let status = running.at(Phase::Distributing).await;
    assert_eq!(status.authority.signer.fingerprint, old.signer(), "the old one goes on signing");
    assert_eq!(status.rotation.expect("under way").cause, "Secret cacerts was replaced");
    bundle_has(&api, "both", &[&old.roots_pem(), &new.roots_pem()]).await;
    running.ready().await;
    let (outcome, message) = running.ask(&request("back", Action::Rollback)).await;
    assert_eq!(outcome, Outcome::Accepted, "{message}");
    bundle_has(&api, "the old one alone", &[&old.roots_pem()]).await;
    running.ask(&request("on", Action::Proceed)).await;
    let status = running.at(Phase::Idle).await;
    assert!(status.problems.iter().any(|p| p.contains("rolled back")), "{status:?}");
    assert_eq!(entry(&api, PLUGGED_IN, "ca-cert.pem"), Some(new.cert_pem()), "what is theirs is let be");
}

/// CA-20, with a control plane that runs.
#[tokio::test]
async fn a_bad_replacement_changes_nothing_and_is_named() {
    let api = mesh();
    let old = root(0, 7200);
    api.put("secrets", secret_of(PLUGGED_IN, &old));
    let running = start(api.clone()).await;
    running.at(Phase::Idle).await;
    let new = root(0, 7200);
    let mut mismatch = secret_of(PLUGGED_IN, &new);
    mismatch["data"]["ca-key.pem"] = json!(ByteString(old.key_pem().as_bytes().to_vec()));
    let mut incomplete = secret_of(PLUGGED_IN, &new);
    incomplete["data"].as_object_mut().expect("entries").remove("root-cert.pem");
    let expired = secret_of(PLUGGED_IN, &root(7200, 3600));
    for (bad, says) in [(mismatch, "key"), (incomplete, "root-cert.pem"), (expired, "has expired")] {
        api.put("secrets", bad);
        let problem = eventually(says, async || {
            running.authority().await?.problems.into_iter().find(|problem| problem.contains(says))
        })
        .await;
        assert!(problem.starts_with("Secret cacerts cannot be used, and changes nothing"), "{problem}");
        let status = running.authority().await.expect("status");
        assert_eq!((status.phase, status.authority.signer.fingerprint.as_str()), (Phase::Idle, old.signer()));
        assert_eq!(running.metric("maille_ca_problems ").await, Some(1));
    }
    api.put("secrets", secret_of(PLUGGED_IN, &new));
    running.at(Phase::Distributing).await;
}

/// CA-16: the same key, another certificate, through the same gate.
#[tokio::test]
async fn a_root_near_its_end_is_renewed_with_its_own_key() {
    let api = FakeApi::new();
    api.put("namespaces", namespace("shop"));
    let old = root(3400, 3600);
    api.put("secrets", secret_of(SELF_SIGNED, &old));
    let running = start(api.clone()).await;
    let status = eventually("renewed", async || {
        let status = running.authority().await?;
        (status.phase == Phase::Idle && status.authority.signer.fingerprint != old.signer()).then_some(status)
    })
    .await;
    assert_eq!(status.last.expect("ended").kind, maille_control::authority::Kind::Renewal);
    assert_eq!(entry(&api, SELF_SIGNED, "ca-key.pem").as_deref(), Some(old.key_pem().as_str()));
    assert_ne!(entry(&api, SELF_SIGNED, "root-cert.pem"), Some(old.roots_pem()));
    let signer = &status.authority.signer;
    let life = (signer.not_after_ms - signer.not_before_ms) / 1000;
    assert!((3600..3600 + 240).contains(&life), "as long as the old one: {life}");
}

#[tokio::test]
async fn of_two_control_planes_one_acts_and_the_other_follows() {
    let api = mesh();
    let (one, other) = (start(api.clone()).await, start(api.clone()).await);
    for running in [&one, &other] {
        running.ready().await;
    }
    let before = one.at(Phase::Idle).await.authority.signer.fingerprint;
    assert_eq!(other.at(Phase::Idle).await.authority.signer.fingerprint, before);
    one.ask(&request("one", Action::Rotate)).await;
    let mut target = None;
    for phase in [Phase::Distributing, Phase::Signing, Phase::Withdrawing] {
        let statuses = [one.at(phase).await, other.at(phase).await];
        for status in statuses {
            let to = status.rotation.expect("under way").to.signer.fingerprint;
            assert_eq!(*target.get_or_insert_with(|| to.clone()), to, "both mean the same");
        }
        // Whichever of them is asked.
        other.ask(&Request { phase: Some(phase), ..request(phase.name(), Action::Proceed) }).await;
    }
    for running in [&one, &other] {
        assert_eq!(Some(running.at(Phase::Idle).await.authority.signer.fingerprint), target);
    }
}

/// Each proxy reports to one control plane only: what the others have heard counts, and they are waited for.
#[tokio::test]
async fn what_proxies_said_to_another_control_plane_counts() {
    const SHARED: &str = "istio-ca-rotation-proxies";
    let api = mesh();
    let running = start(api.clone()).await;
    running.ready().await;
    let millis = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis();
    // Another one that writes what it has heard, as often as it should.
    let (names, rows) =
        (Arc::new(std::sync::Mutex::new(Vec::<String>::new())), Arc::new(std::sync::Mutex::new(json!({}))));
    let tell = |ms: u128| {
        let (names, mut rows) = (names.lock().expect("lock").clone(), rows.lock().expect("lock").clone());
        for row in rows.as_object_mut().expect("rows").values_mut() {
            row["at"] = json!(ms);
        }
        let sheet = json!({ "at_ms": ms, "under_way": true, "names": names, "rows": rows });
        let mut map = api.get("configmaps", SYSTEM, SHARED).expect("written at the start");
        map["data"]["another"] = json!(sheet.to_string());
        api.put("configmaps", map);
    };
    eventually("it shows that it is there", async || api.get("configmaps", SYSTEM, SHARED)).await;
    tell(millis());
    running.ask(&request("one", Action::Rotate)).await;
    let rotation = running.at(Phase::Distributing).await.rotation.expect("under way");
    let (old, new) = (rotation.from.signer.fingerprint, rotation.to.signer.fingerprint);
    *names.lock().expect("lock") = vec![old, new];
    for (signer, roots, then) in
        [(0, vec![0, 1], Phase::Signing), (1, vec![0, 1], Phase::Withdrawing), (1, vec![1], Phase::Idle)]
    {
        let row =
            json!({ "at": 0, "ends": u64::MAX / 2, "signer": signer, "roots": roots, "control": [0, 1] });
        *rows.lock().expect("lock") = json!({ "cart-1": row });
        let status = eventually(then.name(), async || {
            tell(millis());
            running.authority().await.filter(|status| status.phase == then)
        })
        .await;
        assert!(status.last.is_none_or(|last| last.waived.is_empty()));
    }
}

#[tokio::test]
async fn material_that_is_offered_is_taken_or_refused_and_wiped() {
    let api = FakeApi::new();
    api.put("namespaces", namespace("shop"));
    let running = start(api.clone()).await;
    running.ready().await;
    eventually("stored", async || entry(&api, SECRET, "state.json")).await;
    let new = root(0, 7200);
    let offer = |authority: &Authority, with_key: bool| {
        let mut secret = api.get("secrets", SYSTEM, SECRET).expect("there");
        for (key, text) in authority.to_secret() {
            if with_key || key != "ca-key.pem" {
                secret["data"][format!("next-{key}")] = json!(ByteString(text.as_bytes().to_vec()));
            }
        }
        api.put("secrets", secret);
    };
    let stored = |id: &str, dry_run| Request { to: Offer::Stored, dry_run, ..request(id, Action::Rotate) };
    offer(&new, false);
    let (outcome, message) = running.ask(&stored("one", false)).await;
    assert_eq!(outcome, Outcome::Refused, "{message}");
    assert!(message.contains("ca-key.pem"), "{message}");
    offer(&new, true);
    let (outcome, message) = running.ask(&stored("two", true)).await;
    assert_eq!(outcome, Outcome::Answered, "{message}");
    assert!(!is_kept(&api, &new.key_pem()), "a question leaves no key behind");
    let plan = running.authority().await.and_then(|s| s.answer?.plan).expect("a plan");
    assert_eq!(plan.to.signer.fingerprint, new.signer());
    offer(&new, true);
    let (outcome, message) = running.ask(&stored("three", false)).await;
    assert_eq!(outcome, Outcome::Accepted, "{message}");
    // Nobody is there to be waited for.
    let status = running.at(Phase::Idle).await;
    assert_eq!(status.last.expect("ended").id, "three");
    assert_eq!(entry(&api, SELF_SIGNED, "ca-cert.pem"), Some(new.cert_pem()));
    assert_eq!(entry(&api, SECRET, "next-ca-key.pem"), None);
    // Something that is no request is answered, too.
    let mut secret = api.get("secrets", SYSTEM, SECRET).expect("there");
    secret["metadata"]["annotations"][REQUEST_ANNOTATION] = json!(r#"{"id":"four","action":"explode"}"#);
    api.put("secrets", secret);
    let answer = eventually("an answer", async || {
        running.authority().await?.answer.filter(|answer| answer.id == "four")
    })
    .await;
    assert_eq!(answer.outcome, Outcome::Refused);
    assert!(answer.message.contains("explode"), "{answer:?}");
}
