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
    /// From when on it holds all that the writer has issued, Unix milliseconds of its clock; 0: it does not say.
    #[serde(default)]
    since: u64,
    /// Fingerprints that rows refer to.
    names: Vec<String>,
    /// By uid of the Pod.
    rows: BTreeMap<String, Row>,
    /// When the certificates end of those that have said nothing, by uid of the Pod.
    #[serde(default)]
    issued: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    at: u64,
    /// When its last certificate ends; 0: that is not known.
    ends: u64,
    signer: usize,
    roots: Vec<usize>,
    control: Vec<usize>,
}

impl Sheet {
    /// Only shows that its writer is there.
    pub(crate) fn empty(now_ms: u64, under_way: bool) -> Self {
        Self { at_ms: now_ms, under_way, ..Self::default() }
    }

    /// While a rotation is under way. `issued`: when the last certificate of each Pod ends, as far as the writer knows, which is all since `since_ms`.
    pub(crate) fn of(
        seen: &BTreeMap<String, Seen>,
        issued: &BTreeMap<String, u64>,
        since_ms: u64,
        now_ms: u64,
    ) -> Self {
        let mut names = Vec::new();
        let mut index = BTreeMap::<String, usize>::new();
        let mut number = |name: &String| {
            *index.entry(name.clone()).or_insert_with(|| {
                names.push(name.clone());
                names.len() - 1
            })
        };
        let row = |uid: &String, seen: &Seen, number: &mut dyn FnMut(&String) -> usize| Row {
            at: seen.at_ms,
            ends: issued.get(uid).copied().unwrap_or(0),
            signer: number(&seen.signer),
            roots: seen.roots.iter().map(&mut *number).collect(),
            control: seen.control_roots.iter().map(&mut *number).collect(),
        };
        let rows = seen.iter().take(MAX_PROXIES);
        let rows: BTreeMap<_, _> =
            rows.map(|(uid, seen)| (uid.clone(), row(uid, seen, &mut number))).collect();
        let others = issued.iter().filter(|(uid, ends)| **ends > now_ms && !rows.contains_key(*uid));
        let others: BTreeMap<_, _> =
            others.take(MAX_PROXIES).map(|(uid, ends)| (uid.clone(), *ends)).collect();
        let (since, issued) = match rows.len() + others.len() < MAX_PROXIES {
            true => (since_ms, others),
            // What does not fit is as good as not known.
            false => (now_ms, BTreeMap::new()),
        };
        Self { at_ms: now_ms, under_way: true, since, names, rows, issued }
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

    /// When certificates end, by uid of the Pod, as far as it tells.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (&String, u64)> {
        // One that does not say since when may only repeat what proxies say of themselves.
        let rows = self.rows.iter().filter(|(_, row)| self.since > 0 && row.ends > 0);
        let others = self.issued.iter().map(|(uid, ends)| (uid, *ends));
        rows.map(|(uid, row)| (uid, row.ends)).chain(others)
    }

    /// Until when its writer may have issued what is not on it, by the reader's clock, as if it had been written just now.
    pub(crate) fn dark_until_ms(&self, now_ms: u64) -> u64 {
        match self.since {
            0 => now_ms,
            since => now_ms.saturating_sub(self.at_ms.saturating_sub(since)),
        }
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
            roots: ["a".to_owned(), "b".to_owned()].into(),
            control_roots: ["b".to_owned()].into(),
            renewal_error: String::new(),
        };
        let all = BTreeMap::from([("p".to_owned(), seen(900, "a")), ("q".to_owned(), seen(1000, "c"))]);
        let issued =
            BTreeMap::from([("p".to_owned(), 1009), ("silent".to_owned(), 1010), ("over".to_owned(), 999)]);
        let text = serde_json::to_string(&Sheet::of(&all, &issued, 600, 1000)).expect("JSON");
        let read = Sheet::read(&text).expect("a sheet");
        assert_eq!(read.seen(1000).collect::<BTreeMap<_, _>>(), all);
        let ends: Vec<_> = read.ends().map(|(uid, ends)| (uid.as_str(), ends)).collect();
        assert_eq!((ends, read.dark_until_ms(1500)), (vec![("p", 1009), ("silent", 1010)], 1100));
        // The writer's clock is 500 ahead.
        let ages: Vec<u64> = read.seen(500).map(|(_, seen)| seen.at_ms).collect();
        assert_eq!(ages, [400, 500]);
        assert!(read.is_gone(1001 + GONE_MS) && !read.is_gone(1000 + GONE_MS));
        assert_eq!(Sheet::read("nonsense"), None);
        // What an older control plane writes: it repeats when proxies said that their certificates end.
        let row = r#"{"at":1,"ends":2,"signer":7,"roots":[9],"control":[]}"#;
        let old = format!(r#"{{"at_ms":1,"under_way":true,"names":[],"rows":{{"p":{row}}}}}"#);
        let old = Sheet::read(&old).expect("read");
        assert_eq!((old.seen(1).count(), old.ends().count(), old.dark_until_ms(5)), (1, 0, 5));
    }
}
