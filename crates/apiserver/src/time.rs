//! Times and unique names as Kubernetes writes them.

use jiff::{SignedDuration, Timestamp};

/// `metadata.creationTimestamp` and its kin: RFC 3339 with whole seconds.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Now, with whole seconds.
pub(crate) fn now() -> String {
    seconds(Timestamp::now())
}

/// Now plus `delay` seconds.
pub(crate) fn in_seconds(delay: i64) -> String {
    seconds(Timestamp::now().saturating_add(SignedDuration::from_secs(delay)).unwrap_or(Timestamp::MAX))
}

/// Age in the short form of tables: `5s`, `3m20s`, `4h`, `2d`.
///
/// Source: apimachinery `util/duration.HumanDuration`.
pub(crate) fn human_age(since: &str, now: Timestamp) -> String {
    match since.parse::<Timestamp>() {
        Ok(start) => human(now.duration_since(start).as_secs()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// The time from one to the other, in the same form.
pub(crate) fn human_between(from: &str, to: &str) -> String {
    to.parse::<Timestamp>().map_or_else(|_| "<unknown>".to_owned(), |to| human_age(from, to))
}

fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// A random (version 4) UUID.
pub(crate) fn uuid() -> String {
    let bits = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// The five random characters that end generated names; no vowels and nothing that looks like another
/// (apimachinery `util/rand`).
pub(crate) fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .map(|_| {
            let index = rand::random_range(0..ALPHABET.len());
            char::from(ALPHABET.get(index).copied().unwrap_or(b'x'))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        for (secs, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (700, "11m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (47 * 3600, "47h"),
            (49 * 3600, "2d1h"),
            (10 * 86400, "10d"),
        ] {
            assert_eq!(human(secs), want, "{secs}");
        }
    }

    #[test]
    fn uuids_are_version_four() {
        let id = uuid();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
        assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{id}");
    }
}
