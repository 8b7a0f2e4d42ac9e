//! How often one address may ask.

use std::collections::HashMap;
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
        bucket.tokens = bucket.level(now, self.burst, self.per_second);
        bucket.filled = now;
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }
}

impl Bucket {
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
