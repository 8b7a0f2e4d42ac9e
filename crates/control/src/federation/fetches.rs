//! Whether anybody fetches the mesh's bundle, and so has to learn of new roots before they sign.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::endpoint::REFRESH_HINT;
use crate::proxies::millis;
use crate::server::ControlPlane;

/// Who has fetched within this time may do so again. Istio, which passes over what the bundle says, looks every half hour.
const RECENT: Duration = Duration::from_secs(3600);
/// How long new roots are told before they sign: "the recommended advance time is 3-5 times the bundle's
/// `spiffe_refresh_hint`" (SPIFFE Federation section 4.1), so that a fetch may fail.
pub(crate) const NOTICE: Duration = Duration::from_secs(3 * REFRESH_HINT.as_secs());

/// Answers of the bundle endpoint.
#[derive(Debug, Default)]
pub(crate) struct Fetches {
    count: AtomicU64,
    /// Unix milliseconds; 0: never.
    last_ms: AtomicU64,
}

impl Fetches {
    pub(crate) fn note(&self, now: SystemTime) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.last_ms.fetch_max(millis(now), Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there was one lately.
    fn are_recent(&self, now_ms: u64) -> bool {
        let last = self.last_ms.load(Ordering::Relaxed);
        last > 0 && last.saturating_add(of(RECENT)) > now_ms
    }
}

fn of(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl ControlPlane {
    /// Whether other meshes live by the bundle that this one tells: somebody has fetched it lately, or this mesh believes
    /// others, which mostly is mutual. Who asked another control plane, or one before a restart, is not known; the
    /// configuration is.
    pub(crate) fn bundle_is_read(&self) -> bool {
        let snapshot = self.hub.snapshot();
        let own = snapshot.world.config();
        let is_own = |name: &str| {
            std::iter::once(&own.trust_domain)
                .chain(&own.trust_domain_aliases)
                .any(|own| own.as_str() == name)
        };
        self.bundle_fetches.are_recent(millis(self.clock.now()))
            || snapshot.world.trust_domains().into_iter().any(|domain| !is_own(domain))
    }
}

/// What a rotation calls those who read the bundle, where it names whom it waits for.
pub const OTHERS: &str = "other-meshes";

/// Why roots that are told since `since_ms` must not sign yet where the bundle is read. `None`: they may.
pub(crate) fn notice_owed(since_ms: u64, now_ms: u64) -> Option<String> {
    let left = since_ms.saturating_add(of(NOTICE)).saturating_sub(now_ms).div_ceil(1000);
    (left > 0).then(|| {
        let notice = NOTICE.as_secs();
        format!(
            "who reads the trust bundle (port 15016) gets {notice} seconds to learn of the new roots, of which {left} are left"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fetches_the_bundle_gets_notice_of_new_roots() {
        let (since, notice) = (10_000_000, 180_000);
        assert!(notice_owed(since, since).is_some_and(|why| why.contains("180 are left")));
        assert!(notice_owed(since, since + notice - 1).is_some_and(|why| why.contains("1 are left")));
        assert_eq!(notice_owed(since, since + notice), None);
    }

    #[test]
    fn the_last_fetch_is_remembered() {
        let fetches = Fetches::default();
        assert!(fetches.count() == 0 && !fetches.are_recent(1));
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        fetches.note(at(2000));
        fetches.note(at(1000));
        assert_eq!(fetches.count(), 2);
        assert!(fetches.are_recent(2000 + 3_599_999), "a clock that steps back takes nothing");
        assert!(!fetches.are_recent(2000 + 3_600_000), "nobody fetches it any more");
    }
}
