//! The style sheet's colours are readable in light and in dark: WCAG 2.2, success criteria 1.4.3 (4.5 to 1 for text) and
//! 1.4.11 (3 to 1 for what tells something without being text).

use std::collections::HashMap;

const STYLE: &str = include_str!("../assets/dashboard.css");

/// Text on what it stands on.
const TEXTS: &[(&str, &str)] = &[
    ("text", "page"),
    ("text", "card"),
    ("text", "node"),
    ("text", "group"),
    ("card", "text"),
    ("muted", "page"),
    ("muted", "card"),
    ("muted", "node"),
    ("muted", "group"),
    ("link", "card"),
    ("mtls", "card"),
    ("plain", "card"),
    ("refused", "card"),
    ("failed", "card"),
    ("mtls", "group"),
    ("plain", "group"),
    ("refused", "group"),
    ("plain", "node"),
    ("mtls", "mtls-bg"),
    ("plain", "plain-bg"),
    ("refused", "refused-bg"),
    ("failed", "failed-bg"),
    ("text", "plain-bg"),
    ("muted", "plain-bg"),
];

/// Lines and outlines on what they stand on.
const LINES: &[(&str, &str)] = &[
    ("mtls", "group"),
    ("plain", "group"),
    ("refused", "group"),
    ("failed", "group"),
    ("node-line", "node"),
    ("link", "page"),
    ("link", "node"),
];

type Colours = HashMap<String, [f64; 3]>;

/// The custom properties of the first block after `from`.
fn colours(from: &str) -> Colours {
    let block = STYLE.split_once(from).and_then(|(_, rest)| rest.split_once('}')).expect("a block").0;
    let channel = |hex: &str, at: usize| {
        let value = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).expect("a colour")) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    let declared = block.split(';').filter_map(|line| line.trim().strip_prefix("--")?.split_once(": #"));
    declared.map(|(name, hex)| (name.to_owned(), [0, 2, 4].map(|at| channel(hex, at)))).collect()
}

fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
    let luminance = |[r, g, b]: [f64; 3]| 0.2126 * r + 0.7152 * g + 0.0722 * b;
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[test]
fn every_colour_is_readable_in_light_and_dark() {
    let light = colours(":root {\n");
    let dark = colours("prefers-color-scheme: dark) {\n  :root {\n");
    assert!(light.len() > 15 && light.len() == dark.len(), "{} and {}", light.len(), dark.len());
    let mut wrong = Vec::new();
    for (scheme, colours) in [("light", &light), ("dark", &dark)] {
        for (pairs, least) in [(TEXTS, 4.5), (LINES, 3.0)] {
            for (over, under) in pairs {
                let found = contrast(colours[*over], colours[*under]);
                if found < least {
                    wrong.push(format!("{scheme}: {over} on {under} is {found:.2}, not {least}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
