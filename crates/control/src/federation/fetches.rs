//! Whether anybody fetches the mesh's bundle, and so has to learn of new roots before they sign.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::endpoint::REFRESH_HINT;
use crate::proxies::millis;

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

    /// When the last one was, Unix milliseconds, if there was any.
    pub(crate) fn last_ms(&self) -> Option<u64> {
        Some(self.last_ms.load(Ordering::Relaxed)).filter(|last| *last > 0)
    }
}

/// What a rotation calls those who fetch the bundle, where it names whom it waits for.
pub(crate) const OTHERS: &str = "other-meshes";

/// Why roots that are told since `since_ms` must not sign yet: somebody fetches the bundle, last at `last_ms`. `None`: they
/// may.
pub(crate) fn notice_owed(last_ms: Option<u64>, since_ms: u64, now_ms: u64) -> Option<String> {
    let of = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let is_recent = last_ms?.saturating_add(of(RECENT)) > now_ms;
    let left = since_ms.saturating_add(of(NOTICE)).saturating_sub(now_ms).div_ceil(1000);
    (is_recent && left > 0).then(|| {
        let notice = NOTICE.as_secs();
        format!(
            "they fetch the trust bundle (port 15016) and get {notice} seconds to learn of the new roots, of which {left} are left"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fetches_the_bundle_gets_notice_of_new_roots() {
        let (since, notice) = (10_000_000, 180_000);
        assert_eq!(notice_owed(None, since, since), None, "nobody fetches it");
        assert_eq!(notice_owed(Some(since - 3_600_000), since, since), None, "nobody does any more");
        let last = Some(since - 1_800_000);
        assert!(notice_owed(last, since, since).is_some_and(|why| why.contains("180 are left")));
        assert!(notice_owed(last, since, since + notice - 1).is_some_and(|why| why.contains("1 are left")));
        assert_eq!(notice_owed(last, since, since + notice), None);
    }

    #[test]
    fn the_last_fetch_is_remembered() {
        let fetches = Fetches::default();
        assert_eq!((fetches.count(), fetches.last_ms()), (0, None));
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        fetches.note(at(2000));
        fetches.note(at(1000));
        assert_eq!(
            (fetches.count(), fetches.last_ms()),
            (2, Some(2000)),
            "a clock that steps back takes nothing"
        );
    }
}
