//! How often one address may ask, and all together.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use parking_lot::Mutex;

/// A token bucket per address.
#[derive(Debug)]
pub struct RateLimit {
    burst: f64,
    per_second: f64,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// One token bucket for everybody.
#[derive(Debug)]
pub(crate) struct Rate {
    burst: f64,
    per_second: f64,
    bucket: Mutex<Option<Bucket>>,
}

impl Rate {
    /// `burst` at once, `per_second` in the long run.
    pub(crate) fn new(burst: u32, per_second: f64) -> Self {
        Self { burst: burst.into(), per_second, bucket: Mutex::default() }
    }

    /// Whether anybody may ask once more now.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock();
        let bucket = bucket.get_or_insert(Bucket { tokens: self.burst, filled: now });
        bucket.take(now, self.burst, self.per_second)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at once and {} per second", self.burst, self.per_second)
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at once and {} per second", self.burst, self.per_second)
    }
}

/// Addresses remembered before those that have been quiet are forgotten.
const SWEEP_AT: usize = 4096;

impl RateLimit {
    /// `burst` at once, `per_second` in the long run.
    pub fn new(burst: u32, per_second: f64) -> Self {
        Self { burst: burst.into(), per_second, buckets: Mutex::default() }
    }

    /// Whether this address may ask once more now.
    pub fn admits(&self, address: IpAddr, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= SWEEP_AT {
            let (burst, rate) = (self.burst, self.per_second);
            buckets.retain(|_, b| b.level(now, burst, rate) < burst);
        }
        let bucket = buckets.entry(address).or_insert(Bucket { tokens: self.burst, filled: now });
        bucket.take(now, self.burst, self.per_second)
    }
}

impl Bucket {
    fn take(&mut self, now: Instant, burst: f64, per_second: f64) -> bool {
        self.tokens = self.level(now, burst, per_second);
        self.filled = now;
        let admitted = self.tokens >= 1.0;
        if admitted {
            self.tokens -= 1.0;
        }
        admitted
    }

    fn level(&self, now: Instant, burst: f64, per_second: f64) -> f64 {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        (self.tokens + elapsed * per_second).min(burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_then_the_rate_holds_per_address() {
        let limit = RateLimit::new(3, 2.0);
        let (a, b) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let start = Instant::now();
        assert_eq!((0..5).filter(|_| limit.admits(a, start)).count(), 3);
        assert!(limit.admits(b, start), "another address is not affected");
        let later = start + Duration::from_secs(1);
        assert_eq!((0..5).filter(|_| limit.admits(a, later)).count(), 2);
    }

    #[test]
    fn one_bucket_is_everybodys() {
        let rate = Rate::new(3, 2.0);
        let start = Instant::now();
        assert_eq!((0..5).filter(|_| rate.admits(start)).count(), 3);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..5).filter(|_| rate.admits(later)).count(), 2);
        assert_eq!(rate.to_string(), "3 at once and 2 per second");
    }

    #[test]
    fn quiet_addresses_are_forgotten() {
        let limit = RateLimit::new(1, 1.0);
        let start = Instant::now();
        for n in 0..SWEEP_AT {
            limit.admits(std::net::Ipv4Addr::from(u32::try_from(n).expect("small")).into(), start);
        }
        limit.admits([9, 9, 9, 9].into(), start + Duration::from_secs(60));
        assert_eq!(limit.buckets.lock().len(), 1);
    }
}
