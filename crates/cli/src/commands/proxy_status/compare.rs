//! `maille proxy-status POD`: what the control plane means a proxy to hold, against what it holds.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use http::Method;
use maille_envoy::Dump;
use maille_proto::facts::ConfigDump;
use serde_json::Value;

use crate::client::Api;
use crate::commands::admin::{self, PodRef};
use crate::output::out;

/// Destinations of one question.
const AT_A_TIME: usize = 500;
/// Lines around a difference.
const CONTEXT: usize = 3;

/// Prints what matches and what differs; whether all matches.
pub(super) async fn run(api: &Api, control_plane: &PodRef, pod: &PodRef, held: &ConfigDump) -> Result<bool> {
    let meant = intended(api, control_plane, pod, held).await?;
    let mut matches = versions(&meant, held);
    let (meant_shapes, held_shapes) = (Dump::of_proxy(&meant), Dump::of_proxy(held));
    let loaded =
        held.held.iter().filter(|one| one.r#type == "Destination").map(|one| one.updated.as_str()).max();
    let routes = match loaded {
        Some(time) => format!("Routes Match (RDS last loaded at {time})"),
        None => "Routes Match".to_owned(),
    };
    for (name, good, meant, held) in [
        (
            "Clusters",
            "Clusters Match".to_owned(),
            outbound(&meant_shapes.clusters),
            outbound(&held_shapes.clusters),
        ),
        ("Listeners", "Listeners Match".to_owned(), meant_shapes.listeners, held_shapes.listeners),
        ("Routes", routes, meant_shapes.routes, held_shapes.routes),
    ] {
        if meant == held {
            out!("{good}");
        } else {
            matches = false;
            out!("{name} Don't Match");
            out!("--- Control plane {name}\n+++ Proxy {name}");
            for line in difference(&lines(&meant), &lines(&held)) {
                out!("{line}");
            }
        }
    }
    Ok(matches)
}

/// Everything that the control plane would send this proxy now, for the destinations that it holds.
async fn intended(api: &Api, control_plane: &PodRef, pod: &PodRef, held: &ConfigDump) -> Result<ConfigDump> {
    let names: Vec<&str> =
        held.held.iter().filter(|one| one.r#type == "Destination").map(|one| one.name.as_str()).collect();
    let port = maille_core::ports::CONTROL_MONITORING;
    let mut all: Option<ConfigDump> = None;
    let parts: Vec<&[&str]> = if names.is_empty() { vec![&[]] } else { names.chunks(AT_A_TIME).collect() };
    for part in parts {
        let path = format!("/facts?proxy={}/{}&destinations={}", pod.namespace, pod.name, part.join(","));
        let answer = admin::ask(api, control_plane, port, Method::GET, &path).await?;
        let next: ConfigDump = serde_json::from_slice(&answer)
            .context("the control plane answered something that is no list of facts")?;
        match &mut all {
            None => all = Some(next),
            Some(all) => {
                all.held.extend(next.held.into_iter().filter(|one| one.r#type == "Destination"));
                if let (Some(facts), Some(more)) = (&mut all.facts, next.facts) {
                    facts.destinations.extend(more.destinations);
                }
            }
        }
    }
    let mut all = all.unwrap_or_default();
    // What the control plane has no opinion of.
    all.identity.clone_from(&held.identity);
    all.bootstrap.clone_from(&held.bootstrap);
    if let Some(facts) = &mut all.facts {
        facts.destinations.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(all)
}

/// A line for each kind of facts, and the names whose versions differ.
fn versions(meant: &ConfigDump, held: &ConfigDump) -> bool {
    let by_name = |dump: &ConfigDump, kind: &str| -> BTreeMap<String, String> {
        let own = dump.held.iter().filter(|one| one.r#type == kind);
        own.map(|one| (one.name.clone(), one.version.clone())).collect()
    };
    let mut matches = true;
    for (kind, _) in super::TYPES {
        let (meant, held) = (by_name(meant, kind), by_name(held, kind));
        if meant == held {
            out!("{kind} Match ({})", held.len());
            continue;
        }
        matches = false;
        out!("{kind} Don't Match");
        for (name, version) in &meant {
            match held.get(name) {
                None => out!("   {name}: not held"),
                Some(other) if other != version => {
                    out!("   {name}: version {other} is held, {version} is meant")
                }
                Some(_) => {}
            }
        }
        for name in held.keys().filter(|name| !meant.contains_key(*name)) {
            out!("   {name}: held, and not meant to be");
        }
    }
    matches
}

/// What every proxy has says nothing.
fn outbound(clusters: &[Value]) -> Vec<Value> {
    clusters
        .iter()
        .filter(|cluster| cluster["name"].as_str().is_some_and(|name| name.contains('|')))
        .cloned()
        .collect()
}

fn lines(values: &[Value]) -> Vec<String> {
    let text = serde_json::to_string_pretty(values).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The lines that differ, `-` before those of `old` and `+` before those of `new`, with some around them.
///
/// What both begin and end with is left out, and the rest is shown whole: one change of the mesh is one place here.
fn difference(old: &[String], new: &[String]) -> Vec<String> {
    let same = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let most = old.len().min(new.len()) - same;
    let tail = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let part = |lines: &[String], from: usize, to: usize, mark: &str| -> Vec<String> {
        lines.get(from..to).unwrap_or_default().iter().map(|line| format!("{mark}{line}")).collect()
    };
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let from = same.saturating_sub(CONTEXT);
    let mut shown = vec![format!(
        "@@ -{},{} +{},{} @@",
        from + 1,
        (old_end + CONTEXT).min(old.len()) - from,
        from + 1,
        (new_end + CONTEXT).min(new.len()) - from
    )];
    shown.extend(part(old, from, same, " "));
    shown.extend(part(old, same, old_end, "-"));
    shown.extend(part(new, same, new_end, "+"));
    shown.extend(part(old, old_end, (old_end + CONTEXT).min(old.len()), " "));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_changed_and_a_little_around() {
        let text = |words: &str| words.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            difference(&text("a b c d e f g h i"), &text("a b c d X f g h i")),
            ["@@ -2,7 +2,7 @@", " b", " c", " d", "-e", "+X", " f", " g", " h"]
        );
        assert_eq!(difference(&text("a"), &text("a b")), ["@@ -1,1 +1,2 @@", " a", "+b"]);
    }
}
