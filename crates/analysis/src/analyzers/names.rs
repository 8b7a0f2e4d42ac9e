//! Lists of names in messages.

use std::collections::BTreeMap;

use crate::mesh::Workload;

/// How many names a message lists.
const SHOWN: usize = 5;

/// `a, b and 3 more`.
pub(super) fn list<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let mut all: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    all.dedup();
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    if more > 0 { format!("{} and {more} more", all.join(", ")) } else { all.join(", ") }
}

/// The workloads' names, each once and sorted: Pods by what made them.
pub(super) fn workloads<'w>(workloads: impl IntoIterator<Item = &'w Workload<'w>>) -> String {
    let mut names: Vec<String> = workloads.into_iter().map(name).collect();
    names.sort();
    names.dedup();
    list(names)
}

/// `production/cart`: of a Pod that a ReplicaSet made, without the parts that Kubernetes adds.
pub(super) fn name(workload: &Workload<'_>) -> String {
    let own = workload.resource.name();
    let hash = workload.labels.get("pod-template-hash").filter(|_| workload.is_pod());
    let made_by = hash.and_then(|hash| {
        let (set, _) = own.rsplit_once('-')?;
        set.strip_suffix(hash.as_str())?.strip_suffix('-')
    });
    format!("{}/{}", workload.namespace, made_by.unwrap_or(own))
}

/// `app=web,version=v1`.
pub(super) fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The name nearest to what was written, if only a letter or two differ.
pub(super) fn nearest<'n>(written: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let limit = (written.chars().count() / 4).clamp(1, 3);
    let names = names.into_iter().filter(|name| name.len().abs_diff(written.len()) <= limit);
    let measured = names.map(|name| (distance(written, name), name)).filter(|(d, _)| *d <= limit);
    measured.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Insertions, deletions, changes and swaps of neighbours between two texts. Names of Kubernetes are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(256).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // The row above the last one, and the character of `a` between the two.
    let mut above_last: Option<(Vec<usize>, char)> = None;
    for (i, x) in a.chars().take(256).enumerate() {
        let mut previous = i;
        let mut left = i + 1;
        let mut next = vec![left];
        let mut before: Option<char> = None;
        for (j, (y, above)) in b.iter().zip(row.iter().skip(1)).enumerate() {
            left = (previous + usize::from(x != *y)).min(left + 1).min(above + 1);
            if let (Some((older, last)), Some(before)) = (&above_last, before)
                && (*last, before) == (*y, x)
                && let Some(start) = j.checked_sub(1).and_then(|j| older.get(j))
            {
                left = left.min(start + 1);
            }
            previous = *above;
            before = Some(*y);
            next.push(left);
        }
        above_last = Some((std::mem::replace(&mut row, next), x));
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(list(["a", "b"]), "a, b");
        assert_eq!(list(["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }

    #[test]
    fn slips_are_found() {
        let names = ["frontend", "product-catalog", "cart"];
        assert_eq!(nearest("fronted", names), Some("frontend"));
        assert_eq!(nearest("product-catalogue", names), Some("product-catalog"));
        assert_eq!(nearest("card", names), Some("cart"));
        assert_eq!(nearest("orders", names), None);
        assert_eq!(nearest("GTE", ["GET", "PUT"]), Some("GET"));
        for (a, b, expected) in [
            ("abc", "", 3),
            ("", "ab", 2),
            ("ab", "ba", 1),
            ("abcd", "abdc", 1),
            ("abcd", "badc", 2),
            ("ca", "abc", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
