//! Until when each Pod may hold a certificate of the mesh: for so long a rotation waits for one that says nothing.
//!
//! It goes by what was issued and by the certificates of connections, never by what a proxy says of itself: one that lies
//! is neither waited for longer than it can be of any harm, nor taken for gone while it is not.

use std::collections::BTreeMap;

/// What is known of a Pod's certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// It has never had one.
    Nothing,
    /// The last of them ends then, Unix milliseconds.
    Until(u64),
    /// Somebody who is not there any more may have given it one, which ends then at the latest, Unix milliseconds.
    Perhaps(u64),
}

impl Holds {
    /// When the last one ends, if there may be one.
    pub(crate) fn ends_ms(self) -> Option<u64> {
        match self {
            Self::Nothing => None,
            Self::Until(ends) | Self::Perhaps(ends) => Some(ends),
        }
    }

    /// Whether there may be one that holds.
    pub(crate) fn may_hold(self, now_ms: u64) -> bool {
        self.ends_ms().is_some_and(|ends| ends > now_ms)
    }
}

/// Fewer are not looked through for those that can be forgotten.
const FEW: usize = 1024;

/// Who holds certificates, by uid of the Pod.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// When the last certificate ends that is known here.
    here: BTreeMap<String, u64>,
    /// The same, as the other control planes have it.
    elsewhere: BTreeMap<String, u64>,
    /// When Pods were first looked at.
    first_seen: BTreeMap<String, u64>,
    /// When this control plane first looked; others were here before.
    first_look_ms: Option<u64>,
    /// Until this moment other control planes may have issued what is not known here.
    dark_elsewhere_ms: u64,
}

impl Holders {
    /// A certificate of this Pod ends then.
    pub(crate) fn note(&mut self, uid: &str, ends_ms: u64, now_ms: u64) {
        if let Some(known) = self.here.get_mut(uid) {
            *known = ends_ms.max(*known);
            return;
        }
        // Also of Pods that are not there: one may lose its address for a moment.
        if self.here.len() >= FEW && self.here.len().is_power_of_two() {
            self.here.retain(|_, ends| *ends > now_ms);
        }
        self.here.insert(uid.to_owned(), ends_ms);
    }

    /// Takes over what the other control planes know, and until when some of them may have issued more than that.
    pub(crate) fn heard(&mut self, elsewhere: BTreeMap<String, u64>, dark_until_ms: u64) {
        self.elsewhere = elsewhere;
        self.dark_elsewhere_ms = dark_until_ms;
    }

    /// What is known here, by uid of the Pod.
    pub(crate) fn known(&self) -> &BTreeMap<String, u64> {
        &self.here
    }

    /// From when on everything is known that this control plane has issued; `None` before the first look.
    pub(crate) fn first_look_ms(&self) -> Option<u64> {
        self.first_look_ms
    }

    /// Looks at all the Pods that there are; what they hold, in their order. No certificate lives longer than `longest_ms`.
    ///
    /// The first look must be at a complete world: a Pod that comes later has come later.
    pub(crate) fn look(&mut self, uids: &[&str], now_ms: u64, longest_ms: u64) -> Vec<Holds> {
        let dark = (*self.first_look_ms.get_or_insert(now_ms)).max(self.dark_elsewhere_ms);
        if self.first_seen.len() > FEW.max(uids.len().saturating_mul(2)) {
            let living: std::collections::BTreeSet<&str> = uids.iter().copied().collect();
            self.first_seen.retain(|uid, _| living.contains(uid.as_str()));
        }
        let mut look = |uid: &str| {
            let first_seen = match self.first_seen.get(uid) {
                Some(first_seen) => *first_seen,
                None => *self.first_seen.entry(uid.to_owned()).or_insert(now_ms),
            };
            match self.here.get(uid).max(self.elsewhere.get(uid)) {
                Some(ends) => Holds::Until(*ends),
                None if first_seen <= dark => Holds::Perhaps(dark.saturating_add(longest_ms)),
                None => Holds::Nothing,
            }
        };
        uids.iter().map(|uid| look(uid)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: u64 = 1000;

    #[test]
    fn a_pod_of_before_may_have_a_certificate_and_one_of_later_has_what_was_issued() {
        let mut holders = Holders::default();
        holders.note("known", 500, 10);
        holders.note("known", 300, 10);
        let of_before = [Holds::Perhaps(100 + TTL), Holds::Until(500)];
        assert_eq!(holders.look(&["old", "known"], 100, TTL), of_before);
        // The bound does not move with time.
        assert_eq!(holders.look(&["old", "known", "new"], 200, TTL)[..2], of_before);
        assert_eq!(holders.look(&["new"], 300, TTL), [Holds::Nothing]);
        holders.note("new", 900, 300);
        assert_eq!(holders.look(&["new"], 300, TTL), [Holds::Until(900)]);
        assert!(!Holds::Nothing.may_hold(0) && Holds::Until(2).may_hold(1) && !Holds::Perhaps(2).may_hold(2));
    }

    #[test]
    fn what_a_control_plane_that_is_gone_has_issued_is_not_taken_for_nothing() {
        let mut holders = Holders::default();
        holders.look(&[], 100, TTL);
        assert_eq!(holders.look(&["new"], 200, TTL), [Holds::Nothing]);
        holders.heard(BTreeMap::from([("there".to_owned(), 700)]), 50);
        assert_eq!(holders.look(&["new", "there"], 250, TTL), [Holds::Nothing, Holds::Until(700)]);
        holders.heard(BTreeMap::new(), 300);
        let both = [Holds::Perhaps(300 + TTL), Holds::Perhaps(300 + TTL)];
        assert_eq!(holders.look(&["new", "there"], 350, TTL), both);
    }

    #[test]
    fn certificates_that_have_ended_are_forgotten_and_no_others() {
        let mut holders = Holders::default();
        holders.note("kept", 5000, 0);
        for n in 0..3000_u64 {
            holders.note(&n.to_string(), 1000, n);
        }
        assert!(holders.known().len() <= 2 * FEW + 1, "{}", holders.known().len());
        assert_eq!(holders.known().get("kept"), Some(&5000));
    }
}
