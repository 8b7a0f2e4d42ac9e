//! The same facts as in the picture, as a table: one line per pair, port and decision.

use maud::{Markup, html};

use crate::conversation::{Conversation, Key, Verdict};
use crate::picture::{class, sign};
use crate::query::{Focus, ViewQuery};
use crate::text::{ago, count, plural, rate, short};

/// Lines; those beyond are counted.
const MOST_LINES: usize = 250;

/// The table of what is shown.
pub(crate) fn table(shown: &[&Conversation], query: &ViewQuery, now_ms: u64) -> Markup {
    let mut lines: Vec<&Conversation> = shown.to_vec();
    // What needs a look comes first.
    lines.sort_by(|a, b| {
        (a.verdict, &a.from, &a.to, a.port, &a.cause).cmp(&(b.verdict, &b.from, &b.to, b.port, &b.cause))
    });
    let more = lines.len().saturating_sub(MOST_LINES);
    lines.truncate(MOST_LINES);
    html! {
        section.card aria-labelledby="talk" {
            div.head { h2 #talk { "Every pair" } }
            @if lines.is_empty() {
                p.quiet-note { "Nothing to list." }
            } @else {
                table {
                    thead {
                        tr {
                            th scope="col" { "Result" }
                            th scope="col" { "From" }
                            th scope="col" { "To" }
                            th scope="col" { "By" }
                            th.number scope="col" { "Rate" }
                            th.number scope="col" { "Total" }
                            th scope="col" { "Seen" }
                        }
                    }
                    tbody {
                        @for c in lines { (row(c, query, now_ms)) }
                    }
                }
                @if more > 0 {
                    p.note { "and " (plural(more, "more line", "more lines")) ": choose a namespace to see them" }
                }
            }
        }
    }
}

fn row(c: &Conversation, query: &ViewQuery, now_ms: u64) -> Markup {
    let link = query.with_focus(Some(Focus::Edge(c.from.clone(), c.to.clone()))).link();
    html! {
        tr.(class(c.verdict)) {
            td.result { a href={ (link) "#details" } { (sign(c.verdict)) (result(c)) } }
            th scope="row" { (name(&c.from)) }
            td data-label="to" { (name(&c.to)) span.port { ":" (c.port) } }
            td.by { (by(c)) }
            td.number data-label="rate" { (rate(c.per_s)) }
            td.number data-label="total" { (count(c.total.calls())) }
            td data-label="seen" { (ago(now_ms, c.last_seen_ms)) }
        }
    }
}

/// A name with its namespace made small.
pub(crate) fn name(key: &Key) -> Markup {
    html! {
        @if !key.namespace.is_empty() { span.namespace { (short(&key.namespace, 63)) "/" } }
        (short(&key.name, 80))
    }
}

pub(crate) fn result(c: &Conversation) -> &'static str {
    match c.verdict {
        Verdict::Mtls => "mutual TLS",
        Verdict::Plaintext => "plaintext",
        Verdict::Refused => "refused",
        Verdict::Failed => "failed",
    }
}

/// What decided, with the reason where there is more to it.
pub(crate) fn by(c: &Conversation) -> Markup {
    let nearest = c.cause.reason.find("nearest is ").and_then(|at| c.cause.reason.get(at..));
    html! {
        @match c.headline() {
            None => span.none { "no policy applies" },
            Some(headline) => {
                (short(&headline, 120))
                @if c.cause.policy.is_empty() && let Some(nearest) = nearest {
                    span.reason { (short(nearest, 240)) }
                }
            }
        }
        @for line in c.dry_runs().iter().take(1) { span.reason { "dry run: " (short(line, 240)) } }
    }
}
