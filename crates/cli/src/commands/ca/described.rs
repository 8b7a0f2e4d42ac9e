//! Certificates as tables and JSON show them.

use std::time::SystemTime;

use maille_pki::{CertificateDer, Description, certificates_from_pem};
use serde_json::{Value, json};

/// Digits of a fingerprint that tables show: enough to tell roots apart, and to find one by.
const SHORT: usize = 16;

/// The stable form: `fingerprint` (SHA-256 of the DER), `subject`, `issuer`, `serial`, `key`, `notBefore`, `notAfter`.
pub(crate) fn to_json(certificate: &Description) -> Value {
    json!({
        "fingerprint": certificate.fingerprint,
        "subject": certificate.subject,
        "issuer": certificate.issuer,
        "serial": certificate.serial,
        "key": certificate.key,
        "notBefore": moment(certificate.not_before),
        "notAfter": moment(certificate.not_after),
    })
}

/// Every certificate of a PEM text, described; the error names what was read.
pub(crate) fn described(
    what: &'static str,
    pem: &str,
) -> Result<Vec<(CertificateDer<'static>, Description)>, maille_pki::Error> {
    let certificates = certificates_from_pem(what, pem)?;
    certificates.into_iter().map(|der| maille_pki::describe(&der).map(|shown| (der, shown))).collect()
}

/// RFC 3339 in UTC, whole seconds.
pub(crate) fn moment(time: SystemTime) -> String {
    maille_pki::Moment(time).to_string()
}

/// `in 3649 days`, `in 11 h`, `3 days ago`: how far a moment is from now.
pub(crate) fn distance(time: SystemTime, now: SystemTime) -> String {
    match time.duration_since(now) {
        Ok(ahead) => format!("in {}", span(ahead.as_secs())),
        Err(behind) => format!("{} ago", span(behind.duration().as_secs())),
    }
}

/// One unit, rounded down: `3649 days`, `11 h`, `5 min`, `40 s`.
pub(crate) fn span(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (days, ..) if days > 1 => format!("{days} days"),
        (_, hours, _) if hours > 1 => format!("{hours} h"),
        (_, _, minutes) if minutes > 1 => format!("{minutes} min"),
        _ => format!("{seconds} s"),
    }
}

/// The beginning of a fingerprint.
pub(crate) fn short(fingerprint: &str) -> &str {
    fingerprint.get(..SHORT).unwrap_or(fingerprint)
}

/// A moment in Unix milliseconds; `None` for zero, which means unknown on the wire.
pub(crate) fn of_millis(millis: u64) -> Option<SystemTime> {
    (millis != 0).then(|| SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn distances_have_one_unit_and_a_direction() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000_000);
        for (seconds, text) in [
            (3650 * 86_400_i64, "in 3650 days"),
            (86_400, "in 24 h"),
            (3600, "in 60 min"),
            (90, "in 90 s"),
            (-3 * 86_400, "3 days ago"),
        ] {
            let far = Duration::from_secs(seconds.unsigned_abs());
            let time = if seconds < 0 { now - far } else { now + far };
            assert_eq!(distance(time, now), text);
        }
    }

    #[test]
    fn a_short_fingerprint_is_the_beginning() {
        assert_eq!(short("0123456789abcdef0123"), "0123456789abcdef");
        assert_eq!(short("ab"), "ab");
    }
}
