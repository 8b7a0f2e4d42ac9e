//! How far this machine's clock is from the authority's: certificates are made by the one and judged by the other.
//!
//! One process runs on one machine and believes one authority, so there is one answer for all of it. Whoever talks to the
//! authority measures; every refusal because of a time can then say whether the own clock is to blame.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

static KNOWN: Mutex<Option<Skew>> = Mutex::new(None);

/// Below this nobody needs to hear of a difference: answers travel, and HTTP's dates have whole seconds.
const TOLERABLE: Duration = Duration::from_secs(5);

/// A measured difference between the own clock and the authority's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    is_ahead: bool,
    by: Duration,
    /// How wrong the measurement may be.
    give_or_take: Duration,
}

impl Skew {
    /// The authority's clock was at `authority`, give or take something, when the own was at `own`.
    pub fn measured(own: SystemTime, authority: SystemTime, give_or_take: Duration) -> Self {
        match own.duration_since(authority) {
            Ok(by) => Self { is_ahead: true, by, give_or_take },
            Err(behind) => Self { is_ahead: false, by: behind.duration(), give_or_take },
        }
    }

    /// Keeps it for whoever has to explain a refusal.
    pub fn publish(self) {
        *KNOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(self);
    }

    /// What was measured last, if anything was.
    pub fn known() -> Option<Self> {
        *KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the clocks differ by more than the measurement can be wrong and answers take to travel.
    pub fn is_worth_saying(self) -> bool {
        self.by > self.give_or_take + TOLERABLE
    }

    /// Seconds by which the own clock is ahead; negative if it is behind.
    pub fn seconds(self) -> f64 {
        if self.is_ahead { self.by.as_secs_f64() } else { -self.by.as_secs_f64() }
    }

    /// What the authority's clock shows when the own one shows `own`.
    pub fn at_authority(self, own: SystemTime) -> SystemTime {
        let corrected = if self.is_ahead { own.checked_sub(self.by) } else { own.checked_add(self.by) };
        corrected.unwrap_or(own)
    }
}

/// For people: which clock is wrong, by how much, and what to do; or that they agree.
impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_worth_saying() {
            return f.write_str("this machine's clock agrees with the authority's");
        }
        let way = if self.is_ahead { "ahead of" } else { "behind" };
        write!(
            f,
            "the clock of this machine is {} {way} the authority's: set it right with `timedatectl set-ntp true` or \
             `chronyc makestep`",
            Span(self.by)
        )
    }
}

/// The likely cause of a refusal because of a time: the own clock, if it is known to be wrong, or else `otherwise`.
pub(crate) struct Cause(pub(crate) &'static str);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Skew::known() {
            Some(skew) if skew.is_worth_saying() => skew.fmt(f),
            Some(skew) => write!(f, "{}; {skew}", self.0),
            None => f.write_str(self.0),
        }
    }
}

/// A length of time for people, in its two largest units.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, _) => write!(f, "{minutes} min {} s", seconds % 60),
            (0, _, _) => write!(f, "{hours} h {minutes} min"),
            (_, _, _) => write!(f, "{days} d {hours} h"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skew_says_which_clock_and_how_far_and_corrects_it() {
        let authority = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let second = Duration::from_secs(1);
        for (seconds, text) in
            [(3 * 3600 + 12 * 60 + 7, "3 h 12 min"), (200, "3 min 20 s"), (31, "31 s"), (90_000, "1 d 1 h")]
        {
            let by = Duration::from_secs(seconds);
            let ahead = Skew::measured(authority + by, authority, second);
            let behind = Skew::measured(authority - by, authority, second);
            assert!(ahead.to_string().contains(&format!("{text} ahead of the authority's")), "{ahead}");
            assert!(behind.to_string().contains(&format!("{text} behind the authority's")), "{behind}");
            assert_eq!((ahead.seconds(), behind.seconds()), (seconds as f64, -(seconds as f64)));
            assert_eq!(ahead.at_authority(authority + by), authority);
            assert_eq!(behind.at_authority(authority - by), authority);
        }
        let close = Skew::measured(authority + second * 5, authority, second);
        assert!(!close.is_worth_saying());
        assert_eq!(close.to_string(), "this machine's clock agrees with the authority's");
        // Another authority than the mesh's dates back by what it likes.
        let vague = Skew::measured(authority + second * 100, authority, second * 120);
        assert!(!vague.is_worth_saying());
    }
}
