//! A rotation as people read it.

use std::time::SystemTime;

use maille_control::authority::{CaStatus, CertificateStatus, Kind, Phase, RotationStatus, Status, Waiting};

use super::asking::Asked;
use super::described::{distance, moment, of_millis, short};

/// Proxies that are named one by one.
const NAMED: usize = 5;

/// What the control plane says of the authority: of several Pods the one that rotates, which is the leader.
pub(crate) async fn status(asked: &Asked) -> anyhow::Result<Status> {
    let mut best: Option<Status> = None;
    let mut failed = None;
    for pod in asked.control_planes().await? {
        match asked.monitoring::<Status>(&pod, "/ca").await {
            Ok(status) => {
                let rank = |status: &Status| (status.rotation.is_some(), status.since_ms);
                if best.as_ref().is_none_or(|best| rank(best) < rank(&status)) {
                    best = Some(status);
                }
            }
            Err(error) => failed = Some(error),
        }
    }
    match (best, failed) {
        (Some(status), _) => Ok(status),
        (None, Some(error)) => Err(error),
        (None, None) => anyhow::bail!("there is no control plane"),
    }
}

/// Whether what signs is a root itself, and so the mesh's own; else it is below the root of somebody's CA.
pub(crate) fn is_self_signed(authority: &CaStatus) -> bool {
    authority.roots.iter().any(|root| root.fingerprint == authority.signer.fingerprint)
}

/// A phase, as a step of what is done.
pub(crate) fn step(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "no rotation is under way",
        Phase::Distributing => {
            "1 of 3, distributing: every proxy is to trust the new roots beside the old ones"
        }
        Phase::Signing => "2 of 3, signing: every proxy is to have a certificate by the new authority",
        Phase::Withdrawing => "3 of 3, withdrawing: every proxy is to forget the old roots",
    }
}

/// What is replaced.
pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Root => "the root",
        Kind::Intermediate => "the signing certificate; the roots stay",
        Kind::Renewal => "the root's certificate; its key stays",
        Kind::Trust => "roots that are trusted beside the one that signs",
    }
}

/// `11 of 12 proxies confirmed`.
pub(crate) fn progress(rotation: &RotationStatus) -> String {
    format!("{} of {} proxies confirmed", rotation.confirmed, rotation.live)
}

/// A line for each proxy that is waited for, and one for those that are too many to name.
pub(crate) fn waiting(waiting: &[Waiting], count: usize, now: SystemTime) -> Vec<String> {
    let mut lines: Vec<String> = waiting.iter().take(NAMED).map(|one| proxy(one, now)).collect();
    if count > lines.len() {
        lines.push(format!("and {} more; all are in `maille ca status -o json`", count - lines.len()));
    }
    lines
}

fn proxy(waiting: &Waiting, now: SystemTime) -> String {
    if waiting.uid.is_empty() {
        return format!("{}: {}", waiting.name, waiting.why);
    }
    let counts = match waiting.not_after_ms.and_then(of_millis) {
        Some(end) => format!("its certificate ends {}", distance(end, now)),
        None => "when its certificate ends is not known".to_owned(),
    };
    format!("{}: {} ({counts})", waiting.name, waiting.why)
}

/// What to do about proxies that are waited for.
pub(crate) fn advice(rotation: &RotationStatus) -> Option<String> {
    let first = rotation.waiting.iter().find(|waiting| !waiting.uid.is_empty())?;
    let (namespace, pod) = first.name.split_once('/').unwrap_or(("", &first.name));
    Some(format!(
        "it goes on by itself as soon as they confirm, their Pods are gone or their certificates have ended; see what is \
         wrong (`maille logs {pod} -n {namespace} -c istio-proxy`), replace the Pod (`kubectl delete pod {pod} -n \
         {namespace}`), go on without it at the price of its connections (`maille ca rotate --proceed --past {}`), or turn \
         round (`maille ca rotate --rollback`)",
        first.name
    ))
}

/// `O=cluster.local 2b1c9f0e77aa0012, ends 2036-11-20T06:12:00Z (in 3649 days)`.
pub(crate) fn certificate(certificate: &CertificateStatus, now: SystemTime) -> String {
    let subject = match certificate.subject.as_str() {
        "" => String::new(),
        subject => format!("{subject} "),
    };
    let ends = match of_millis(certificate.not_after_ms) {
        Some(end) => format!(", ends {} ({})", moment(end), distance(end, now)),
        None => String::new(),
    };
    format!("{subject}{}{ends}", short(&certificate.fingerprint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_waited_for_are_named_and_the_rest_counted() {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        let one = |name: &str, end: Option<u64>| Waiting {
            name: name.to_owned(),
            uid: "1".to_owned(),
            why: "it does not verify by the new roots yet".to_owned(),
            not_after_ms: end,
        };
        let lines = waiting(&[one("shop/cart-1", Some(8_200_000)), one("shop/cart-2", None)], 2, now);
        assert_eq!(
            lines[0],
            "shop/cart-1: it does not verify by the new roots yet (its certificate ends in 2 h)"
        );
        assert!(lines[1].contains("not known"), "{lines:?}");
        let others = Waiting { uid: String::new(), ..one("other-meshes", None) };
        let lines = waiting(&[others], 1, now);
        assert_eq!(
            lines,
            ["other-meshes: it does not verify by the new roots yet"],
            "they have no certificate"
        );
        let many: Vec<Waiting> = (0..7).map(|n| one(&format!("shop/cart-{n}"), None)).collect();
        let lines = waiting(&many, 1200, now);
        assert_eq!(lines.len(), NAMED + 1);
        assert!(lines[NAMED].starts_with("and 1195 more"), "{lines:?}");
    }
}
