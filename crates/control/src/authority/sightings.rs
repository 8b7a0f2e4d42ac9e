//! What the control planes of one mesh tell each other of their proxies while a rotation is under way: each proxy reports to
//! one of them only, and all of them must know who has confirmed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::state::Seen;

/// A control plane that says nothing for as long is gone: a few times what passes between two of its sheets, while a
/// rotation is under way and else.
const GONE_MS: u64 = 12_000;
const GONE_IDLE_MS: u64 = 40_000;
/// Proxies on one sheet: together with those of a few other control planes they must fit into one ConfigMap.
const MAX_PROXIES: usize = 4000;
/// Longest sheet that is read.
const MAX_BYTES: usize = 1 << 20;

/// What one control plane has heard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sheet {
    /// When it was written, Unix milliseconds of the writer's clock.
    at_ms: u64,
    /// A rotation was under way.
    under_way: bool,
    /// Fingerprints that rows refer to.
    names: Vec<String>,
    /// By uid of the Pod.
    rows: BTreeMap<String, Row>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    at: u64,
    ends: u64,
    signer: usize,
    roots: Vec<usize>,
    control: Vec<usize>,
}

impl Sheet {
    pub(crate) fn of(seen: &BTreeMap<String, Seen>, now_ms: u64, under_way: bool) -> Self {
        let mut names = Vec::new();
        let mut index = BTreeMap::<String, usize>::new();
        let mut number = |name: &String| {
            *index.entry(name.clone()).or_insert_with(|| {
                names.push(name.clone());
                names.len() - 1
            })
        };
        let row = |seen: &Seen, number: &mut dyn FnMut(&String) -> usize| Row {
            at: seen.at_ms,
            ends: seen.not_after_ms,
            signer: number(&seen.signer),
            roots: seen.roots.iter().map(&mut *number).collect(),
            control: seen.control_roots.iter().map(&mut *number).collect(),
        };
        let rows = seen.iter().take(MAX_PROXIES).map(|(uid, seen)| (uid.clone(), row(seen, &mut number)));
        let rows = rows.collect();
        Self { at_ms: now_ms, under_way, names, rows }
    }

    pub(crate) fn read(text: &str) -> Option<Self> {
        (text.len() <= MAX_BYTES).then(|| serde_json::from_str(text).ok())?
    }

    pub(crate) fn at_ms(&self) -> u64 {
        self.at_ms
    }

    pub(crate) fn is_gone(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) > if self.under_way { GONE_MS } else { GONE_IDLE_MS }
    }

    /// What it says, by uid. A clock that is ahead must not make old news young: nothing is newer than its age at the time
    /// of reading allows.
    pub(crate) fn seen(&self, now_ms: u64) -> impl Iterator<Item = (String, Seen)> + '_ {
        let name = |at: &usize| self.names.get(*at).cloned().unwrap_or_default();
        self.rows.iter().map(move |(uid, row)| {
            let age = self.at_ms.saturating_sub(row.at);
            let seen = Seen {
                at_ms: row.at.min(now_ms.saturating_sub(age)),
                signer: name(&row.signer),
                not_after_ms: row.ends,
                roots: row.roots.iter().map(name).collect(),
                control_roots: row.control.iter().map(name).collect(),
                renewal_error: String::new(),
            };
            (uid.clone(), seen)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_clock_ahead_makes_nothing_young() {
        let seen = |at_ms, signer: &str| Seen {
            at_ms,
            signer: signer.to_owned(),
            not_after_ms: 9,
            roots: ["a".to_owned(), "b".to_owned()].into(),
            control_roots: ["b".to_owned()].into(),
            renewal_error: String::new(),
        };
        let all = BTreeMap::from([("p".to_owned(), seen(900, "a")), ("q".to_owned(), seen(1000, "c"))]);
        let text = serde_json::to_string(&Sheet::of(&all, 1000, true)).expect("JSON");
        let read = Sheet::read(&text).expect("a sheet");
        assert_eq!(read.seen(1000).collect::<BTreeMap<_, _>>(), all);
        // The writer's clock is 500 ahead.
        let ages: Vec<u64> = read.seen(500).map(|(_, seen)| seen.at_ms).collect();
        assert_eq!(ages, [400, 500]);
        assert!(read.is_gone(1001 + GONE_MS) && !read.is_gone(1000 + GONE_MS));
        assert_eq!(Sheet::read("nonsense"), None);
        assert_eq!(Sheet::read(r#"{"at_ms":1,"under_way":true,"names":[],"rows":{"p":{"at":1,"ends":2,"signer":7,"roots":[9],"control":[]}}}"#).expect("read").seen(1).count(), 1);
    }
}
