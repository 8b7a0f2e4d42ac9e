//! Each rule by itself.

use super::super::machine::{Before, Move, ask, begin, in_force, is_renewal_due, next, problems, progress};
use super::super::wire::{Kind, Outcome, Phase};
use super::*;

/// A rotation from one CA to another that has just come to a phase.
fn at(phase: Phase, from: &str, to: &str) -> Books {
    let mut books = Books::of(from);
    let step = begin(&books.view(Some(&[]), NOW), &ca(to), Source::SelfSigned, "r", "asked".into());
    books.take(&step.expect("begins"), Some(ca(to)));
    books.state.phase = phase;
    // A while ago, so that reports of now are of this phase.
    books.state.since_ms = NOW - 60_000;
    books
}

fn next_phase(books: &Books, proxies: &[LiveProxy]) -> Option<Phase> {
    next(&books.view(Some(proxies), NOW)).map(|step| step.state.phase)
}

fn why(books: &Books, proxies: &[LiveProxy]) -> Vec<String> {
    let tally = progress(&books.view(Some(proxies), NOW)).expect("under way");
    tally.waiting.into_iter().map(|waiting| format!("{}: {}", waiting.name, waiting.why)).collect()
}

#[test]
fn a_phase_is_left_only_once_every_live_proxy_has_confirmed_it() {
    use Phase::*;
    let distributed = proxy("p", "a", &["a", "b"], &["a", "b"]);
    let renewed = proxy("p", "b", &["a", "b"], &["a", "b"]);
    let done = proxy("p", "b", &["b"], &["b"]);
    let mut silent = distributed.clone();
    silent.seen = None;
    for (phase, proxy, leads_to) in [
        (Distributing, proxy("p", "a", &["a"], &["a"]), None),
        (Distributing, proxy("p", "a", &["a", "b"], &["a"]), None),
        (Distributing, proxy("p", "a", &["a"], &["a", "b"]), None),
        (Distributing, silent.clone(), None),
        (Distributing, distributed.clone(), Some(Signing)),
        (Signing, distributed.clone(), None),
        (Signing, silent.clone(), None),
        (Signing, renewed.clone(), Some(Withdrawing)),
        (Withdrawing, renewed.clone(), None),
        (Withdrawing, silent, None),
        (Withdrawing, done, Some(Idle)),
    ] {
        let books = at(phase, "a", "b");
        assert_eq!(next_phase(&books, std::slice::from_ref(&proxy)), leads_to, "{phase:?} {proxy:?}");
        // One that has confirmed does not speak for another that has not.
        let both = [renewed.clone(), distributed.clone(), proxy];
        let all_confirm = leads_to.is_some() && phase == Distributing;
        assert_eq!(next_phase(&books, &both).is_some(), all_confirm, "{phase:?} {both:?}");
    }
}

#[test]
fn who_counts_and_who_does_not() {
    let books = at(Phase::Distributing, "a", "b");
    let lagging = proxy("p", "a", &["a"], &["a"]);
    assert_eq!(next_phase(&books, &[]), Some(Phase::Signing), "a mesh without proxies");
    assert_eq!(next(&books.view(None, NOW)), None, "nobody is gone as long as the world is not complete");
    for seen in [lagging.seen.clone(), None] {
        for (holds, waits) in [
            (Holds::Until(NOW), false),
            (Holds::Until(NOW + 1), true),
            // Of before this control plane: as long as it may be.
            (Holds::Perhaps(NOW), false),
            (Holds::Perhaps(NOW + 1), true),
            (Holds::Nothing, false),
        ] {
            let proxy = LiveProxy { seen: seen.clone(), holds, ..lagging.clone() };
            let then = (!waits).then_some(Phase::Signing);
            assert_eq!(next_phase(&books, &[proxy]), then, "{seen:?} {holds:?}");
        }
    }
    // Said before the phase began, or just then.
    let mut books = books;
    books.state.since_ms = NOW;
    let starting = LiveProxy { seen: None, holds: Holds::Nothing, ..lagging };
    assert_eq!(next_phase(&books, &[starting]), None, "what is being signed is known only once it is");
    let confirmed = proxy("p", "a", &["a", "b"], &["a", "b"]);
    assert_eq!(next_phase(&books, std::slice::from_ref(&confirmed)), None);
    books.state.since_ms = NOW - 1000;
    assert_eq!(next_phase(&books, &[confirmed]), Some(Phase::Signing));
}

#[test]
fn those_waited_for_are_named_with_the_reason() {
    let mut frozen = proxy("shop/frozen", "a", &["a"], &["a"]);
    frozen.seen.as_mut().expect("seen").at_ms = NOW - 42_000;
    let mut failing = proxy("shop/failing", "a", &["a", "b"], &["a", "b"]);
    failing.seen.as_mut().expect("seen").renewal_error = "no route".to_owned();
    let mut unknown = failing.clone();
    (unknown.name, unknown.seen) = ("shop/unknown".to_owned(), None);
    let distributing = why(&at(Phase::Distributing, "a", "b"), &[frozen.clone(), unknown.clone()]);
    assert!(
        distributing[0].starts_with(
            "shop/frozen: it does not verify peers by root b yet; nothing was heard of it for 42 s"
        ),
        "{distributing:?}"
    );
    assert!(distributing[1].contains("has not said") && distributing[1].contains("given a certificate"));
    unknown.holds = Holds::Perhaps(NOW + DAY);
    let books = at(Phase::Distributing, "a", "b");
    let of_before = why(&books, std::slice::from_ref(&unknown));
    assert!(of_before[0].contains("istio-proxy is no sidecar"), "{of_before:?}");
    let tally = progress(&books.view(Some(&[unknown]), NOW)).expect("under way");
    assert_eq!(tally.waiting[0].not_after_ms, Some(NOW + DAY), "until when it is waited for is said");
    let signing = why(&at(Phase::Signing, "a", "b"), &[failing]);
    assert_eq!(
        signing,
        ["shop/failing: its certificate is still signed by a; its last renewal failed: no route"]
    );
}

#[test]
fn what_is_in_force_never_trusts_nobody_and_always_trusts_its_own() {
    for phase in [Phase::Idle, Phase::Distributing, Phase::Signing, Phase::Withdrawing] {
        let force = in_force(phase);
        // A signer's roots are always distributed; the other's only beside them.
        assert_eq!(force.target_signs, matches!(phase, Phase::Signing | Phase::Withdrawing));
        assert_eq!(force.trusts_both, matches!(phase, Phase::Distributing | Phase::Signing));
    }
}

#[test]
fn kinds_of_change_need_only_what_they_change() {
    for (from, to, kind, waits) in [
        ("a", "b", Kind::Root, [true, true, true]),
        ("i/a", "j/a", Kind::Intermediate, [false, true, false]),
        ("i/a", "i/a+b", Kind::Trust, [true, false, false]),
        ("i/a+b", "i/a", Kind::Trust, [false, false, true]),
        ("a1", "a2", Kind::Renewal, [true, false, true]),
        ("i/a", "j/b", Kind::Root, [true, true, true]),
    ] {
        assert_eq!(ca(from).change_to(&ca(to)), Some(kind), "{from} to {to}");
        let phases = [Phase::Distributing, Phase::Signing, Phase::Withdrawing];
        for (phase, waits) in phases.into_iter().zip(waits) {
            // Signed by neither, trusts what is to go and not what is to come.
            let stuck: Vec<_> = ca(from).roots.into_keys().collect();
            let stuck: Vec<&str> = stuck.iter().map(String::as_str).collect();
            let books = at(phase, from, to);
            let passes = next_phase(&books, &[proxy("p", "other", &stuck, &stuck)]).is_some();
            assert_eq!(passes, !waits, "{from} to {to} {phase:?}");
        }
    }
    assert_eq!(ca("a").change_to(&ca("a")), None);
}

/// Old and new change places, and the way on is the way of every rotation.
#[test]
fn a_rollback_at_each_phase_leads_back_through_the_gate() {
    for (phase, then) in [
        (Phase::Distributing, Phase::Withdrawing),
        (Phase::Signing, Phase::Signing),
        (Phase::Withdrawing, Phase::Distributing),
    ] {
        let mut books = at(phase, "a", "b");
        let step = ask(&books.view(Some(&[]), NOW), &request(Action::Rollback), Err("none".into()));
        assert_eq!(step.state.answer.as_ref().expect("answer").outcome, Outcome::Accepted);
        books.take(&step, None);
        assert_eq!(
            (books.state.phase, &books.current, books.target.as_ref()),
            (then, &ca("b"), Some(&ca("a")))
        );
        let rotation = books.state.rotation.clone().expect("under way");
        assert!(rotation.backwards && rotation.turned);
        // It ends where it began, and the new key is kept nowhere.
        while let Some(step) = next(&books.view(Some(&[]), NOW)) {
            books.take(&step, None);
        }
        assert_eq!((books.state.phase, &books.current, &books.target), (Phase::Idle, &ca("a"), &None));
        assert!(books.state.last.as_ref().expect("ended").rolled_back);
        assert_eq!(books.self_signed, good("a"));
    }
}

#[test]
fn after_a_turn_certificates_on_their_way_are_waited_for() {
    let mut books = at(Phase::Signing, "a", "b");
    let step = ask(&books.view(Some(&[]), NOW), &request(Action::Rollback), Err("none".into()));
    books.take(&step, None);
    books.state.since_ms = NOW - 10_000;
    let back = [proxy("p", "a", &["a", "b"], &["a", "b"])];
    assert_eq!(next_phase(&books, &back), None, "one by b may still be on its way");
    books.state.since_ms = NOW - 15_000;
    assert_eq!(next_phase(&books, &back), Some(Phase::Withdrawing));
}

#[test]
fn a_way_back_to_what_has_expired_is_refused_where_it_would_have_to_sign() {
    for (phase, outcome) in [
        (Phase::Distributing, Outcome::Accepted),
        (Phase::Signing, Outcome::Refused),
        (Phase::Withdrawing, Outcome::Refused),
    ] {
        let mut books = at(phase, "a", "b");
        books.current.ends_ms = NOW;
        let step = ask(&books.view(Some(&[]), NOW), &request(Action::Rollback), Err("none".into()));
        assert_eq!(step.state.answer.expect("answer").outcome, outcome, "{phase:?}");
    }
}

#[test]
fn proceeding_passes_those_named_in_that_phase_only() {
    let stuck = [proxy("s/p", "a", &["a"], &["a"]), proxy("s/q", "a", &["a"], &["a"])];
    let mut books = at(Phase::Distributing, "a", "b");
    let mut wrong = request(Action::Proceed);
    wrong.phase = Some(Phase::Signing);
    let step = ask(&books.view(Some(&stuck), NOW), &wrong, Err("none".into()));
    assert_eq!(step.state.answer.expect("answer").outcome, Outcome::Refused);
    let mut one = request(Action::Proceed);
    (one.phase, one.past) = (Some(Phase::Distributing), vec!["s/p".to_owned(), "s/other".to_owned()]);
    let step = ask(&books.view(Some(&stuck), NOW), &one, Err("none".into()));
    books.take(&step, None);
    assert_eq!(next_phase(&books, &stuck), None, "the other is waited for");
    assert_eq!(next_phase(&books, &stuck[..1]), Some(Phase::Signing));
    let step = ask(&books.view(Some(&stuck), NOW), &request(Action::Proceed), Err("none".into()));
    books.take(&step, None);
    let on = next(&books.view(Some(&stuck), NOW)).expect("on");
    books.take(&on, None);
    books.state.since_ms = NOW - 60_000;
    assert_eq!(books.state.phase, Phase::Signing);
    assert_eq!(next_phase(&books, &stuck), None, "the next phase waits for all again");
    assert_eq!(books.state.rotation.expect("under way").ever_waived, set(&["s/p", "s/q"]));
}

#[test]
fn requests_that_cannot_be_done_are_refused_and_change_nothing() {
    let mut expired = ca("b");
    expired.ends_ms = NOW;
    let mut early = ca("b");
    early.signer.not_before_ms = NOW + DAY;
    let stored = Request { to: Offer::Stored, ..request(Action::Rotate) };
    let renewed = Request { to: Offer::Renewed, ..request(Action::Rotate) };
    for (what, books, asked, offered, says) in [
        ("the same", Books::of("a"), &stored, Ok(ca("a")), "in force already"),
        ("expired", Books::of("a"), &stored, Ok(expired), "has expired"),
        ("not yet valid", Books::of("a"), &stored, Ok(early), "valid only in"),
        ("unusable", Books::of("a"), &stored, Err("no key".to_owned()), "no key"),
        ("plugged in", Books::plugged("i/a"), &request(Action::Rotate), Ok(ca("b")), "plugged in"),
        ("plugged in", Books::plugged("i/a"), &renewed, Ok(ca("b")), "plugged in"),
        ("no root", Books { current: ca("i/a"), ..Books::of("a") }, &renewed, Ok(ca("b")), "no root"),
        ("second", at(Phase::Signing, "a", "b"), &stored, Ok(ca("c")), "under way (signing)"),
        ("nothing", Books::of("a"), &request(Action::Rollback), Ok(ca("b")), "no rotation"),
        ("nothing", Books::of("a"), &request(Action::Proceed), Ok(ca("b")), "no rotation"),
        ("nobody", at(Phase::Signing, "a", "b"), &request(Action::Proceed), Ok(ca("b")), "none of them"),
    ] {
        let step = ask(&books.view(Some(&[]), NOW), asked, offered.as_ref().map_err(Clone::clone));
        let answer = step.state.answer.clone().expect("answer");
        assert_eq!((answer.outcome, step.material), (Outcome::Refused, Move::Nothing), "{what}: {answer:?}");
        assert!(answer.message.contains(says), "{what}: {answer:?}");
        assert_eq!(State { answer: None, ..step.state }, State { answer: None, ..books.state }, "{what}");
    }
    let step = ask(&Books::of("a").view(None, NOW), &stored, Ok(&ca("b")));
    assert_eq!(step.state.answer.expect("answer").outcome, Outcome::Refused, "the world is not complete");
}

#[test]
fn a_dry_run_says_what_would_happen_and_does_nothing() {
    let books = Books::of("a");
    let mut near = ca("b");
    near.roots.get_mut("b").expect("root").not_after_ms = NOW + 3 * DAY;
    let mut frozen = proxy("shop/frozen", "a", &["a"], &["a"]);
    frozen.seen.as_mut().expect("seen").at_ms = NOW - 60_000;
    let proxies = [frozen, proxy("shop/fine", "a", &["a"], &["a"])];
    let asked = Request { dry_run: true, to: Offer::Stored, ..request(Action::Rotate) };
    let step = ask(&books.view(Some(&proxies), NOW), &asked, Ok(&near));
    assert_eq!((step.material, step.state.rotation), (Move::Nothing, None));
    let answer = step.state.answer.expect("answer");
    assert_eq!(answer.outcome, Outcome::Answered);
    let plan = answer.plan.expect("a plan");
    assert_eq!((plan.kind, plan.live), (Kind::Root, 2));
    assert_eq!(plan.phases, [Phase::Distributing, Phase::Signing, Phase::Withdrawing]);
    let names = |of: &[CertificateStatus]| of.iter().map(|c| c.fingerprint.clone()).collect::<Vec<_>>();
    assert_eq!((names(&plan.added), names(&plan.withdrawn)), (vec!["b".to_owned()], vec!["a".to_owned()]));
    assert_eq!(plan.waiting.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), ["shop/frozen"]);
    assert_eq!(plan.problems, ["root 'CN=b' expires in 3 days and 0 hours"]);
}

/// CA-16, CA-17: a fifth of the life is left or not.
#[test]
fn a_root_is_renewed_when_less_than_a_fifth_of_its_life_is_left() {
    let mut books = Books::of("a");
    for (now, due) in [(80 * DAY - 60_000, false), (80 * DAY + 60_000, true), (200 * DAY, true)] {
        assert_eq!(is_renewal_due(&books.view(Some(&[]), now)), due, "{now}");
    }
    let now = 90 * DAY;
    books.current.is_root = false;
    assert!(!is_renewal_due(&books.view(Some(&[]), now)), "an intermediate's root is elsewhere");
    assert!(
        !is_renewal_due(&Books::plugged("a").view(Some(&[]), now)),
        "an operator's root is theirs to renew"
    );
    assert!(!is_renewal_due(&at(Phase::Signing, "a", "b").view(Some(&[]), now)), "one at a time");
}

/// CA-18, CA-20.
#[test]
fn a_replaced_secret_begins_a_rotation_and_a_bad_one_changes_nothing() {
    let mut books = Books::plugged("i/a");
    assert_eq!(next(&books.view(Some(&[]), NOW)), None);
    books.plugged_in = Home::Bad("ca-key.pem is another's".to_owned());
    assert_eq!(next(&books.view(Some(&[]), NOW)), None);
    let said = problems(&books.view(Some(&[]), NOW));
    assert_eq!(said, ["Secret cacerts cannot be used, and changes nothing: ca-key.pem is another's"]);
    books.plugged_in = Home::Absent;
    assert_eq!(next(&books.view(Some(&[]), NOW)), None, "taken away by mistake, it stays in force");
    assert!(problems(&books.view(Some(&[]), NOW))[0].contains("is gone"));
    let mut expired = ca("j/b");
    expired.ends_ms = NOW;
    books.plugged_in = Home::Good(Box::new(expired));
    assert_eq!(next(&books.view(Some(&[]), NOW)), None);
    assert!(problems(&books.view(Some(&[]), NOW))[0].contains("has expired"));
    books.plugged_in = good("j/b");
    let step = next(&books.view(Some(&[]), NOW)).expect("begins");
    assert_eq!((step.state.phase, step.material), (Phase::Distributing, Move::BeginFrom(Source::PluggedIn)));
    books.take(&step, None);
    // Replaced once more meanwhile: next, and not overwritten.
    books.plugged_in = good("k/c");
    assert!(problems(&books.view(Some(&[]), NOW))[0].contains("next after this"));
    while books.state.rotation.is_some() {
        let step = next(&books.view(Some(&[]), NOW)).expect("on");
        assert_eq!(step.before, []);
        books.take(&step, None);
    }
    assert_eq!(books.current, ca("j/b"));
    let step = next(&books.view(Some(&[]), NOW)).expect("the next");
    books.take(&step, None);
    assert_eq!(books.target, Some(ca("k/c")));
}

#[test]
fn what_was_rolled_back_is_not_begun_again_until_it_is_replaced() {
    let mut books = Books::plugged("i/a");
    books.plugged_in = good("j/b");
    let step = next(&books.view(Some(&[]), NOW)).expect("begins");
    books.take(&step, None);
    let step = ask(&books.view(Some(&[]), NOW), &request(Action::Rollback), Err("none".into()));
    books.take(&step, None);
    let mut steps = 0;
    while let Some(step) = next(&books.view(Some(&[]), NOW)) {
        assert_eq!(step.before, [], "what the operator put there is theirs to take back");
        books.take(&step, None);
        steps += 1;
        assert!(steps < 10, "it does not settle: {books:?}");
    }
    assert_eq!((books.state.phase, &books.current), (Phase::Idle, &ca("i/a")));
    assert!(problems(&books.view(Some(&[]), NOW))[0].contains("rolled back"));
    // Taken back and put there once more, it is wanted.
    books.plugged_in = good("i/a");
    while let Some(step) = next(&books.view(Some(&[]), NOW)) {
        books.take(&step, None);
    }
    books.plugged_in = good("j/b");
    assert_eq!(next(&books.view(Some(&[]), NOW)).expect("begins").state.phase, Phase::Distributing);
}

#[test]
fn a_plugged_in_ca_takes_the_place_of_the_own_one_whose_key_is_wiped() {
    let mut books = Books::of("a");
    books.plugged_in = good("i/b");
    let mut before = Vec::new();
    while let Some(step) = next(&books.view(Some(&[]), NOW)) {
        before.extend(step.before.clone());
        books.take(&step, None);
    }
    assert_eq!(before, [Before::Delete(Source::SelfSigned)]);
    assert_eq!((&books.current, books.state.source), (&ca("i/b"), Source::PluggedIn));
    // Taken away, it may be followed by an own one, if somebody says so.
    books.plugged_in = Home::Absent;
    let step = ask(&books.view(Some(&[]), NOW), &request(Action::Rotate), Ok(&ca("c")));
    books.take(&step, Some(ca("c")));
    while let Some(step) = next(&books.view(Some(&[]), NOW)) {
        books.take(&step, None);
    }
    assert_eq!((&books.current, books.state.source), (&ca("c"), Source::SelfSigned));
    assert_eq!(books.self_signed, good("c"));
}

#[test]
fn the_own_secret_comes_back_when_it_is_deleted_and_the_same_ca_in_other_files_is_taken_at_once() {
    let mut books = Books::of("a");
    books.self_signed = Home::Absent;
    let step = next(&books.view(None, NOW)).expect("written");
    assert_eq!(step.before, [Before::WriteCurrent]);
    books.take(&step, None);
    let mut other = ca("a");
    other.files = "with a list of revoked ones".to_owned();
    books.self_signed = Home::Good(Box::new(other.clone()));
    let step = next(&books.view(None, NOW)).expect("taken");
    assert_eq!((step.state.phase, step.material), (Phase::Idle, Move::Refresh(Source::SelfSigned)));
    books.take(&step, None);
    assert_eq!(books.current, other);
    assert_eq!(next(&books.view(None, NOW)), None);
}

#[test]
fn what_cannot_sign_any_more_does_not_begin_to() {
    let mut books = at(Phase::Distributing, "a", "b");
    books.target.as_mut().expect("target").ends_ms = NOW;
    assert_eq!(next_phase(&books, &[]), None);
    assert!(problems(&books.view(Some(&[]), NOW)).iter().any(|p| p.contains("roll it back")));
}

#[test]
fn other_meshes_that_read_the_bundle_get_notice_before_new_roots_sign() {
    use super::super::wire::{Action, Request};
    let proxies = [proxy("p", "b", &["a", "b"], &["a", "b"])];
    let read = |books: &Books, now_ms: u64| {
        let view = View { bundle_is_read: true, ..books.view(Some(&proxies), now_ms) };
        (next(&view).map(|step| step.state.phase), progress(&view).expect("under way").waiting)
    };
    let mut books = at(Phase::Distributing, "a", "b");
    let (phase, waiting) = read(&books, NOW);
    assert_eq!((phase, waiting.len()), (None, 1));
    assert!(waiting[0].name == "other-meshes" && waiting[0].why.contains("120 are left"), "{waiting:?}");
    // An intermediate of the same root is believed by whoever believes the root.
    assert_eq!(read(&at(Phase::Distributing, "i/a", "j/a"), NOW).0, Some(Phase::Signing));
    // Later, and in the phases after.
    assert_eq!(read(&books, NOW + 120_000), (Some(Phase::Signing), Vec::new()));
    assert_eq!(read(&at(Phase::Signing, "a", "b"), NOW).0, Some(Phase::Withdrawing));
    // Or if somebody says that they are not waited for.
    let request = Request {
        id: "x".into(),
        action: Action::Proceed,
        to: Default::default(),
        dry_run: false,
        phase: None,
        past: vec!["other-meshes".into()],
    };
    let view = View { bundle_is_read: true, ..books.view(Some(&proxies), NOW) };
    let step = ask(&view, &request, Err("nothing offered".into()));
    books.state = step.state;
    assert_eq!(read(&books, NOW), (Some(Phase::Signing), Vec::new()));
}
