//! Outlier detection: an endpoint that fails again and again is left out for a while (Envoy 1.40
//! `outlier_detection_impl.cc`, as Istio sets it up: consecutive failures, no success rates).
//!
//! What is counted is shared by all workers, as in Envoy, since a proxy with four workers must not need four times the
//! failures: a few atomics per endpoint, and only for services whose rule asks for it. A lock is taken when a threshold is
//! reached, never on the way of a request that goes well. Nothing ticks: an ejection ends by the clock of whoever looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tracing::{info, warn};

use super::clock::now_ms;
use crate::facts::MAX_EJECTION;
use crate::snapshot::OutlierDetection;

/// How an attempt at one endpoint went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered so.
    Answered(u16),
    /// An opaque connection was opened.
    Connected,
    /// It could not be connected to, or went away without an answer.
    Lost,
}

/// What one endpoint has done lately.
#[derive(Debug, Default)]
pub(crate) struct Health {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// 0 if it never was.
    ejected_until_ms: AtomicU64,
    /// Ejections in a row.
    times: AtomicU32,
    /// When it was first seen.
    pub(super) since_ms: u64,
}

impl Health {
    pub(super) fn new(since_ms: u64) -> Self {
        Self { since_ms, ..Self::default() }
    }

    pub(super) fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Relaxed) > now_ms
    }
}

/// The endpoints of one service port, watched.
#[derive(Debug)]
pub(crate) struct Watch {
    rule: OutlierDetection,
    /// For the log: host and port.
    name: Arc<str>,
    members: Vec<Arc<Health>>,
    /// Until when any of them is ejected; 0: none is. Outlives changes of endpoints.
    until_ms: Arc<AtomicU64>,
    ejecting: Mutex<()>,
}

impl Watch {
    pub(super) fn new(
        rule: OutlierDetection,
        name: Arc<str>,
        members: Vec<Arc<Health>>,
        until_ms: Arc<AtomicU64>,
    ) -> Self {
        Self { rule, name, members, until_ms, ejecting: Mutex::new(()) }
    }

    /// The time by which endpoints are judged, if some are to be left out.
    pub(super) fn looks_at(&self) -> Option<u64> {
        let until = self.until_ms.load(Relaxed);
        if until == 0 {
            return None;
        }
        let now = now_ms();
        if now >= until {
            // Whoever ejected another one meanwhile has written another value.
            let _ = self.until_ms.compare_exchange(until, 0, Relaxed, Relaxed);
            return None;
        }
        let least = self.rule.min_health_percent as usize;
        let healthy = self.members.iter().filter(|member| !member.is_ejected(now)).count();
        // With too few left, the load of all would fell those, too (Envoy's panic).
        let is_panic = least > 0 && healthy * 100 < least * self.members.len();
        (!is_panic).then_some(now)
    }

    /// Takes note of an attempt at `member`, which is called `name` in the log.
    pub(super) fn note(&self, member: &Health, outcome: Outcome, name: &dyn std::fmt::Display) {
        let rule = &self.rule;
        let reached = |count: &AtomicU32, threshold: Option<u32>| {
            let now = count.fetch_add(1, Relaxed).saturating_add(1);
            threshold.is_some_and(|threshold| now >= threshold)
        };
        let clear = |count: &AtomicU32| {
            // A store makes the line this core's; most of the time there is nothing to clear.
            if count.load(Relaxed) != 0 {
                count.store(0, Relaxed);
            }
        };
        let why = match outcome {
            Outcome::Lost if rule.splits_local => {
                reached(&member.consecutive_local, rule.consecutive_local).then_some("could not be reached")
            }
            // Not told apart: a lost connection counts as an answer 503.
            Outcome::Lost | Outcome::Answered(502..=504) => {
                clear_if(rule.splits_local, || clear(&member.consecutive_local));
                let gateway = reached(&member.consecutive_gateway, rule.consecutive_gateway);
                let any = reached(&member.consecutive_5xx, rule.consecutive_5xx);
                (gateway || any).then_some("failed or answered 502, 503 or 504")
            }
            Outcome::Answered(500..) => {
                clear_if(rule.splits_local, || clear(&member.consecutive_local));
                clear(&member.consecutive_gateway);
                reached(&member.consecutive_5xx, rule.consecutive_5xx)
                    .then_some("answered with server errors")
            }
            Outcome::Connected if rule.splits_local => {
                clear(&member.consecutive_local);
                None
            }
            Outcome::Answered(_) | Outcome::Connected => {
                clear(&member.consecutive_local);
                clear(&member.consecutive_gateway);
                clear(&member.consecutive_5xx);
                None
            }
        };
        if let Some(why) = why {
            self.eject(member, why, name, now_ms());
        }
    }

    fn eject(&self, member: &Health, why: &str, name: &dyn std::fmt::Display, now: u64) {
        let _one_at_a_time = self.ejecting.lock();
        if member.is_ejected(now) {
            // Requests that were under way when it was ejected.
            return;
        }
        let ejected = self.members.iter().filter(|other| other.is_ejected(now)).count() + 1;
        let allowed = self.rule.max_ejection_percent as usize;
        // One may always be left out (`always_eject_one_host`), or two endpoints could never lose one.
        if ejected > 1 && ejected * 100 > allowed * self.members.len() {
            return;
        }
        // Each interval without an ejection makes the next one shorter again.
        let ended = member.ejected_until_ms.load(Relaxed);
        let interval = u64::try_from(self.rule.interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let forgiven = u32::try_from(now.saturating_sub(ended) / interval).unwrap_or(u32::MAX);
        let times = member.times.load(Relaxed).saturating_sub(forgiven).saturating_add(1);
        let longest = MAX_EJECTION.max(self.rule.base_ejection);
        let length = self.rule.base_ejection.saturating_mul(times).min(longest);
        let until = now.saturating_add(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
        if self.rule.base_ejection.saturating_mul(times) < longest.saturating_add(self.rule.base_ejection) {
            member.times.store(times, Relaxed);
        }
        // So that few new errors do not eject it again when it is back.
        for count in [&member.consecutive_5xx, &member.consecutive_gateway, &member.consecutive_local] {
            count.store(0, Relaxed);
        }
        member.ejected_until_ms.store(until, Relaxed);
        self.until_ms.fetch_max(until, Relaxed);
        let service = &self.name;
        warn!(endpoint = %name, service = %service, for_ms = length.as_millis() as u64, "endpoint left out: it {why}");
        if ejected == self.members.len() {
            info!(service = %service, "no endpoint is left");
        }
    }

    /// Until when `member` is left out, in milliseconds from now.
    pub(crate) fn ejected_for_ms(&self, member: usize) -> Option<u64> {
        let until = self.members.get(member)?.ejected_until_ms.load(Relaxed);
        until.checked_sub(now_ms()).filter(|left| *left > 0)
    }
}

fn clear_if(condition: bool, clear: impl FnOnce()) {
    if condition {
        clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rule() -> OutlierDetection {
        OutlierDetection {
            consecutive_5xx: Some(3),
            consecutive_gateway: None,
            splits_local: false,
            consecutive_local: None,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 100,
            min_health_percent: 0,
        }
    }

    fn watch(rule: OutlierDetection, count: usize) -> Watch {
        let members = (0..count).map(|_| Arc::new(Health::new(1))).collect();
        Watch::new(rule, "cart:80".into(), members, Arc::default())
    }

    fn note(watch: &Watch, member: usize, outcomes: &[Outcome]) -> bool {
        for outcome in outcomes {
            watch.note(&watch.members[member], *outcome, &member);
        }
        watch.members[member].is_ejected(now_ms())
    }

    use Outcome::{Answered, Connected, Lost};

    #[test]
    fn failures_in_a_row_eject_and_a_success_between_them_does_not() {
        let errors = [Answered(500), Answered(503), Lost];
        assert!(note(&watch(rule(), 2), 0, &errors));
        assert!(!note(&watch(rule(), 2), 0, &[Answered(500), Answered(500), Answered(404), Answered(500)]));
        assert!(!note(&watch(rule(), 2), 0, &[Lost, Lost, Connected, Lost]));
        let never = OutlierDetection { consecutive_5xx: None, ..rule() };
        assert!(!note(&watch(never, 2), 0, &[Answered(500); 50]));
    }

    #[test]
    fn gateway_errors_are_counted_apart() {
        let gateway = OutlierDetection { consecutive_5xx: None, consecutive_gateway: Some(2), ..rule() };
        assert!(!note(&watch(gateway.clone(), 2), 0, &[Answered(500); 9]));
        assert!(!note(&watch(gateway.clone(), 2), 0, &[Answered(502), Answered(500), Answered(502)]));
        assert!(note(&watch(gateway, 2), 0, &[Answered(502), Answered(504)]));
    }

    #[test]
    fn lost_connections_are_counted_apart_if_the_rule_says_so() {
        let split = OutlierDetection { splits_local: true, consecutive_local: Some(2), ..rule() };
        assert!(note(&watch(split.clone(), 2), 0, &[Lost, Lost]));
        assert!(!note(&watch(split.clone(), 2), 0, &[Lost, Connected, Lost]));
        let split = OutlierDetection { consecutive_local: None, ..split };
        assert!(!note(&watch(split, 2), 0, &[Lost; 20]));
    }

    #[test]
    fn no_more_are_left_out_than_the_rule_allows_but_one_always_may() {
        let few = OutlierDetection { max_ejection_percent: 50, consecutive_5xx: Some(1), ..rule() };
        let four = watch(few.clone(), 4);
        let ejected: Vec<_> = (0..4).map(|member| note(&four, member, &[Lost])).collect();
        assert_eq!(ejected, [true, true, false, false]);
        let none = OutlierDetection { max_ejection_percent: 0, ..few };
        let three = watch(none, 3);
        assert_eq!([0, 1].map(|member| note(&three, member, &[Lost])), [true, false]);
    }

    #[test]
    fn ejections_grow_and_shrink_again() {
        let watch = watch(OutlierDetection { consecutive_5xx: Some(1), ..rule() }, 3);
        let member = watch.members[0].clone();
        let length = |now: u64| {
            watch.eject(&member, "failed", &0, now);
            (member.ejected_until_ms.load(Relaxed) - now) / 1000
        };
        assert_eq!(length(1), 30);
        assert_eq!(length(30_001), 60);
        assert_eq!(length(90_001), 90);
        // Three intervals of peace.
        assert_eq!(length(180_001 + 30_000), 30);
        // It ends growing.
        let mut now = 1_000_000;
        for _ in 0..50 {
            let seconds = length(now);
            assert!(seconds <= 300);
            now += seconds * 1000;
        }
        assert_eq!(length(now), 300);
    }

    #[test]
    fn with_too_few_left_nobody_is_left_out() {
        let panic = OutlierDetection { consecutive_5xx: Some(1), min_health_percent: 50, ..rule() };
        let watch = watch(panic, 4);
        assert_eq!(watch.looks_at(), None);
        for (member, looks) in [(0, true), (1, true), (2, false)] {
            note(&watch, member, &[Lost]);
            assert_eq!(watch.looks_at().is_some(), looks, "{member}");
        }
    }
}
