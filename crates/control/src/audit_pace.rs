//! Which refusals become lines of the audit log: who can reach the authority can be refused as often as it likes, and must
//! not fill a disk by that, or push what others did out of sight. What has no line of its own is counted in one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::rate::Rate;

/// Lines about one address: at once, and per second in the long run.
const OF_ONE: (u32, f64) = (20, 0.05);
/// Lines about all addresses; a day of them is some thirty megabytes.
const OF_ALL: (u32, f64) = (500, 1.0);
/// Addresses that are told apart.
const MAX_ADDRESSES: usize = 1024;
/// An address of which nothing was heard for so long may be refused as often at once as a new one.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(400);
/// How long refusals without a line are counted before the count becomes one, and how many counts at a time.
const COUNT_FOR: Duration = Duration::from_secs(60);
const COUNTS: usize = 32;

/// Refusals without lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Omitted {
    /// Of whom; `None`: of too many to tell apart.
    pub(crate) of: Option<IpAddr>,
    pub(crate) count: u64,
}

/// Decides.
#[derive(Debug)]
pub(crate) struct Pace {
    addresses: HashMap<IpAddr, Address>,
    others: Count,
    all: Rate,
}

#[derive(Debug)]
struct Address {
    rate: Rate,
    seen: Instant,
    omitted: Count,
}

#[derive(Debug, Default)]
struct Count(u64, Option<Instant>);

impl Count {
    fn add(&mut self, now: Instant) {
        self.0 = self.0.saturating_add(1);
        self.1.get_or_insert(now);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.1.is_some_and(|since| now.saturating_duration_since(since) >= COUNT_FOR)
    }

    fn take(&mut self) -> Option<u64> {
        let Self(count, since) = std::mem::take(self);
        since.map(|_| count)
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self { addresses: HashMap::new(), others: Count::default(), all: Rate::new(OF_ALL.0, OF_ALL.1) }
    }
}

impl Pace {
    /// Whether a refusal of this address gets a line; else it is counted.
    pub(crate) fn admits(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.addresses.len() >= MAX_ADDRESSES && !self.addresses.contains_key(&address) {
            self.addresses.retain(|_, of| {
                of.omitted.1.is_some() || now.saturating_duration_since(of.seen) < FORGOTTEN_AFTER
            });
            if self.addresses.len() >= MAX_ADDRESSES {
                self.others.add(now);
                return false;
            }
        }
        let new = || Address { rate: Rate::new(OF_ONE.0, OF_ONE.1), seen: now, omitted: Count::default() };
        let of = self.addresses.entry(address).or_insert_with(new);
        of.seen = now;
        let admitted = of.rate.admits(now) && self.all.admits(now);
        if !admitted {
            of.omitted.add(now);
        }
        admitted
    }

    /// The counts that become lines now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Omitted> {
        let mut due = Vec::new();
        let all = self.addresses.iter_mut().map(|(address, of)| (Some(*address), &mut of.omitted));
        for (of, omitted) in all.chain([(None, &mut self.others)]) {
            if due.len() >= COUNTS {
                break;
            }
            if omitted.is_due(now) && self.all.admits(now) {
                due.extend(omitted.take().map(|count| Omitted { of, count }));
            }
        }
        due
    }

    /// All counts, when the log ends.
    pub(crate) fn rest(&mut self) -> Vec<Omitted> {
        let all = self.addresses.iter_mut().map(|(address, of)| (Some(*address), &mut of.omitted));
        let all = all.chain([(None, &mut self.others)]);
        all.filter_map(|(of, omitted)| Some(Omitted { of, count: omitted.take()? })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(n).into()
    }

    #[test]
    fn one_address_gets_a_few_lines_and_a_count_and_another_its_own() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!((0..1000).filter(|_| pace.admits(address(1), start)).count(), 20);
        assert!(pace.admits(address(2), start));
        assert_eq!(pace.due(start + Duration::from_secs(59)), []);
        let later = start + COUNT_FOR;
        assert_eq!(pace.due(later), [Omitted { of: Some(address(1)), count: 980 }]);
        assert_eq!(pace.due(later), []);
        // In a minute it has earned three more.
        assert_eq!((0..10).filter(|_| pace.admits(address(1), later)).count(), 3);
        assert_eq!(pace.rest(), [Omitted { of: Some(address(1)), count: 7 }]);
        assert_eq!(pace.rest(), []);
    }

    #[test]
    fn many_addresses_together_are_bounded_and_nothing_is_left_uncounted() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let refused = 5000;
        let lines = (0..refused).filter(|n| pace.admits(address(*n), start)).count();
        assert_eq!((lines, pace.addresses.len()), (500, MAX_ADDRESSES));
        // A minute later there are tokens for as many counts again, a part of them at a time.
        let later = start + COUNT_FOR;
        let mut counts = pace.due(later);
        assert_eq!(counts.len(), COUNTS);
        counts.extend(pace.due(later));
        assert_eq!(counts.len(), 60);
        counts.extend(pace.rest());
        let counted: u64 = counts.iter().map(|omitted| omitted.count).sum();
        assert_eq!(counted, u64::from(refused) - 500);
        // Quiet ones make room.
        assert!(pace.admits(address(9999), start + FORGOTTEN_AFTER));
        assert_eq!(pace.addresses.len(), 1);
    }
}
