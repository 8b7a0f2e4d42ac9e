//! The page: its frame, the summary, the filters, the states in which there is nothing, or only something old, to show.

use std::collections::BTreeSet;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::conversation::{Conversation, Verdict, conversations};
use crate::details::details;
use crate::feed::{Known, RECENT_S, View};
use crate::graph::{Graph, OWN, Summary};
use crate::picture::{picture, sign};
use crate::query::{Show, ViewQuery, Window};
use crate::table::table;
use crate::text::{age, plural, rate, short};

/// Namespaces offered as filters; beyond, the address takes any.
const MOST_NAMESPACES: usize = 40;

/// The whole page around what [`live`] gives.
pub(crate) fn page(view: &View, live: &str) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title(view)) }
                link rel="icon" href="/favicon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/dashboard.css";
                script src="/dashboard.js" defer {}
                noscript { meta http-equiv="refresh" content="5"; }
            }
            body {
                a.skip href="#talk" { "Skip to the table" }
                header {
                    h1 { a href="/" { (logo()) "Maille" } }
                    p.tagline { "who talks to whom, and what is refused" }
                }
                (PreEscaped(live))
            }
        }
    }
}

fn title(view: &View) -> &'static str {
    if view.problem.is_some() { "Maille: no answer" } else { "Maille" }
}

fn logo() -> Markup {
    html! {
        svg.logo viewBox="0 0 24 24" width="24" height="24" aria-hidden="true" {
            path d="M9.5 7a5 5 0 1 0 0 10a5 5 0 1 0 0-10zM14.5 7a5 5 0 1 0 0 10a5 5 0 1 0 0-10z" {}
        }
    }
}

/// What changes: the script asks for it again every two seconds.
pub(crate) fn live(view: &View, query: &ViewQuery) -> Markup {
    let Some(known) = &view.known else {
        return html! {
            main #live { (nothing(view)) }
        };
    };
    let now_ms = view.now_ms;
    let all = conversations(&known.flows, &known.recent, RECENT_S, &known.inventory, known.at_ms);
    let shown: Vec<&Conversation> = all.iter().filter(|c| query.wants(c, now_ms)).collect();
    let summary = Summary::of(&all, &known.inventory, query, now_ms);
    let graph = Graph::of(&shown, &known.inventory, query);
    html! {
        main #live.stale[view.problem.is_some()] {
            (banner(view, known))
            (tiles(&summary, query))
            @if let Some(problem) = &known.no_inventory {
                p.note { "Workloads without traffic, and who has no sidecar, are not known: " (problem) }
            }
            (filters(known, &all, query))
            section.card aria-labelledby="picture" {
                div.head {
                    h2 #picture { (heading(query)) }
                    (legend())
                }
                @if graph.edges.is_empty() { (quiet(&all, query)) }
                @if !graph.nodes.is_empty() {
                    div.scroll tabindex="0" role="region" aria-label="Graph of the mesh" { (picture(&graph, query, now_ms)) }
                }
                @if graph.more_nodes + graph.more_edges > 0 {
                    p.note {
                        "and " (plural(graph.more_nodes, "more node", "more nodes")) " and "
                        (plural(graph.more_edges, "more edge", "more edges"))
                        ": choose a namespace to see them"
                    }
                }
            }
            (details(&all, &known.inventory, query, now_ms))
            (table(&shown, query, now_ms))
            footer {
                p {
                    "Rates are of the last minute. Everything seen in the last " (query.window.words())
                    ", as the proxies told the control plane " (seen(view, known)) "."
                }
            }
        }
    }
}

fn seen(view: &View, known: &Known) -> String {
    match view.now_ms.saturating_sub(known.at_ms) {
        ms if ms < 5000 => "just now".to_owned(),
        ms => format!("{} ago", age(ms)),
    }
}

fn banner(view: &View, known: &Known) -> Markup {
    html! {
        @if let Some(problem) = &view.problem {
            div.banner role="alert" {
                strong { "No answer for " (age(view.now_ms.saturating_sub(known.at_ms))) "." }
                " What stands here is the last that was known; the proxies go on with their last good policy meanwhile. "
                span.why { (problem) }
            }
        }
    }
}

/// Nothing was ever known.
fn nothing(view: &View) -> Markup {
    html! {
        section.card.empty {
            h2 { "No answer yet" }
            p { "This page reads the flows of the control plane through the Kubernetes API, and asks again every few seconds." }
            @if let Some(problem) = &view.problem {
                p.why { (problem) }
            }
        }
    }
}

/// There is nothing to draw: why.
fn quiet(all: &[Conversation], query: &ViewQuery) -> Markup {
    html! {
        p.quiet-note {
            @if all.is_empty() {
                "No flows yet: nothing has called anything since the control plane started. The first calls show here within seconds."
            } @else if query.show == Show::Refused {
                "Nothing was refused in the last " (query.window.words()) "."
            } @else if query.show == Show::Plaintext {
                "Nothing went in plaintext in the last " (query.window.words()) "."
            } @else {
                "No calls in the last " (query.window.words()) ". "
                a href=(query.with_window(Window::Day).link()) { "Show the last 24 hours" }
            }
        }
    }
}

fn heading(query: &ViewQuery) -> String {
    let what = match query.show {
        Show::All => "Who talks to whom",
        Show::Refused => "What is refused",
        Show::Plaintext => "What is plaintext",
    };
    match query.namespace.as_deref() {
        None => what.to_owned(),
        Some("") => format!("{what}: outside the mesh"),
        Some(namespace) => format!("{what}: {}", short(namespace, 63)),
    }
}

fn tiles(summary: &Summary, query: &ViewQuery) -> Markup {
    let share = match summary.mtls_share {
        None => "–".to_owned(),
        Some(share) if share >= 1.0 => "100 %".to_owned(),
        // Never rounded up to what it is not.
        Some(share) => format!("{} %", (share * 100.0).floor().clamp(0.0, 99.0)),
    };
    let plaintext = match summary.plaintext_pairs {
        0 => "nothing in the clear".to_owned(),
        1 => "pair still talks in the clear".to_owned(),
        _ => "pairs still talk in the clear".to_owned(),
    };
    let refused = match summary.refused_pairs {
        0 => "nothing refused".to_owned(),
        1 => format!("pair, {} refused", rate(summary.refused_per_s)),
        _ => format!("pairs, {} refused", rate(summary.refused_per_s)),
    };
    let bare = match summary.bare {
        0 => "all with sidecar".to_owned(),
        n => format!("{n} without sidecar"),
    };
    html! {
        dl.tiles {
            div.tile {
                dt { "Workloads" }
                dd { (summary.workloads) }
                dd.small { (plural(summary.namespaces, "namespace", "namespaces")) ", " (bare) }
            }
            div.tile.mtls {
                dt { (sign(Verdict::Mtls)) "Mutual TLS" }
                dd { (share) }
                dd.small { "of " (rate(summary.allowed_per_s)) " let through" }
            }
            div.tile.plain[summary.plaintext_pairs > 0] {
                dt { (sign(Verdict::Plaintext)) "Plaintext" }
                dd { a href=(query.with_show(Show::Plaintext).with_focus(None).link()) { (summary.plaintext_pairs) } }
                dd.small { (plaintext) }
            }
            div.tile.refused[summary.refused_pairs > 0] {
                dt { (sign(Verdict::Refused)) "Refused" }
                dd { a href=(query.with_show(Show::Refused).with_focus(None).link()) { (summary.refused_pairs) } }
                dd.small { (refused) }
            }
        }
    }
}

fn choice(label: &str, link: &str, chosen: bool) -> Markup {
    html! {
        li { a.chosen[chosen] href=(link) aria-current=[chosen.then_some("true")] { (label) } }
    }
}

fn filters(known: &Known, all: &[Conversation], query: &ViewQuery) -> Markup {
    let mut namespaces: BTreeSet<&str> =
        all.iter().flat_map(|c| [c.from.namespace.as_str(), c.to.namespace.as_str()]).collect();
    let there = known.inventory.workloads.keys().map(|(namespace, _)| namespace.as_str());
    namespaces.extend(there.filter(|namespace| !OWN.contains(namespace)));
    let plain = query.with_focus(None);
    html! {
        nav.filters aria-label="What to show" {
            ul {
                @for (show, label) in Show::EVERY {
                    (choice(label, &plain.with_show(show).link(), query.show == show))
                }
            }
            ul {
                (choice("All namespaces", &plain.with_namespace(None).link(), query.namespace.is_none()))
                @for name in namespaces.iter().take(MOST_NAMESPACES) {
                    @let label = if name.is_empty() { "outside" } else { name };
                    @let chosen = query.namespace.as_deref() == Some(name);
                    (choice(&short(label, 32), &plain.with_namespace(Some((*name).to_owned())).link(), chosen))
                }
                @if namespaces.len() > MOST_NAMESPACES {
                    li.more { "and " (namespaces.len() - MOST_NAMESPACES) " more" }
                }
            }
            ul {
                @for (window, label) in Window::EVERY {
                    (choice(label, &plain.with_window(window).link(), query.window == window))
                }
            }
        }
    }
}

fn legend() -> Markup {
    let entries = [
        (Verdict::Mtls, "mutual TLS"),
        (Verdict::Plaintext, "plaintext"),
        (Verdict::Refused, "refused, by"),
        (Verdict::Failed, "unreachable"),
    ];
    html! {
        ul.legend aria-label="Signs" {
            @for (verdict, label) in entries {
                li.(crate::picture::class(verdict)) {
                    svg.stroke viewBox="0 0 26 12" width="26" height="12" aria-hidden="true" {
                        path class={ "edge " (crate::picture::class(verdict)) } d="M1 6H25" {}
                    }
                    (sign(verdict)) (label)
                }
            }
        }
    }
}
