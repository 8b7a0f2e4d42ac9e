use std::time::{Duration, SystemTime};

/// Lifetime of a workload certificate unless asked otherwise: `DEFAULT_WORKLOAD_CERT_TTL` (reference mtls 5.4).
pub const DEFAULT_WORKLOAD_TTL: Duration = Duration::from_secs(24 * 3600);

/// Longest lifetime that may be asked for: `MAX_WORKLOAD_CERT_TTL` (reference mtls 5.4).
pub const MAX_WORKLOAD_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// Which part of a root's life is its last, in percent (reference mtls 5.5).
pub const ROOT_GRACE_PERCENT: u32 = 20;

/// The lifetime asked for is longer than allowed (CA-5: refused, not shortened).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("requested validity of {requested_s} s is longer than the maximum of {} s", .max.as_secs())]
pub struct TtlError {
    /// What was asked for, in seconds.
    pub requested_s: i64,
    /// What is allowed.
    pub max: Duration,
}

/// The lifetime for a `validity_duration` of `requested_s` seconds: zero and less mean `default`
/// (CA-4), more than `max` is refused (CA-5).
pub fn requested_ttl(requested_s: i64, default: Duration, max: Duration) -> Result<Duration, TtlError> {
    match u64::try_from(requested_s) {
        Ok(0) | Err(_) => Ok(default),
        Ok(seconds) if seconds <= max.as_secs() => Ok(Duration::from_secs(seconds)),
        Ok(_) => Err(TtlError { requested_s, max }),
    }
}

/// When to renew a certificate: at half of its life, moved by up to one hundredth of it, so that
/// workloads started together do not renew together.
///
/// `jitter` in `-1.0..=1.0` is drawn by the caller; values outside are clamped, NaN counts as 0.
/// A certificate whose end is not after its start is due at its start.
///
/// Source: reference mtls 5.7, `SECRET_GRACE_PERIOD_RATIO` 0.5 and `…_JITTER` 0.01.
pub fn renew_at(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(-1.0, 1.0) };
    not_before + lifetime.mul_f64(0.5 + 0.01 * jitter)
}

/// Whether a root with these dates should be renewed at `now`: less than `percent` of its life is left (reference
/// mtls 5.5, `CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE`; CA-16, CA-17). More than 100 counts as 100.
pub fn root_is_due(not_before: SystemTime, not_after: SystemTime, now: SystemTime, percent: u32) -> bool {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    let grace = lifetime.mul_f64(f64::from(percent.min(100)) / 100.0);
    !not_after.duration_since(now).is_ok_and(|left| left >= grace)
}

/// The lifetime of a certificate when none is asked for: `default`, or what is left of the way from the signing
/// certificate to its root (reference mtls 5.4). Nothing is left past its end; the signature is refused then.
pub fn default_ttl(default: Duration, chain_end: SystemTime, now: SystemTime) -> Duration {
    chain_end.duration_since(now).map_or(default, |left| default.min(left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    /// CA-21: a day's certificate is renewed between 11 h 45 m and 12 h 15 m.
    #[test]
    fn ca_21_a_days_certificate_is_renewed_around_noon() {
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let end = start + DEFAULT_WORKLOAD_TTL;
        let after = |jitter| renew_at(start, end, jitter).duration_since(start).expect("later").as_secs();
        assert_eq!(after(0.0), 12 * 3600);
        assert_eq!(after(f64::NAN), 12 * 3600);
        assert!((11 * 3600 + 45 * 60..12 * 3600).contains(&after(-1.0)));
        assert!((12 * 3600 + 1..=12 * 3600 + 15 * 60).contains(&after(7.0)));
        assert_eq!(renew_at(end, start, 1.0), end);
    }

    #[test]
    fn ca_4_ca_5_ttl_is_defaulted_or_refused_but_never_shortened() {
        let ttl = |requested| requested_ttl(requested, DEFAULT_WORKLOAD_TTL, MAX_WORKLOAD_TTL);
        assert_eq!(ttl(0), Ok(DEFAULT_WORKLOAD_TTL));
        assert_eq!(ttl(-5), Ok(DEFAULT_WORKLOAD_TTL));
        assert_eq!(ttl(30), Ok(Duration::from_secs(30)));
        assert_eq!(ttl(90 * 86_400), Ok(MAX_WORKLOAD_TTL));
        assert!(ttl(90 * 86_400 + 1).is_err());
        assert!(ttl(i64::MAX).is_err());
    }

    #[test]
    fn the_default_is_cut_to_what_is_left_of_the_chain() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let hour = Duration::from_secs(3600);
        assert_eq!(default_ttl(24 * hour, now + 48 * hour, now), 24 * hour);
        assert_eq!(default_ttl(24 * hour, now + 2 * hour, now), 2 * hour);
        assert_eq!(default_ttl(24 * hour, now - hour, now), 24 * hour, "the signature itself is refused");
    }
}
