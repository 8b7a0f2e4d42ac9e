//! The stored list, and changing it without touching what others wrote into it.

use anyhow::{Context, Result};
use maille_control::revocation::{CONFIG_MAP, Entry, KEY, Revoked};
use serde_json::Value;

/// What is to be done to the list.
pub(super) enum Change {
    /// One more entry.
    Add(Entry),
    /// No entry for this.
    Undo(Revoked),
}

/// The list after a change.
#[derive(Debug)]
pub(super) struct Kept {
    /// Whether there is anything to write.
    pub(super) changed: bool,
    /// What to write.
    pub(super) text: String,
    /// How many entries it has.
    pub(super) entries: usize,
    /// What people should know of it.
    pub(super) notes: Vec<String>,
}

/// The stored text with the change. A text that cannot be read is not written over: its revocations may be in force.
pub(super) fn changed(stored: Option<&str>, change: &Change) -> Result<Kept> {
    let mut entries: Vec<Value> = match stored.map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => serde_json::from_str(text).with_context(|| {
            format!(
                "{KEY} of ConfigMap {CONFIG_MAP} is no JSON array, and is not written over; repair it: `kubectl edit \
                 configmap {CONFIG_MAP} -n istio-system`"
            )
        })?,
        None => Vec::new(),
    };
    let before = entries.len();
    let read = |value: &Value| {
        serde_json::from_value::<Entry>(value.clone()).map_err(|e| e.to_string()).and_then(|e| e.read())
    };
    let mut notes: Vec<String> = entries
        .iter()
        .enumerate()
        .filter_map(|(number, value)| {
            Some(format!("{KEY}[{number}] is not in force: {}", read(value).err()?))
        })
        .collect();
    let changed = match change {
        Change::Add(entry) => {
            let target = entry.read().map_err(anyhow::Error::msg)?;
            let covered =
                entries.iter().filter_map(|value| read(value).ok()).any(|known| covers(&known, &target));
            if !covered {
                // A narrower one says nothing any more.
                entries.retain(|value| !read(value).is_ok_and(|known| covers(&target, &known)));
                entries.push(serde_json::to_value(entry)?);
            }
            !covered
        }
        Change::Undo(target) => {
            entries.retain(|value| !read(value).is_ok_and(|known| is_about(&known, target)));
            entries.len() != before
        }
    };
    if notes.len() > 3 {
        let more = notes.len() - 3;
        notes.truncate(3);
        notes.push(format!("and {more} more entries of {KEY} are not in force"));
    }
    let text = entries.iter().map(|entry| format!("  {entry}")).collect::<Vec<_>>().join(",\n");
    let text = if entries.is_empty() { "[]\n".to_owned() } else { format!("[\n{text}\n]\n") };
    Ok(Kept { changed, text, entries: entries.len(), notes })
}

/// Whether everything that `narrow` revokes is revoked by `wide`.
fn covers(wide: &Revoked, narrow: &Revoked) -> bool {
    match (wide, narrow) {
        (Revoked::Serial(a), Revoked::Serial(b)) => a == b,
        (Revoked::Identity(a, until), Revoked::Identity(b, moment)) => {
            a == b && until.is_none_or(|until| moment.is_some_and(|moment| moment <= until))
        }
        _ => false,
    }
}

/// Whether taking `target` back takes this entry back: of an identity, all of its entries.
fn is_about(entry: &Revoked, target: &Revoked) -> bool {
    match (entry, target) {
        (Revoked::Serial(a), Revoked::Serial(b)) => a == b,
        (Revoked::Identity(a, _), Revoked::Identity(b, _)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    fn identity(before: Option<&str>) -> Entry {
        Entry { identity: Some(CART.to_owned()), before: before.map(str::to_owned), ..Entry::default() }
    }

    fn serial(text: &str) -> Entry {
        Entry { serial: Some(text.to_owned()), ..Entry::default() }
    }

    fn parsed(kept: &Kept) -> Vec<Value> {
        serde_json::from_str(&kept.text).expect("JSON")
    }

    #[test]
    fn an_entry_is_added_once_however_it_is_written() {
        let first = changed(None, &Change::Add(serial("0A:1B"))).expect("added");
        assert!(first.changed && first.entries == 1);
        let again = changed(Some(&first.text), &Change::Add(serial("a1b"))).expect("read");
        assert!(!again.changed && again.entries == 1);
        let other = changed(Some(&first.text), &Change::Add(identity(None))).expect("added");
        assert!(other.changed && parsed(&other).len() == 2);
    }

    #[test]
    fn the_wider_revocation_stands_for_the_narrower() {
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let before = changed(None, &Change::Add(identity(Some(early)))).expect("added");
        let wider = changed(Some(&before.text), &Change::Add(identity(Some(late)))).expect("added");
        assert_eq!(parsed(&wider).len(), 1);
        assert_eq!(parsed(&wider)[0]["before"], late);
        let narrower = changed(Some(&wider.text), &Change::Add(identity(Some(early)))).expect("read");
        assert!(!narrower.changed);
        let for_ever = changed(Some(&wider.text), &Change::Add(identity(None))).expect("added");
        assert!(for_ever.changed && parsed(&for_ever)[0].get("before").is_none());
        assert!(!changed(Some(&for_ever.text), &Change::Add(identity(Some(late)))).expect("read").changed);
    }

    #[test]
    fn taking_back_leaves_what_others_wrote() {
        let stored = format!(
            r#"[{{"identity":"{CART}","before":"2026-01-01T00:00:00Z"}},{{"typo":1}},{{"serial":"A1"}},{{"identity":"{CART}"}}]"#
        );
        let target = identity(None).read().expect("a target");
        let kept = changed(Some(&stored), &Change::Undo(target.clone())).expect("changed");
        assert!(kept.changed);
        assert_eq!(parsed(&kept), [serde_json::json!({"typo": 1}), serde_json::json!({"serial": "A1"})]);
        assert!(kept.notes.len() == 1 && kept.notes[0].contains("[1]"), "{:?}", kept.notes);
        assert!(!changed(Some(&kept.text), &Change::Undo(target)).expect("read").changed);
        let last = changed(Some(r#"[{"serial":"a1"}]"#), &Change::Undo(Revoked::Serial("a1".to_owned())));
        assert_eq!(last.expect("changed").text, "[]\n");
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_written_over() {
        for broken in ["{}", "[{", "nothing"] {
            let error = changed(Some(broken), &Change::Add(serial("a1"))).expect_err(broken);
            assert!(error.to_string().contains("repair it"), "{error}");
        }
    }
}
