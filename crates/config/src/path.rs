//! Field paths as Kubernetes prints them: `spec.rules[0].from`, `metadata.annotations[istio.io/dry-run]`.

/// A path that grows and shrinks while an object is walked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldPath(String);

impl FieldPath {
    /// The path of the object itself.
    pub(crate) fn root() -> Self {
        Self::default()
    }

    /// The path of the member `name`. Names that are no identifiers (label keys, ports) go in brackets,
    /// whatever the member's parent is, so that a text position and a schema agree on one spelling.
    #[must_use]
    pub(crate) fn key(&self, name: &str) -> Self {
        let mut path = self.0.clone();
        let starts_plainly = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if starts_plainly && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        } else {
            path.push('[');
            path.push_str(name);
            path.push(']');
        }
        Self(path)
    }

    /// The path of the `index`th element.
    #[must_use]
    pub(crate) fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<FieldPath> for String {
    fn from(path: FieldPath) -> Self {
        path.0
    }
}

/// The paths of the values around `path`, nearest first, without itself.
pub(crate) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| {
        path.rfind(['.', '[']).and_then(|at| path.get(..at)).filter(|_| !path.is_empty())
    })
    .skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_take_dots_and_everything_else_brackets() {
        let path = FieldPath::root().key("metadata").key("annotations").key("istio.io/dry-run");
        assert_eq!(path.as_str(), "metadata.annotations[istio.io/dry-run]");
        assert_eq!(FieldPath::root().key("ports").index(1).key("8080").as_str(), "ports[1][8080]");
    }

    #[test]
    fn ancestors_lead_to_the_root() {
        let all: Vec<_> = ancestors("spec.rules[0].to").collect();
        assert_eq!(all, ["spec.rules[0]", "spec.rules", "spec"]);
        assert_eq!(ancestors("").count(), 0);
    }
}
