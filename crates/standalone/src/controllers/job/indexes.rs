//! Sets of completion indexes as Jobs write them: `1,3-5,7`.

use std::collections::BTreeSet;

use maille_config::k8s::api::core::v1::Pod;

/// The annotation, and label, of an indexed Job's Pod.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Reads a set; what is not of that form, or is not below `limit`, is left out. However great the limit is, there are no
/// more than a Job may have: a status may say anything.
pub(super) fn parse(text: &str, limit: i32) -> BTreeSet<i32> {
    let limit = limit.min(maille_config::MAX_INDEXED_COMPLETIONS);
    let intervals = maille_config::parse_indexes(text).unwrap_or_default();
    intervals.into_iter().flat_map(|(from, to)| from..=to.min(limit - 1)).collect()
}

/// Writes a set.
pub(super) fn print(set: &BTreeSet<i32>) -> String {
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for index in set {
        match parts.last_mut() {
            Some((_, to)) if *to + 1 == *index => *to = *index,
            _ => parts.push((*index, *index)),
        }
    }
    let texts = parts.into_iter().map(|(from, to)| match to - from {
        0 => from.to_string(),
        // Two are written apart, as Kubernetes does.
        1 => format!("{from},{to}"),
        _ => format!("{from}-{to}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

/// The index of a Pod.
pub(super) fn of_pod(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_they_are_read() {
        for text in ["", "0", "0,1", "1,3-5,7", "0-9"] {
            assert_eq!(print(&parse(text, 10)), text);
        }
        assert_eq!(print(&parse("0-9", 4)), "0-3", "indexes beyond the number of completions do not count");
        assert_eq!(print(&parse("x", 4)), "");
        assert_eq!(
            print(&parse("0-2147483647", i32::MAX)),
            "0-99999",
            "a status is not believed beyond the bound"
        );
        let odd: BTreeSet<i32> = (1..maille_config::MAX_INDEXED_COMPLETIONS).step_by(2).collect();
        assert!(print(&odd).len() < 512 * 1024, "the longest status is too long");
    }
}
