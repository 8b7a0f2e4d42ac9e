//! `exportTo`: which namespaces see an object.

/// Whether an object of `own` namespace is seen from `namespace`: an empty list is everybody, `.` the own namespace, `~`
/// nobody (Istio's `exportToDefaults` stay at `*`).
pub fn exported_to(export_to: &[String], own: &str, namespace: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|entry| match entry.as_str() {
            "*" => true,
            "." => own == namespace,
            "~" => false,
            name => name == namespace,
        })
}

/// Whether only the own namespace sees it.
pub(crate) fn is_private(export_to: &[String], own: &str) -> bool {
    !export_to.is_empty() && export_to.iter().all(|entry| entry == "." || entry == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_say_who_sees() {
        for (list, shop, bank, private) in [
            (&[][..], true, true, false),
            (&["*"], true, true, false),
            (&["."], true, false, true),
            (&["shop"], true, false, true),
            (&["bank"], false, true, false),
            (&[".", "bank"], true, true, false),
            (&["~"], false, false, false),
        ] {
            let list: Vec<String> = list.iter().map(|s| (*s).to_owned()).collect();
            assert_eq!(exported_to(&list, "shop", "shop"), shop, "{list:?}");
            assert_eq!(exported_to(&list, "shop", "bank"), bank, "{list:?}");
            assert_eq!(is_private(&list, "shop"), private, "{list:?}");
        }
    }
}
