//! Rules, each set in one atomic transaction of readable text.

use std::fmt::Display;

use crate::NetError;
use crate::command::run;
use crate::netns::NetNs;

/// Applies a transaction in the calling thread's namespace: all of it or nothing.
pub fn apply(text: &str) -> Result<(), NetError> {
    run("nft", &["-f", "-"], Some(text)).map(drop)
}

/// Applies a transaction inside `ns`.
pub fn apply_in(ns: &NetNs, text: &str) -> Result<(), NetError> {
    ns.run(|| apply(text))?
}

/// The rules in force inside `ns`, as `nft list ruleset` prints them.
pub fn list(ns: &NetNs) -> Result<String, NetError> {
    ns.run(|| run("nft", &["list", "ruleset"], None))?
}

/// Text that replaces a table whole, whether or not it exists: applying it twice changes nothing.
pub(crate) fn replace(family: &str, table: &str, body: &str) -> String {
    format!(
        "table {family} {table} {{}}\ndelete table {family} {table}\ntable {family} {table} {{\n{body}}}\n"
    )
}

/// `{ a, b, c }`.
pub(crate) fn set<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    format!("{{ {} }}", items.join(", "))
}
