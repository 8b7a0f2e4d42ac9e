//! One pair, or one workload, looked at closely.

use std::collections::BTreeSet;

use maud::{Markup, html};

use crate::conversation::{Conversation, Key, Verdict};
use crate::objects::Inventory;
use crate::picture::{class, sign};
use crate::query::{Focus, ViewQuery};
use crate::table::{name, result};
use crate::text::{ago, count, plural, rate, short};

/// Conversations told in full; those beyond are counted.
const MOST: usize = 24;

/// What the query looks at; nothing if it looks at nothing.
pub(crate) fn details(all: &[Conversation], inventory: &Inventory, query: &ViewQuery, now_ms: u64) -> Markup {
    let Some(focus) = &query.focus else { return html! {} };
    let within = |c: &&Conversation| now_ms.saturating_sub(c.last_seen_ms) <= query.window.ms();
    let about = |c: &&Conversation| match focus {
        Focus::Edge(from, to) => c.from == *from && c.to == *to,
        Focus::Node(key) => c.from == *key || c.to == *key,
    };
    let mut found: Vec<&Conversation> = all.iter().filter(within).filter(about).collect();
    found.sort_by(|a, b| (a.verdict, &a.from, &a.to, a.port).cmp(&(b.verdict, &b.from, &b.to, b.port)));
    let more = found.len().saturating_sub(MOST);
    html! {
        section.card.details #details aria-labelledby="details-of" {
            div.head {
                h2 #details-of {
                    @match focus {
                        Focus::Edge(from, to) => { (name(from)) " → " (name(to)) }
                        Focus::Node(key) => (name(key)),
                    }
                }
                a.close href=(query.with_focus(None).link()) { "Close" }
            }
            @if let Focus::Node(key) = focus { (workload(key, &found, inventory)) }
            @if found.is_empty() {
                p.quiet-note { "No calls in the last " (query.window.words()) "." }
            }
            div.told {
                @for c in found.iter().take(MOST) { (told(c, query, now_ms)) }
            }
            @if more > 0 { p.note { "and " (more) " more: see the table" } }
        }
    }
}

fn workload(key: &Key, found: &[&Conversation], inventory: &Inventory) -> Markup {
    let own =
        |c: &&Conversation| if c.from == *key { c.from_principals.clone() } else { c.to_principals.clone() };
    let principals: BTreeSet<String> = found.iter().flat_map(own).collect();
    let known = inventory.workloads.get(&(key.namespace.clone(), key.name.clone()));
    html! {
        dl.facts {
            dt { "Identity" }
            dd { (identities(&principals)) }
            @if let Some(w) = known {
                dt { "Pods" }
                dd { (plural(w.pods, "Pod", "Pods")) ", " (w.ready) " ready, " (w.with_sidecar) " with sidecar" }
            }
        }
    }
}

fn identities(principals: &BTreeSet<String>) -> Markup {
    html! {
        @if principals.is_empty() { "none proven" }
        @for principal in principals { code { (short(principal, 200)) } " " }
    }
}

fn told(c: &Conversation, query: &ViewQuery, now_ms: u64) -> Markup {
    let link = query.with_focus(Some(Focus::Edge(c.from.clone(), c.to.clone()))).link();
    let by_class = |at: usize| c.total.responses.get(at).copied().unwrap_or(0);
    let is_http = c.total.requests > 0;
    html! {
        article.(class(c.verdict)) {
            h3 {
                (sign(c.verdict)) (result(c)) " "
                a href={ (link) "#details" } { (short(&c.from.name, 60)) " → " (short(&c.to.name, 60)) span.port { ":" (c.port) } }
            }
            dl.facts {
                @if let Some(headline) = c.headline() { dt { "By" } dd { (short(&headline, 300)) } }
                @if !c.cause.reason.is_empty() { dt { "Why" } dd { (c.cause.reason) } }
                @for line in c.dry_runs() { dt { "Dry run" } dd { (short(&line, 300)) } }
                dt { "From" } dd { (identities(&c.from_principals)) }
                dt { "To" } dd { (identities(&c.to_principals)) }
                @if !c.services.is_empty() {
                    dt { "Called as" }
                    dd { @for service in &c.services { (short(service, 200)) " " } }
                }
                dt { "Transport" }
                dd {
                    @match (c.mtls, c.verdict) {
                        (true, _) => "mutual TLS",
                        (false, Verdict::Failed) => "nothing was sent",
                        (false, _) => "plaintext",
                    }
                    ", " (if c.protocol.is_empty() { "unknown protocol" } else { &c.protocol }) ", port " (c.port)
                    @if c.from_client { ", as the client’s proxy saw it" }
                }
                dt { "Calls" }
                dd {
                    (rate(c.per_s)) "; in all "
                    @if is_http { (count(c.total.requests)) " requests" } @else { (count(c.total.connections)) " connections" }
                    @if is_http {
                        " (2xx " (count(by_class(1))) ", 3xx " (count(by_class(2))) ", 4xx " (count(by_class(3)))
                        ", 5xx " (count(by_class(4))) ")"
                    }
                }
                dt { "Seen" }
                dd { "first " (ago(now_ms, c.first_seen_ms)) ", last " (ago(now_ms, c.last_seen_ms)) }
            }
        }
    }
}
