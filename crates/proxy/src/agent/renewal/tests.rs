use std::time::SystemTime;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn start() -> Reading {
    Reading { wall: SystemTime::UNIX_EPOCH + HOUR * 500_000, elapsed: HOUR * 7 }
}

fn later(reading: Reading, by: Duration) -> Reading {
    Reading { wall: reading.wall + by, elapsed: reading.elapsed + by }
}

/// CA-21.
#[test]
fn a_days_certificate_is_due_around_half_of_its_life_by_either_clock() {
    for jitter in [-1.0, 0.0, 1.0] {
        let life = Life::new(start(), HOUR * 24, jitter);
        let early = later(start(), HOUR * 11 + HOUR * 3 / 4);
        let late = later(start(), HOUR * 12 + HOUR / 4);
        assert!(life.until_due(early).is_some(), "{jitter}");
        assert_eq!(life.until_due(late), None, "{jitter}");
        // A clock that stands, or was set back, does not keep it.
        assert_eq!(life.until_due(Reading { wall: start().wall - HOUR * 100, ..late }), None);
        assert_eq!(life.until_due(Reading { elapsed: start().elapsed, ..late }), None);
        assert_eq!(life.left(later(start(), HOUR * 20)), Some(HOUR * 4));
        assert_eq!(life.left(later(start(), HOUR * 24)), None);
    }
    // One without a life is asked for again, but not in a loop.
    assert_eq!(Life::new(start(), Duration::ZERO, 0.0).until_due(start()), Some(MIN_DUE));
}

#[test]
fn waits_fit_the_life_that_is_left() {
    let day = Life::new(start(), HOUR * 24, 0.0);
    assert_eq!(day.max_wait(later(start(), HOUR * 12)), MAX_WAIT_WITH);
    assert_eq!(day.max_wait(later(start(), HOUR * 24 - SECOND * 16)), SECOND * 2);
    assert_eq!(day.max_wait(later(start(), HOUR * 25)), MAX_WAIT_WITHOUT);
    let short = Life::new(start(), SECOND * 30, 0.0);
    assert_eq!(short.max_wait(later(start(), SECOND * 22)), SECOND);
    assert_eq!((day.spread(), short.spread()), (MAX_SPREAD, SECOND * 3 / 2));
    assert_eq!((day.shock(), short.shock()), (SECOND * 60, SECOND * 2));
}

fn wants(signer: &str, roots: &[&str]) -> Wanted {
    Wanted {
        signer: Some(signer.to_owned()),
        roots: Some(roots.iter().map(|root| (*root).to_owned()).collect()),
        ..Wanted::default()
    }
}

#[test]
fn an_authority_that_disagrees_with_the_mesh_is_asked_ever_more_rarely() {
    let mut demands = Demands::new();
    let wanted = wants("new", &["a"]);
    let asked = |demands: &mut Demands, wanted: &Wanted, from: Duration| {
        (0..3600)
            .filter(|s| demands.judge(wanted, false, later(start(), from + SECOND * *s)).is_some())
            .count()
    };
    let hour = asked(&mut demands, &wanted, Duration::ZERO);
    assert!((20..80).contains(&hour), "{hour}");
    // It agrees, and disagrees again about something else: that is new.
    assert_eq!(demands.judge(&wanted, true, later(start(), HOUR)), None);
    let other = wants("newer", &["a"]);
    assert_eq!(demands.judge(&other, false, later(start(), HOUR)), Some(Reason::OtherAuthority));
    assert_eq!(demands.judge(&other, false, later(start(), HOUR)), None);
    let revoked = Wanted { revoked: Some("its serial number is revoked".to_owned()), ..other };
    assert_eq!(demands.judge(&revoked, false, later(start(), HOUR)), Some(Reason::Revoked));
}

/// Reference mtls 5.6.
#[test]
fn each_change_of_roots_is_reason_for_one_renewal_and_the_first_roots_are_none() {
    let mut demands = Demands::new();
    let mut judge = |wanted: &Wanted| demands.judge(wanted, true, start());
    assert_eq!(judge(&Wanted::default()), None);
    assert_eq!(judge(&wants("s", &["a"])), None);
    assert_eq!(judge(&wants("s", &["a", "b"])), Some(Reason::OtherRoots));
    assert_eq!(judge(&wants("s", &["a", "b"])), None);
    assert_eq!(judge(&wants("s", &["b"])), Some(Reason::OtherRoots));
}

/// Or the workload would be out of the mesh for minutes after somebody has taken its revocation back.
#[test]
fn who_is_denied_asks_again_within_seconds() {
    let status = |code| IssueError::Refused(Box::new(tonic::Status::new(code, "no")));
    let (denied, unknown) = (status(tonic::Code::PermissionDenied), status(tonic::Code::Unauthenticated));
    let now = start();
    let (long, short) = (HOUR * 24, SECOND * 8);
    for (life, error, longest) in [
        (Some(long), &unknown, MAX_WAIT_WITH),
        (Some(long), &denied, MAX_WAIT_DENIED),
        (Some(short), &denied, short / 8),
        (None, &denied, MAX_WAIT_WITHOUT),
    ] {
        let life = life.map(|length| Life::new(now, length, 0.0));
        assert_eq!(longest_wait(life.as_ref(), error, now), longest);
    }
}
