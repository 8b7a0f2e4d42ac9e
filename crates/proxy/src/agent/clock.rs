//! Two clocks: what time it is, and how much has passed.
//!
//! The first may be set while a proxy runs, the second cannot, and goes on while the machine sleeps. A certificate is due
//! when either says so, and when they disagree the first has been set, which is reason enough to ask the authority.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Where a proxy reads its clocks, so that tests can set them.
pub(crate) trait Clocks: Debug + Send + Sync + 'static {
    fn read(&self) -> Reading;
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The time of day, which certificates are judged by.
    pub(crate) wall: SystemTime,
    /// Since some moment in the past, sleep included.
    pub(crate) elapsed: Duration,
}

impl Reading {
    /// How far the time of day was moved since `earlier`, in either direction.
    pub(crate) fn set_since(&self, earlier: &Self) -> Duration {
        let should_be = earlier.wall + self.elapsed.saturating_sub(earlier.elapsed);
        self.wall.duration_since(should_be).unwrap_or_else(|late| late.duration())
    }

    /// How long ago `earlier` was: the longer of what the clocks say.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        wall.max(self.elapsed.saturating_sub(earlier.elapsed))
    }
}

/// The machine's.
#[derive(Debug)]
pub(crate) struct SystemClocks;

impl Clocks for SystemClocks {
    fn read(&self) -> Reading {
        let since_boot = clock_gettime(ClockId::Boottime);
        let elapsed = Duration::new(
            u64::try_from(since_boot.tv_sec).unwrap_or_default(),
            u32::try_from(since_boot.tv_nsec).unwrap_or_default(),
        );
        Reading { wall: SystemTime::now(), elapsed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_a_clock_is_told_from_time_passing() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let start = Reading { wall: SystemTime::UNIX_EPOCH + hour * 1000, elapsed: hour };
        let later = Reading { wall: start.wall + hour, elapsed: start.elapsed + hour };
        assert_eq!((later.set_since(&start), later.since(&start)), (Duration::ZERO, hour));
        let forward = Reading { wall: start.wall + hour, elapsed: start.elapsed + second };
        assert_eq!((forward.set_since(&start), forward.since(&start)), (hour - second, hour));
        let back = Reading { wall: start.wall - hour, elapsed: start.elapsed + second };
        assert_eq!((back.set_since(&start), back.since(&start)), (hour + second, second));
        let real = SystemClocks;
        let first = real.read();
        assert!(real.read().elapsed >= first.elapsed && first.elapsed > Duration::ZERO);
    }
}
