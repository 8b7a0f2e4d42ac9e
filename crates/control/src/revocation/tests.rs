use super::*;

fn identity(text: &str) -> Identity {
    Identity::parse_uri(text).expect("an identity")
}

fn text(json: &str) -> Listing {
    Listing::Text(json.to_owned())
}

/// All that is revoked if the list says this.
fn listed(listing: &Listing) -> Revocations {
    Revocations::default().with_list(Listed::of(listing))
}

fn time(text: &str) -> SystemTime {
    text.parse::<jiff::Timestamp>().expect("a time").into()
}

const A: &str = "spiffe://cluster.local/ns/shop/sa/a";
const B: &str = "spiffe://cluster.local/ns/shop/sa/b";

#[test]
fn serials_are_one_however_they_are_written() {
    for text in ["0a1b", "A1:B", "0xA1B", " 000a1b ", "0A:1B"] {
        assert_eq!(normal_serial(text), Ok("a1b".to_owned()), "{text}");
    }
    for text in ["", "00", "xyz", "0x", &"1".repeat(41), "ä"] {
        assert!(normal_serial(text).is_err(), "{text}");
    }
    let revocations = listed(&text(r#"[{"serial":"0A:1B"}]"#));
    assert!(revocations.revokes_serial("0a1b") && revocations.revokes_serial("A1B"));
    assert!(!revocations.revokes_serial("a1b0"));
}

#[test]
fn bad_entries_are_named_and_cost_no_good_one_its_force() {
    let json = format!(
        r#"[{{"serial":"1"}},{{}},{{"serial":"2","identity":"{A}"}},{{"identity":"spiffe://x"}},{{"identity":"{A}","before":"soon"}},
           {{"serial":"3","before":"2026-01-01T00:00:00Z"}},7,{{"serial":"4","resaon":"typo"}},{{"identity":"{B}","reason":"leaked"}}]"#
    );
    let revocations = listed(&text(&json));
    assert_eq!(revocations.serials().iter().collect::<Vec<_>>(), ["1"]);
    assert_eq!(revocations.identities().keys().cloned().collect::<Vec<_>>(), [identity(B)]);
    let problems: Vec<&str> = revocations.problems().collect();
    assert_eq!(problems.len(), 7, "{problems:#?}");
    for (number, part) in
        [(1, "neither"), (2, "both"), (3, "no SPIFFE ID"), (4, "soon"), (5, "'before'"), (7, "resaon")]
    {
        let start = format!("{KEY}[{number}]: ");
        assert!(
            problems.iter().any(|p| p.starts_with(&start) && p.contains(part)),
            "{start}{part}: {problems:#?}"
        );
    }
}

#[test]
fn a_list_that_cannot_be_read_takes_nothing_back() {
    let good = Listed::of(&text(&format!(r#"[{{"serial":"1"}},{{"identity":"{A}"}}]"#)));
    assert!(good.problems().is_empty());
    for bad in [text("[{"), text("{}"), Listing::NoKey, text(""), text(r#"[{"serial":"zz"}]"#)] {
        let after = good.next(&bad);
        assert_eq!((after.serials(), after.identities()), (good.serials(), good.identities()), "{bad:?}");
        assert_eq!(after.problems().len(), 1, "{bad:?}");
    }
    let one_typo = good.next(&text(r#"[{"serail":"1"},{"serial":"2"}]"#));
    assert_eq!(one_typo.serials().iter().collect::<Vec<_>>(), ["1", "2"]);
    assert!(one_typo.next(&text("[]")).is_empty(), "a list that can be read decides");
    assert!(good.next(&Listing::Absent).is_empty(), "so does its deletion");
}

#[test]
fn what_is_in_force_is_stored_and_read_again_or_not_at_all() {
    let json = format!(
        r#"[{{"serial":"0A:1B"}},{{"identity":"{A}","before":"2026-01-31T12:00:00.5Z"}},{{"identity":"{B}"}},{{}}]"#
    );
    let in_force = Listed::of(&text(&json));
    assert_eq!(in_force.problems().len(), 1);
    let stored = in_force.to_stored().expect("JSON");
    assert!(stored.len() < json.len(), "what fits into the list's object fits here: {stored}");
    let read = Listed::from_stored(&stored).expect("readable");
    assert_eq!((read.serials(), read.identities()), (in_force.serials(), in_force.identities()));
    assert!(read.problems().is_empty());
    let broken = [
        String::new(),
        "[]".to_owned(),
        stored[..stored.len() - 1].to_owned(),
        stored.replace("a1b", "xyz"),
        stored.replace("spiffe://", "http://"),
        stored.replace("serials", "serial"),
    ];
    for broken in broken {
        assert!(Listed::from_stored(&broken).is_err(), "{broken}");
    }
}

#[test]
fn where_room_is_short_what_was_revoked_before_comes_first_and_the_rest_is_told() {
    let many = |from: usize, count: usize| -> Vec<String> {
        (from..from + count).map(|n| format!(r#"{{"serial":"{n:x}"}}"#)).collect()
    };
    let full = Listed::of(&text(&format!("[{}]", many(1, MAX_ENTRIES).join(","))));
    assert!(full.problems().is_empty());
    let next = full.next(&text(&format!("[7,{}]", many(MAX_ENTRIES, 3).join(","))));
    assert_eq!(next.serials(), full.serials());
    assert!(
        next.problems().iter().any(|problem| problem.starts_with("2 entries are not in force")),
        "{next:?}"
    );
}

#[test]
fn a_moment_spares_what_is_issued_after_it() {
    let json = format!(r#"[{{"identity":"{A}","before":"2026-01-31T12:00:00Z"}},{{"identity":"{B}"}}]"#);
    let revocations = listed(&text(&json));
    assert_eq!(revocations.problems().count(), 0);
    let own = |_: &TrustDomain| true;
    let (before, after) = (time("2026-01-31T11:59:59Z"), time("2026-01-31T12:00:00Z"));
    let revokes = |id: &str, issued| revocations.revokes(&identity(id), "1", start_of(issued), own);
    assert!(revokes(A, before).is_some_and(|why| why.contains(A) && why.contains("revoked")));
    assert_eq!(revokes(A, after), None);
    assert!(revokes(B, after).is_some());
    assert!(revocations.bars(&identity(A), own, before).is_some(), "it would be of no use");
    assert_eq!(revocations.bars(&identity(A), own, after), None);
    assert!(revocations.bars(&identity(B), own, after).is_some());
}

#[test]
fn of_two_entries_for_one_identity_the_wider_holds() {
    let entry = |before: &str| match before {
        "" => format!(r#"{{"identity":"{A}"}}"#),
        before => format!(r#"{{"identity":"{A}","before":"{before}"}}"#),
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    for (first, second, expected) in
        [(early, late, Some(late)), (late, early, Some(late)), (late, "", None), ("", late, None)]
    {
        let json = format!("[{},{}]", entry(first), entry(second));
        let revocations = listed(&text(&json));
        assert_eq!(revocations.identities().get(&identity(A)), Some(&expected.map(time)), "{json}");
    }
}

#[test]
fn other_names_of_the_trust_domain_are_the_same_account() {
    let revocations = listed(&text(&format!(r#"[{{"identity":"{A}"}}]"#)));
    let own = |domain: &TrustDomain| matches!(domain.as_str(), "cluster.local" | "old.td");
    let revokes = |id: &str| revocations.revokes(&identity(id), "1", SystemTime::now(), own).is_some();
    assert!(revokes(A) && revokes("spiffe://old.td/ns/shop/sa/a"));
    assert!(!revokes("spiffe://foreign.td/ns/shop/sa/a") && !revokes("spiffe://old.td/ns/shop/sa/b"));
}

#[test]
fn entries_are_written_as_they_are_read() {
    let entry =
        Entry { serial: Some("a1".to_owned()), reason: Some("leaked".to_owned()), ..Entry::default() };
    let json = serde_json::to_string(std::slice::from_ref(&entry)).expect("JSON");
    assert_eq!(json, r#"[{"serial":"a1","reason":"leaked"}]"#);
    assert_eq!(serde_json::from_str::<Vec<Entry>>(&json).expect("read"), [entry]);
}

#[test]
fn more_entries_than_there_is_room_for_are_told() {
    let many: Vec<String> = (1..=MAX_ENTRIES + 1).map(|n| format!(r#"{{"serial":"{n:x}"}}"#)).collect();
    let revocations = listed(&text(&format!("[{}]", many.join(","))));
    assert_eq!(revocations.serials().len(), MAX_ENTRIES);
    assert!(revocations.problems().next().is_some_and(|p| p.contains("entries")));
}
