//! What a plain scalar means: YAML 1.1 as kubectl reads it (go-yaml 2, `resolve.go`), not YAML 1.2.
//!
//! So `yes` and `off` are booleans, `0755` is 493, `1_000` is 1000 and `12:30` is a string.

use serde_json::{Number, Value};

/// The value of a plain (unquoted, untagged) scalar; `Err` for numbers that JSON cannot hold.
pub(super) fn resolve(text: &str) -> Result<Value, &'static str> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" | ".nan"
        | ".NaN" | ".NAN" => return Err("neither infinite numbers nor .nan are possible here"),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    })
}

fn number(text: &str) -> Option<Number> {
    if text.starts_with('.') {
        return float(text);
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+')) {
        return None;
    }
    let plain = text.replace('_', "");
    integer(&plain).or_else(|| float(&plain))
}

/// Go's `ParseInt` and `ParseUint` with base 0.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = |prefixes: [&str; 2]| prefixes.into_iter().find_map(|prefix| digits.strip_prefix(prefix));
    let (radix, digits) = if let Some(digits) = prefixed(["0x", "0X"]) {
        (16, digits)
    } else if let Some(digits) = prefixed(["0o", "0O"]) {
        (8, digits)
    } else if let Some(digits) = prefixed(["0b", "0B"]) {
        (2, digits)
    } else if let (Some(octal), true) = (digits.strip_prefix('0'), digits.len() > 1) {
        (8, octal)
    } else {
        (10, digits)
    };
    if digits.starts_with(['-', '+']) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative { Some(0i64.checked_sub_unsigned(magnitude)?.into()) } else { Some(magnitude.into()) }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`; whole values as the integers they print as.
fn float(text: &str) -> Option<Number> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let shaped = all_digits(whole)
        && all_digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|e| !e.is_empty() && all_digits(e));
    if !shaped {
        return None;
    }
    let value: f64 = text.parse().ok().filter(|value: &f64| value.is_finite())?;
    if value.fract() == 0.0 && value.abs() < 9e15 {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within 53 bits")]
        return Some((value as i64).into());
    }
    Number::from_f64(value)
}

/// Whether a plain scalar used as a key reads as a boolean without being written as one.
pub(super) fn is_disguised_boolean(text: &str) -> bool {
    !matches!(text, "true" | "false") && matches!(resolve(text), Ok(Value::Bool(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What kubectl makes of them.
    fn cases() -> Vec<(&'static str, Value)> {
        vec![
            ("yes", json!(true)),
            ("y", json!(true)),
            ("n", json!(false)),
            ("Off", json!(false)),
            ("yEs", json!("yEs")),
            ("0755", json!(493)),
            ("0o17", json!(15)),
            ("0o8", json!("0o8")),
            ("0x1F", json!(31)),
            ("-0x1F", json!(-31)),
            ("0b101", json!(5)),
            ("-0b101", json!(-5)),
            ("0x", json!("0x")),
            ("018", json!(18)),
            ("09", json!(9)),
            ("+12", json!(12)),
            ("1_000", json!(1000)),
            ("0_7", json!(7)),
            ("_1", json!("_1")),
            ("1__0", json!(10)),
            ("12:30", json!("12:30")),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("2.", json!(2)),
            ("1e3", json!(1000)),
            ("1e+3", json!(1000)),
            ("1_0.5", json!(10.5)),
            ("1e400", json!("1e400")),
            ("18446744073709551615", json!(18_446_744_073_709_551_615u64)),
            ("-", json!("-")),
            ("--1", json!("--1")),
            ("1.2.3", json!("1.2.3")),
            ("10.0.0.0/8", json!("10.0.0.0/8")),
            ("2001-01-01", json!("2001-01-01")),
            ("~", Value::Null),
            ("Null", Value::Null),
        ]
    }

    #[test]
    fn plain_scalars_mean_what_kubectl_makes_of_them() {
        for (text, expected) in cases() {
            assert_eq!(resolve(text), Ok(expected), "{text}");
        }
        assert!(resolve(".inf").is_err() && resolve(".nan").is_err());
    }

    #[test]
    fn the_table_is_what_kubectl_on_this_machine_says() {
        let dir = std::env::temp_dir().join(format!("maille-scalars-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        let file = dir.join("scalars.yaml");
        // A lone '-' begins a list.
        let cases: Vec<_> = cases().into_iter().filter(|(text, _)| *text != "-").collect();
        let list: String = cases.iter().map(|(text, _)| format!("- {text}\n")).collect();
        std::fs::write(&file, format!("apiVersion: a.b/v1\nkind: C\nmetadata: {{name: d}}\nv:\n{list}"))
            .expect("a file");
        let ran = std::process::Command::new("kubectl")
            .args(["label", "--local", "-o", "json", "x=y", "-f"])
            .arg(&file)
            .output();
        let _ = std::fs::remove_dir_all(&dir);
        let Ok(output) = ran else {
            eprintln!("SKIPPED (needs kubectl): comparison of plain scalars with kubectl");
            return;
        };
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
            panic!("kubectl: {e}: {}", String::from_utf8_lossy(&output.stderr));
        });
        let values = printed["v"].as_array().expect("a list").clone();
        assert_eq!(values.len(), cases.len());
        for ((text, expected), value) in cases.iter().zip(values) {
            // kubectl holds the largest numbers as floats.
            let same = value == *expected || value.as_f64() == expected.as_f64() && value.is_number();
            assert!(same, "{text}: kubectl says {value}, the table {expected}");
        }
    }
}
