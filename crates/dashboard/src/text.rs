//! Text that others wrote, made fit to be shown: bounded, in one line, and without characters that hide or reorder.
//!
//! Escaping is not done here: `maud` escapes whatever is put into the page.

/// Longest name shown: Kubernetes' own bound for names of objects.
pub(crate) const NAME: usize = 253;
/// Longest reason shown.
pub(crate) const REASON: usize = 600;

/// The text in one line of at most `most` characters; what was cut ends in `…`.
pub(crate) fn clean(text: &str, most: usize) -> String {
    let mut kept: String = text.chars().filter(|c| !is_hidden(*c)).take(most + 1).collect();
    if let Some((end, _)) = kept.char_indices().nth(most) {
        kept.truncate(end);
        kept.pop();
        kept.push('…');
    }
    kept
}

/// The text in at most `most` characters, for a label.
pub(crate) fn short(text: &str, most: usize) -> String {
    clean(text, most)
}

/// Control characters, and those that change the order of what is beside them (Unicode UAX #9) or take no room.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

/// An age for people: `3 s`, `5 min`, `2 h`, `4 d`.
pub(crate) fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..=119 => format!("{s} s"),
        120..=7199 => format!("{} min", s / 60),
        7200..=172_799 => format!("{} h", s / 3600),
        _ => format!("{} d", s / 86_400),
    }
}

/// When, for people: `now`, or `5 min ago`.
pub(crate) fn ago(now_ms: u64, then_ms: u64) -> String {
    match now_ms.saturating_sub(then_ms) {
        ms if ms < 10_000 => "now".to_owned(),
        ms => format!("{} ago", age(ms)),
    }
}

/// Events in a second: `0.4/s`, `12/s`, `3.1k/s`; nothing for none.
pub(crate) fn rate(per_s: f64) -> String {
    match per_s {
        r if r <= 0.0 => "idle".to_owned(),
        r if r < 0.05 => "<0.1/s".to_owned(),
        r if r < 9.95 => format!("{r:.1}/s"),
        r if r < 999.5 => format!("{r:.0}/s"),
        r if r < 999_500.0 => format!("{:.1}k/s", r / 1e3),
        r => format!("{:.1}M/s", r / 1e6),
    }
}

/// A count for people: `1 234`, with narrow spaces.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// `n` with the noun in the right number.
pub(crate) fn plural(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_bounded_by_characters_and_keeps_to_one_line() {
        assert_eq!(clean("abc", 3), "abc");
        assert_eq!(clean("abcd", 3), "ab…");
        assert_eq!(clean("üüüü", 3), "üü…");
        assert_eq!(clean("a\nb\u{202e}c\u{0}\u{200b}", 9), "abc");
        assert_eq!(clean("", 3), "");
    }

    #[test]
    fn figures_are_short() {
        let rates = [0.0, 0.01, 1.0, 12.3, 3100.0, 4.2e6].map(rate);
        assert_eq!(rates, ["idle", "<0.1/s", "1.0/s", "12/s", "3.1k/s", "4.2M/s"]);
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(12), "12");
        assert_eq!([0, 61_000, 3_600_000, 86_400_000 * 3].map(age), ["0 s", "61 s", "60 min", "3 d"]);
        assert_eq!((ago(5000, 9000), ago(60_000, 1000)), ("now".to_owned(), "59 s ago".to_owned()));
    }
}
