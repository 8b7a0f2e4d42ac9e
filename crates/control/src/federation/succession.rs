//! Which of two bundles of one endpoint is the newer.

use maille_pki::BundleDocument;

/// What a bundle is to the last good one of the same endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Succession {
    /// It says the same, be it under another number.
    Same,
    /// It takes the place of the last one.
    New,
    /// It is older, and would bring roots back that have been withdrawn.
    Older {
        /// The sequence numbers of the last one, and of this.
        known: u64,
        found: u64,
    },
}

/// Judges by `spiffe_sequence`, which is "a monotonically increasing integer" (SPIFFE Trust Domain and Bundle section 4.1.2).
///
/// It may be missing: then there is no order, and what comes is newer. The same content under a lower number is no change:
/// control planes of one mesh count apart. (SPIRE takes whatever differs; whoever could replay an answer, or a cache on the
/// way, would bring a withdrawn root back there.)
pub(super) fn succession(known: Option<&BundleDocument>, found: &BundleDocument) -> Succession {
    let Some(known) = known else { return Succession::New };
    let is_same = known.roots == found.roots && known.jwt_keys == found.jwt_keys;
    match (known.sequence, found.sequence) {
        _ if is_same => Succession::Same,
        (Some(known), Some(found)) if found < known => Succession::Older { known, found },
        _ => Succession::New,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(key: u8, sequence: Option<u64>) -> BundleDocument {
        let jwt_keys = vec![serde_json::Map::from_iter([("kid".to_owned(), key.into())])];
        BundleDocument { jwt_keys, sequence, ..BundleDocument::default() }
    }

    #[test]
    fn a_lower_sequence_number_is_older_unless_nothing_has_changed() {
        let known = bundle(1, Some(7));
        assert_eq!(succession(None, &known), Succession::New);
        for (found, expected) in [
            (bundle(1, Some(7)), Succession::Same),
            (bundle(1, Some(6)), Succession::Same),
            (bundle(1, Some(8)), Succession::Same),
            (bundle(2, Some(8)), Succession::New),
            // The standard forbids it; which is newer is not known.
            (bundle(2, Some(7)), Succession::New),
            (bundle(2, Some(6)), Succession::Older { known: 7, found: 6 }),
            (bundle(2, None), Succession::New),
        ] {
            assert_eq!(succession(Some(&known), &found), expected, "{found:?}");
        }
        assert_eq!(succession(Some(&bundle(1, None)), &bundle(2, Some(1))), Succession::New);
    }
}
