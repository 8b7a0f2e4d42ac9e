//! Durations as Istio's fields have them.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longer ones overflow in Go, and so in Istio.
const MAX_NANOS: u128 = i64::MAX as u128;

/// Reads what Go's `time.ParseDuration` reads, without sign: `5s`, `1h30m`, `1.5s`, `500ms`, `0`.
///
/// `None` for everything else, and for more than some 292 years. Istio reads durations so, since it decodes them with
/// Protobuf's older JSON package; the newer one knows seconds only.
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(number_end)?;
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(unit_end)?;
        nanos = nanos.checked_add(part(number, unit_nanos(unit)?)?).filter(|nanos| *nanos <= MAX_NANOS)?;
        rest = after;
    }
    if text.is_empty() {
        return None;
    }
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

fn unit_nanos(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3600 * 1_000_000_000,
        _ => return None,
    })
}

/// `1.5` of a unit. Digits beyond the nanosecond are cut off.
fn part(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // An hour has 3.6e12 nanoseconds: so many digits of a fraction can matter, and their product fits.
    let digits = fraction.get(..fraction.len().min(18))?;
    let fraction: u128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let scale = 10u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
    whole.checked_mul(unit)?.checked_add(fraction.checked_mul(unit)? / scale)
}

/// A duration in an object: as it is written, and what it means, which is read once.
///
/// One that cannot be read has no value; [`crate::check()`] refuses it, but a cluster's API may hold one all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurationText {
    text: String,
    value: Option<Duration>,
}

impl DurationText {
    /// Reads a text as [`parse`] does.
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), value: parse(text) }
    }

    /// What it means.
    pub fn value(&self) -> Option<Duration> {
        self.value
    }

    /// In milliseconds, begun ones counted whole: what is more than nothing never becomes nothing.
    pub fn millis(&self) -> Option<u64> {
        self.value.and_then(|value| u64::try_from(value.as_nanos().div_ceil(1_000_000)).ok())
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Serialize for DurationText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::new(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, expected) in [
            ("5s", Some(5_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("1.5s", Some(1_500)),
            (".5s", Some(500)),
            ("1.s", Some(1_000)),
            ("500ms", Some(500)),
            ("1h30m", Some(5_400_000)),
            ("2m0.25s", Some(120_250)),
            ("1000us", Some(1)),
            ("1000µs", Some(1)),
            ("", None),
            ("5", None),
            ("s", None),
            (".s", None),
            ("1..5s", None),
            ("5 s", None),
            ("-5s", None),
            ("5d", None),
            ("99999999999999999999999999999999999999999h", None),
            ("9999999h", None),
            ("1é", None),
        ] {
            assert_eq!(parse(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn a_duration_keeps_its_spelling_and_begun_milliseconds_count() {
        for (text, millis) in [("1h30m", Some(5_400_000)), ("1us", Some(1)), ("0s", Some(0)), ("soon", None)]
        {
            let read: DurationText = serde_json::from_value(serde_json::json!(text)).expect("a text");
            assert_eq!(read.millis(), millis, "{text}");
            assert_eq!(serde_json::to_value(&read).expect("a text"), serde_json::json!(text));
        }
    }
}
