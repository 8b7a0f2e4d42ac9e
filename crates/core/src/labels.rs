use std::collections::BTreeMap;

/// Labels of a workload or of an object.
pub type Labels = BTreeMap<String, String>;

/// Which workloads a policy selects: those whose labels are a superset.
///
/// An empty selector selects everything in scope (reference authorization 2.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Labels);

impl Selector {
    /// A selector of these label pairs.
    pub fn new(match_labels: Labels) -> Self {
        Self(match_labels)
    }

    /// Whether every pair of the selector is a label; values compare literally, and
    /// an absent key is not an empty value.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether it names no label, so that it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pairs.
    pub fn pairs(&self) -> &Labels {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn selects_supersets_only() {
        let selector = Selector::new(labels(&[("app", "web"), ("v", "1")]));
        assert!(!selector.selects(&labels(&[("app", "web")])));
        assert!(selector.selects(&labels(&[("app", "web"), ("v", "1"), ("x", "y")])));
    }

    #[test]
    fn an_absent_label_is_not_an_empty_one() {
        let selector = Selector::new(labels(&[("app", "")]));
        assert!(!selector.selects(&labels(&[])));
        assert!(selector.selects(&labels(&[("app", "")])));
    }
}
