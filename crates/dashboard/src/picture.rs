//! The graph as SVG: classes only, every size and colour of it is the style sheet's.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::conversation::{Key, Verdict};
use crate::graph::{Edge, Graph, Node, NodeKind};
use crate::layout::{self, Area, Input, Layout, Line, NODE_H, Route, figure};
use crate::query::{Focus, ViewQuery};
use crate::text::{ago, plural, rate, short};

/// Characters of a node's name that fit.
const NODE_NAME: usize = 21;
/// Widths of a character, for what is drawn before any font is known: generous for the fonts of the style sheet.
const BADGE_CHAR: f64 = 6.4;
const BADGE_H: f64 = 20.0;
/// With a second line, for what refused.
const TALL_BADGE_H: f64 = 33.0;
/// Without a call for so long, an edge is drawn as quiet.
pub(crate) const QUIET_MS: u64 = 75_000;

pub(crate) fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Mtls => "mtls",
        Verdict::Plaintext => "plain",
        Verdict::Refused => "refused",
        Verdict::Failed => "failed",
    }
}

/// Draws the graph.
pub(crate) fn picture(graph: &Graph, query: &ViewQuery, now_ms: u64) -> Markup {
    let names: Vec<&str> = {
        let mut names: Vec<&str> = graph.nodes.iter().map(|n| n.key.namespace.as_str()).collect();
        names.dedup();
        names
    };
    let place: BTreeMap<&str, usize> = names.iter().enumerate().map(|(at, name)| (*name, at)).collect();
    let input = Input {
        group_of: graph
            .nodes
            .iter()
            .map(|n| place.get(n.key.namespace.as_str()).copied().unwrap_or(0))
            .collect(),
        groups: names.len(),
        edges: graph
            .edges
            .iter()
            .map(|e| Line {
                wide: e.badge.is_some(),
                from: e.from,
                to: e.to,
                lane: if e.badge.is_some() { TALL_BADGE_H } else { BADGE_H },
            })
            .collect(),
    };
    let found = layout::layout(&input);
    let badges = badges(graph, &found);
    let (w, h) = (figure(found.w.ceil()), figure(found.h.ceil()));
    // A picture much wider than a screen is moved through, not shrunk.
    let wide = found.w > 1700.0;
    let large = found.w > 800.0;
    html! {
        svg.graph.wide[wide].large[large] viewBox={ "0 0 " (w) " " (h) } width=(w) height=(h) role="group"
            aria-label="Who talks to whom; the table below says the same" {
            defs {
                @for verdict in [Verdict::Mtls, Verdict::Plaintext, Verdict::Refused, Verdict::Failed] {
                    marker id={ "arrow-" (class(verdict)) } class=(class(verdict)) viewBox="0 0 10 10" refX="9" refY="5"
                        markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto" {
                        path d="M0 0L10 5L0 10z" {}
                    }
                }
            }
            @for (name, area) in names.iter().zip(&found.groups) {
                (group(name, area, query))
            }
            @for (edge, route) in graph.edges.iter().zip(&found.routes) {
                (line(edge, route, now_ms))
            }
            @for (node, area) in graph.nodes.iter().zip(&found.nodes) {
                (node_box(node, area, query))
            }
            @for (edge, area) in graph.edges.iter().zip(&badges) {
                (badge(edge, area, graph, query, now_ms))
            }
        }
    }
}

fn group(name: &str, area: &Area, query: &ViewQuery) -> Markup {
    let label = if name.is_empty() { "outside the mesh" } else { name };
    let to = query.with_focus(None).with_namespace(Some(name.to_owned()));
    html! {
        g.group.outside[name.is_empty()] {
            rect x=(figure(area.x)) y=(figure(area.y)) width=(figure(area.w)) height=(figure(area.h)) rx="12" {}
            a href=(to.link()) {
                text x=(figure(area.x + 14.0)) y=(figure(area.y + 21.0)) {
                    (short(label, (area.w / 8.0) as usize))
                    title { "Only namespace " (label) }
                }
            }
        }
    }
}

fn line(edge: &Edge, route: &Route, now_ms: u64) -> Markup {
    let class = class(edge.verdict);
    let weight = match edge.per_s {
        r if r >= 50.0 => " w3",
        r if r >= 5.0 => " w2",
        _ => "",
    };
    let quiet = if is_quiet(edge, now_ms) { " quiet" } else { "" };
    html! {
        path class={ "edge " (class) (weight) (quiet) } d=(route.path()) marker-end={ "url(#arrow-" (class) ")" } {}
    }
}

fn is_quiet(edge: &Edge, now_ms: u64) -> bool {
    edge.per_s <= 0.0 && now_ms.saturating_sub(edge.last_seen_ms) > QUIET_MS
}

fn node_box(node: &Node, area: &Area, query: &ViewQuery) -> Markup {
    let bare = node.is_bare() == Some(true);
    let below = second_line(node);
    let focused = match &query.focus {
        Some(Focus::Node(key)) => *key == node.key,
        Some(Focus::Edge(from, to)) => *from == node.key || *to == node.key,
        None => false,
    };
    let outside = !matches!(node.kind, NodeKind::Workload(_));
    html! {
        a.node.bare[bare].idle[!node.has_traffic].outside[outside].focused[focused]
            href={ (query.with_focus(Some(Focus::Node(node.key.clone()))).link()) "#details" } {
            title { (node.key.label()) ": " (below) }
            rect x=(figure(area.x)) y=(figure(area.y)) width=(figure(area.w)) height=(figure(area.h)) rx="8" {}
            text.name x=(figure(area.x + area.w / 2.0)) y=(figure(area.y + 20.0)) { (short(&node.key.name, NODE_NAME)) }
            text.below x=(figure(area.x + area.w / 2.0)) y=(figure(area.y + NODE_H - 10.0)) { (below) }
        }
    }
}

/// What is to be known of a node at a glance.
fn second_line(node: &Node) -> String {
    match (node.kind, node.is_bare()) {
        (NodeKind::Outside, _) => "outside the mesh".to_owned(),
        (NodeKind::Named, _) => "no Pod now".to_owned(),
        (NodeKind::Workload(w), _) if w.pods == 0 => "no Pod".to_owned(),
        (NodeKind::Workload(w), Some(true)) if w.with_sidecar == 0 => "⚠ no sidecar".to_owned(),
        (NodeKind::Workload(w), Some(true)) => {
            format!("⚠ {} of {} without sidecar", w.pods - w.with_sidecar, w.pods)
        }
        (NodeKind::Workload(w), _) if w.ready < w.pods => format!("{} of {} ready", w.ready, w.pods),
        (NodeKind::Workload(_), _) if !node.has_traffic => "no traffic".to_owned(),
        (NodeKind::Workload(w), _) => plural(w.pods, "Pod", "Pods"),
    }
}

/// What an edge says: a word, and in a second line what refused.
fn words(edge: &Edge) -> (String, Option<&str>) {
    let rate = rate(edge.per_s);
    let first = match edge.verdict {
        Verdict::Mtls => rate,
        Verdict::Plaintext => format!("plaintext {rate}"),
        Verdict::Refused => format!("refused {rate}"),
        Verdict::Failed => format!("failed {rate}"),
    };
    (first, edge.badge.as_deref())
}

/// Finds a place for every edge's label: refusals first, each where it covers the least of nodes and of other labels.
fn badges(graph: &Graph, found: &Layout) -> Vec<Area> {
    let mut places = vec![Area::default(); graph.edges.len()];
    let mut taken: Vec<Area> = Vec::new();
    for (at, (edge, route)) in graph.edges.iter().zip(&found.routes).enumerate() {
        let (first, second) = words(edge);
        let longest = (first.chars().count() + 3).max(second.map_or(0, |s| s.chars().count() + 2));
        let w = longest as f64 * BADGE_CHAR + 6.0;
        let h = if second.is_some() { TALL_BADGE_H } else { BADGE_H };
        let candidates = route.anchors().into_iter().enumerate().map(|(order, p)| {
            let area = Area { x: p.x - w / 2.0, y: p.y - h / 2.0, w, h };
            let over = |others: &[Area]| others.iter().map(|o| o.overlap(&area)).sum::<f64>();
            let beyond = (-area.x).max(0.0) + (area.x + area.w - found.w).max(0.0);
            // Another label covered is as bad as a node; a less fitting place is better than either.
            (over(&found.nodes) + over(&taken) + beyond * h + order as f64 * 12.0, area)
        });
        let best = candidates.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, area)| area).unwrap_or_default();
        taken.push(best);
        if let Some(place) = places.get_mut(at) {
            *place = best;
        }
    }
    places
}

fn badge(edge: &Edge, area: &Area, graph: &Graph, query: &ViewQuery, now_ms: u64) -> Markup {
    let (first, second) = words(edge);
    let key = |at: usize| graph.nodes.get(at).map(|n| n.key.clone()).unwrap_or_else(|| Key::new("", ""));
    let focus = Focus::Edge(key(edge.from), key(edge.to));
    let focused = query.focus.as_ref() == Some(&focus);
    let link = query.with_focus(Some(focus)).link();
    let quiet = is_quiet(edge, now_ms);
    let (x, y) = (area.x + 8.0, area.y + 4.0);
    html! {
        a.badge.(class(edge.verdict)).quiet[quiet].focused[focused] href={ (link) "#details" } {
            title { (edge.title) "; last seen " (ago(now_ms, edge.last_seen_ms)) }
            rect x=(figure(area.x)) y=(figure(area.y)) width=(figure(area.w)) height=(figure(area.h)) rx="8" {}
            g transform={ "translate(" (figure(x)) " " (figure(y)) ")" } { (icon(edge.verdict)) }
            text x=(figure(x + 16.0)) y=(figure(area.y + 14.2)) { (first) }
            @if let Some(second) = second {
                text.why x=(figure(x)) y=(figure(area.y + 27.0)) { (second) }
            }
        }
    }
}

/// A 12 by 12 sign of a verdict: closed padlock, open padlock, no entry, broken line.
pub(crate) fn icon(verdict: Verdict) -> Markup {
    html! {
        @match verdict {
            Verdict::Mtls => path.icon d="M2 6h8v5.5H2zM3.8 6V3.7a2.2 2.2 0 0 1 4.4 0V6" {},
            Verdict::Plaintext => path.icon d="M1 6h8v5.5H1zM7.2 6V3.7a2.1 2.1 0 0 1 4.2 0V5" {},
            Verdict::Refused => path.icon d="M6 .9a5.1 5.1 0 1 1 0 10.2A5.1 5.1 0 0 1 6 .9M3.2 6h5.6" {},
            Verdict::Failed => path.icon d="M6 1L11.5 11H.5zM6 4.5v3M6 8.8v.6" {},
        }
    }
}

/// The sign beside text.
pub(crate) fn sign(verdict: Verdict) -> Markup {
    html! {
        svg.sign.(class(verdict)) viewBox="0 0 12 12" width="12" height="12" aria-hidden="true" { (icon(verdict)) }
    }
}
