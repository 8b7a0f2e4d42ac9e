//! What comes next: state and what is seen in, the next state out. No clock, no input or output.
//!
//! A [`Step`] is stored as a whole, with the movements of material that it names, before anything of it takes effect; what
//! is in force follows from what is stored alone ([`in_force`]). So a control plane that ends anywhere goes on, when it
//! comes back, from where it was: either the step is stored, or it is decided again.

use super::gate::{Need, Tally, silent, tally};
use super::state::{Ca, Home, Rotation, Source, State, View};
use super::wire::{Action, Answer, Ended, Kind, Offer, Outcome, Phase, Plan, Request, Waiting};
use crate::federation::{OTHERS, notice_owed};

/// Share of a self-signed root's life that is left when it is renewed, in percent (CA-16, CA-17).
const RENEW_BELOW_PERCENT: u64 = 20;
/// After a rollback of a renewal, the next is not tried before this time.
const RENEWAL_PAUSE_MS: u64 = 3_600_000;
/// What ends sooner is warned of.
const WARN_MS: u64 = 30 * 24 * 3_600_000;
/// Waiting proxies that an answer to a question names.
const NAMED: usize = 100;
/// Roots that may be trusted at a time.
const MAX_ROOTS: usize = 32;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Done before the step is stored. Doing it twice does no harm.
    pub(crate) before: Vec<Before>,
    /// What is stored.
    pub(crate) state: State,
    /// What becomes of the stored material in the same write.
    pub(crate) material: Move,
}

/// What is written to the Secrets of authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// The current material to its Secret.
    WriteCurrent,
    /// The target to its Secret.
    WriteTarget,
    /// This Secret goes, since the key in it is not to sign any more.
    Delete(Source),
}

/// What becomes of stored material.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// It stays.
    Nothing,
    /// What was offered becomes the target.
    Begin,
    /// What this Secret holds becomes the target.
    BeginFrom(Source),
    /// Current and target change places.
    Exchange,
    /// The target becomes current; what was current is wiped.
    Adopt,
    /// What this Secret holds becomes current: the same signer and roots in other files.
    Refresh(Source),
}

/// Which of current and target signs, and whether roots of the other are trusted, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) target_signs: bool,
    pub(crate) trusts_both: bool,
}

/// What is in force in a phase.
pub(crate) fn in_force(phase: Phase) -> InForce {
    match phase {
        Phase::Idle => InForce { target_signs: false, trusts_both: false },
        Phase::Distributing => InForce { target_signs: false, trusts_both: true },
        Phase::Signing => InForce { target_signs: true, trusts_both: true },
        Phase::Withdrawing => InForce { target_signs: true, trusts_both: false },
    }
}

/// Who has confirmed the phase that the rotation is at; `None` without one, and while the world is not complete.
pub(crate) fn progress(view: &View<'_>) -> Option<Tally> {
    let need = Need::of(view.state.phase, view.current, view.target?);
    let rotation = view.state.rotation.as_ref();
    let since = view.state.since_ms;
    let mut tally = tally(&need, since, rotation, view.proxies?, view.now_ms);
    if matches!(need, Need::Roots(_))
        && view.bundle_is_read
        && let Some(why) = notice_owed(since, view.now_ms)
    {
        let name = OTHERS.to_owned();
        match rotation.is_some_and(|rotation| rotation.waived.contains(OTHERS)) {
            true => tally.waived.push(name),
            false => tally.waiting.push(Waiting { name, uid: String::new(), why, not_after_ms: None }),
        }
    }
    Some(tally)
}

/// The next step that nobody has to ask for; `None`: there is nothing to do but wait.
pub(crate) fn next(view: &View<'_>) -> Option<Step> {
    match (&view.state.rotation, view.target) {
        (Some(rotation), Some(target)) => advance(view, rotation, target),
        _ => look_home(view),
    }
}

fn advance(view: &View<'_>, rotation: &Rotation, target: &Ca) -> Option<Step> {
    if !progress(view)?.is_passed() {
        return None;
    }
    let mut state = view.state.clone();
    state.since_ms = view.now_ms;
    if let Some(rotation) = &mut state.rotation {
        rotation.waived.clear();
        rotation.turned = false;
    }
    state.phase = match view.state.phase {
        // What cannot sign must not begin to.
        Phase::Distributing if unfit(target, view.now_ms).is_some() => return None,
        Phase::Distributing => Phase::Signing,
        Phase::Signing => Phase::Withdrawing,
        Phase::Withdrawing | Phase::Idle => return Some(finish(view, rotation, target, state)),
    };
    Some(Step { before: Vec::new(), state, material: Move::Nothing })
}

fn finish(view: &View<'_>, rotation: &Rotation, target: &Ca, mut state: State) -> Step {
    let mut before = Vec::new();
    let (source, home) = (rotation.source, view.home(rotation.source));
    let writes = match source {
        // What an operator has put there is theirs to take back.
        Source::PluggedIn => {
            !rotation.backwards && (is(home, view.current) || is_rolled_back(view.state, home))
        }
        // A third CA that was put there meanwhile is not overwritten: it is next.
        Source::SelfSigned => {
            *home == Home::Absent || is(home, view.current) || view.state.source == Source::PluggedIn
        }
    };
    let writes = writes && !is(home, target);
    if writes {
        before.push(Before::WriteTarget);
    }
    // The key that signed until now is in no Secret any more once it signs no more.
    if view.state.source == Source::SelfSigned
        && source == Source::PluggedIn
        && is(view.self_signed, view.current)
    {
        before.push(Before::Delete(Source::SelfSigned));
    }
    let stays = is(view.home(view.state.source), view.current) && !(writes && view.state.source == source);
    if rotation.backwards {
        state.rolled_back = stays.then(|| view.current.name());
    }
    state.phase = Phase::Idle;
    state.rotation = None;
    state.source = source;
    state.last = Some(Ended {
        id: rotation.id.clone(),
        kind: rotation.kind,
        rolled_back: rotation.backwards,
        started_ms: rotation.started_ms,
        ended_ms: view.now_ms,
        signer: target.signer.fingerprint.clone(),
        waived: rotation.ever_waived.iter().cloned().collect(),
    });
    Step { before, state, material: Move::Adopt }
}

fn is_rolled_back(state: &State, home: &Home) -> bool {
    matches!((home, &state.rolled_back), (Home::Good(found), Some(name)) if found.name() == *name)
}

fn is(home: &Home, ca: &Ca) -> bool {
    matches!(home, Home::Good(found) if found.name() == ca.name())
}

/// The Secret whose material should be in force, and what it holds: the plugged-in one if there is one, and none but it
/// once it was in force, since taking it away is more often a mistake than a wish.
fn wanted<'a>(view: &View<'a>) -> (Source, &'a Home) {
    match (view.state.source, view.plugged_in) {
        (Source::SelfSigned, Home::Absent) => (Source::SelfSigned, view.self_signed),
        (_, home) => (Source::PluggedIn, home),
    }
}

fn look_home(view: &View<'_>) -> Option<Step> {
    let (source, home) = wanted(view);
    let state = view.state.clone();
    match home {
        Home::Absent if source == Source::SelfSigned => {
            Some(Step { before: vec![Before::WriteCurrent], state, material: Move::Nothing })
        }
        Home::Absent | Home::Bad(_) => None,
        Home::Good(_) if is_rolled_back(view.state, home) => None,
        Home::Good(found) => {
            let cause = format!("Secret {} was replaced", source.secret());
            match begin(view, found, source, &format!("secret-{}", view.now_ms), cause) {
                Ok(mut step) => {
                    step.material = Move::BeginFrom(source);
                    Some(step)
                }
                // The same CA from another Secret, or in other files: nothing that proxies would have to confirm.
                Err(Refusal::Same) if found.files != view.current.files || source != view.state.source => {
                    let state = State { source, rolled_back: None, ..state };
                    Some(Step { before: Vec::new(), state, material: Move::Refresh(source) })
                }
                // Whatever was rolled back is not there any more, so that it may come again.
                Err(Refusal::Same) if state.rolled_back.is_some() => {
                    let state = State { rolled_back: None, ..state };
                    Some(Step { before: Vec::new(), state, material: Move::Nothing })
                }
                Err(_) => None,
            }
        }
    }
}

/// Whether the current root is near its end and is the control plane's own to renew (CA-16 to CA-18).
pub(crate) fn is_renewal_due(view: &View<'_>) -> bool {
    let (state, signer) = (view.state, &view.current.signer);
    if state.rotation.is_some() || state.source != Source::SelfSigned || !view.current.is_root {
        return false;
    }
    let paused = state.last.as_ref().is_some_and(|last| {
        last.kind == Kind::Renewal
            && last.rolled_back
            && view.now_ms.saturating_sub(last.ended_ms) < RENEWAL_PAUSE_MS
    });
    let life = signer.not_after_ms.saturating_sub(signer.not_before_ms);
    let left = signer.not_after_ms.saturating_sub(view.now_ms);
    !paused && left.saturating_mul(100) < life.saturating_mul(RENEW_BELOW_PERCENT)
}

/// Why a rotation does not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It would change nothing.
    Same,
    /// One is under way, or what is offered cannot be used.
    Other(String),
}

/// The first step of a rotation to what is offered.
pub(crate) fn begin(
    view: &View<'_>,
    offered: &Ca,
    source: Source,
    id: &str,
    cause: String,
) -> Result<Step, Refusal> {
    if let Some(rotation) = &view.state.rotation {
        let at = view.state.phase.name();
        return Err(Refusal::Other(format!(
            "rotation {} is under way ({at}); wait for its end, or roll it back",
            rotation.id
        )));
    }
    if let Some(reason) = unfit(offered, view.now_ms) {
        return Err(Refusal::Other(reason));
    }
    let kind = view.current.change_to(offered).ok_or(Refusal::Same)?;
    let roots = offered.roots.len() + view.current.roots.len();
    if roots > MAX_ROOTS {
        return Err(Refusal::Other(format!(
            "old and new roots together are {roots}, more than the {MAX_ROOTS} that are distributed at most"
        )));
    }
    let rotation = Rotation {
        id: id.to_owned(),
        kind,
        cause,
        started_ms: view.now_ms,
        backwards: false,
        turned: false,
        source,
        waived: Default::default(),
        ever_waived: Default::default(),
    };
    let state = State {
        phase: Phase::Distributing,
        since_ms: view.now_ms,
        rotation: Some(rotation),
        rolled_back: view.state.rolled_back.clone().filter(|name| *name != offered.name()),
        ..view.state.clone()
    };
    Ok(Step { before: Vec::new(), state, material: Move::Begin })
}

/// Why this cannot sign now.
pub(crate) fn unfit(ca: &Ca, now_ms: u64) -> Option<String> {
    let signer = &ca.signer;
    if signer.not_before_ms > now_ms {
        let after = (signer.not_before_ms - now_ms) / 1000;
        return Some(format!("the signing certificate '{}' is valid only in {after} s", signer.subject));
    }
    if ca.ends_ms <= now_ms {
        return Some(format!("the signing certificate '{}', or its chain, has expired", signer.subject));
    }
    None
}

/// What ends too soon for comfort.
pub(crate) fn soon(ca: &Ca, now_ms: u64) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |what: &str, subject: &str, ends_ms: u64| {
        let left = ends_ms.saturating_sub(now_ms);
        if left == 0 {
            found.push(format!("{what} '{subject}' has expired"));
        } else if left < WARN_MS {
            let hours = left / 3_600_000;
            found.push(format!("{what} '{subject}' expires in {} days and {} hours", hours / 24, hours % 24));
        }
    };
    let signer = &ca.signer;
    if !ca.roots.contains_key(&signer.fingerprint) {
        look("signing certificate", &signer.subject, signer.not_after_ms);
    }
    for root in ca.roots.values() {
        look("root", &root.subject, root.not_after_ms);
    }
    found
}

/// Answers a request: the step to take, which holds the answer. `offered` is what it offers, checked, or why not.
pub(crate) fn ask(view: &View<'_>, request: &Request, offered: Result<&Ca, String>) -> Step {
    let refused = |message: String| answer(view, request, Outcome::Refused, message, None);
    if view.proxies.is_none() {
        return refused(
            "the control plane does not know the mesh's proxies yet; try again in a moment".to_owned(),
        );
    }
    match request.action {
        Action::Rotate => rotate(view, request, offered),
        Action::Rollback => roll_back(view, request),
        Action::Proceed => proceed(view, request),
    }
}

fn answer(view: &View<'_>, request: &Request, outcome: Outcome, message: String, plan: Option<Plan>) -> Step {
    let mut state = view.state.clone();
    state.answer = Some(Answer { id: request.id.clone(), outcome, message, plan });
    Step { before: Vec::new(), state, material: Move::Nothing }
}

fn with_answer(mut step: Step, request: &Request, message: String) -> Step {
    let id = request.id.clone();
    step.state.answer = Some(Answer { id, outcome: Outcome::Accepted, message, plan: None });
    step
}

fn rotate(view: &View<'_>, request: &Request, offered: Result<&Ca, String>) -> Step {
    let refused = |message: String| answer(view, request, Outcome::Refused, message, None);
    // A plugged-in CA that was taken away may be followed by one of the control plane's own.
    let own = view.state.source == Source::SelfSigned || *view.plugged_in == Home::Absent;
    if request.to != Offer::Stored && !own {
        return refused(
            "the CA is plugged in (Secret cacerts), and its root's key is not here; offer the new material, or replace \
             the Secret"
                .to_owned(),
        );
    }
    if request.to == Offer::Renewed && !view.current.is_root {
        return refused("the signing certificate is no root, so it cannot renew itself".to_owned());
    }
    let offered = match offered {
        Ok(offered) => offered,
        Err(reason) => return refused(reason),
    };
    let source = if own { Source::SelfSigned } else { Source::PluggedIn };
    match begin(view, offered, source, &request.id, "asked for".to_owned()) {
        Err(Refusal::Same) => refused("this CA is in force already".to_owned()),
        Err(Refusal::Other(reason)) => refused(reason),
        Ok(step) if request.dry_run => {
            let plan = plan(view, &step, offered, source);
            let waited = plan.as_ref().map_or(0, |plan| plan.waiting.len());
            let message = match waited {
                0 => "it would begin now, and every live proxy can confirm".to_owned(),
                n => format!("it would begin now, and {n} live proxies would be waited for as they are"),
            };
            answer(view, request, Outcome::Answered, message, plan)
        }
        Ok(step) => with_answer(step, request, "begun".to_owned()),
    }
}

fn plan(view: &View<'_>, step: &Step, to: &Ca, source: Source) -> Option<Plan> {
    let proxies = view.proxies?;
    let phases = [Phase::Distributing, Phase::Signing, Phase::Withdrawing];
    let mut waiting = silent(proxies, view.now_ms);
    waiting.truncate(NAMED);
    Some(Plan {
        kind: step.state.rotation.as_ref()?.kind,
        to: to.status(source),
        phases: phases.into_iter().filter(|p| Need::of(*p, view.current, to) != Need::Nothing).collect(),
        added: to.roots_beyond(view.current),
        withdrawn: view.current.roots_beyond(to),
        live: tally(&Need::Nothing, 0, None, proxies, view.now_ms).live,
        waiting,
        problems: soon(to, view.now_ms),
    })
}

fn roll_back(view: &View<'_>, request: &Request) -> Step {
    let refused = |message: String| answer(view, request, Outcome::Refused, message, None);
    let Some(rotation) = &view.state.rotation else {
        return refused("no rotation is under way; to go back to an earlier CA, rotate to it".to_owned());
    };
    // Old and new change places, and the phases are walked to the end from where that leaves them.
    let phase = match view.state.phase {
        Phase::Distributing => Phase::Withdrawing,
        Phase::Withdrawing => Phase::Distributing,
        other => other,
    };
    // In these two the other one would begin to sign sooner or later; in the third it has never ceased to.
    if phase != Phase::Withdrawing
        && let Some(reason) = unfit(view.current, view.now_ms)
    {
        return refused(format!("there is no way back: {reason}"));
    }
    let message = match phase {
        Phase::Withdrawing => "rolled back: the new roots are withdrawn".to_owned(),
        Phase::Signing => "rolled back: the old certificate signs again".to_owned(),
        _ => "rolled back: the old roots are distributed again first".to_owned(),
    };
    if request.dry_run {
        return answer(view, request, Outcome::Answered, message, None);
    }
    let rotation = Rotation {
        backwards: !rotation.backwards,
        turned: true,
        source: view.state.source,
        waived: Default::default(),
        ..rotation.clone()
    };
    let state = State {
        phase,
        since_ms: view.now_ms,
        source: view.state.rotation.as_ref().map_or(view.state.source, |rotation| rotation.source),
        rotation: Some(rotation),
        ..view.state.clone()
    };
    with_answer(Step { before: Vec::new(), state, material: Move::Exchange }, request, message)
}

fn proceed(view: &View<'_>, request: &Request) -> Step {
    let refused = |message: String| answer(view, request, Outcome::Refused, message, None);
    let (Some(_), Some(tally)) = (&view.state.rotation, progress(view)) else {
        return refused("no rotation is under way".to_owned());
    };
    let at = view.state.phase;
    if let Some(phase) = request.phase.filter(|phase| *phase != at) {
        return refused(format!("the rotation is at {} by now, not at {}", at.name(), phase.name()));
    }
    let named = |name: &String| request.past.is_empty() || request.past.contains(name);
    let past: Vec<String> = tally.waiting.iter().map(|waiting| waiting.name.clone()).filter(named).collect();
    if past.is_empty() {
        return refused("none of them is waited for".to_owned());
    }
    let message = format!("not waited for in {}: {}", at.name(), some(&past));
    if request.dry_run {
        return answer(view, request, Outcome::Answered, message, None);
    }
    let mut step = answer(view, request, Outcome::Accepted, message, None);
    if let Some(rotation) = &mut step.state.rotation {
        rotation.waived.extend(past.iter().cloned());
        rotation.ever_waived.extend(past);
    }
    step
}

/// The first few of many names.
pub(crate) fn some(names: &[String]) -> String {
    let shown = names.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(10) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

/// What keeps the Secrets and what is in force apart, for people.
pub(crate) fn problems(view: &View<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    let (source, home) = wanted(view);
    let secret = source.secret();
    match home {
        Home::Bad(reason) => {
            problems.push(format!("Secret {secret} cannot be used, and changes nothing: {reason}"));
        }
        Home::Absent if source == Source::PluggedIn => problems.push(format!(
            "Secret {secret} is gone; its CA stays in force (to have another, ask for a rotation)"
        )),
        Home::Absent => {}
        Home::Good(found) => {
            let (found_name, current) = (found.name(), view.current.name());
            let target = view.target.map(Ca::name);
            let is_known = found_name == current || target.as_ref() == Some(&found_name);
            if view.state.rotation.is_some() && !is_known {
                problems
                    .push(format!("Secret {secret} was replaced once more; it is next after this rotation"));
            } else if view.state.rotation.is_none() && !is_known {
                problems.push(match unfit(found, view.now_ms) {
                    Some(reason) => {
                        format!("Secret {secret} cannot be used, and changes nothing: {reason}")
                    }
                    None if view.state.rolled_back.as_ref() == Some(&found_name) => {
                        format!("Secret {secret} holds a CA whose rotation was rolled back; replace it")
                    }
                    None => format!("Secret {secret} holds a CA that is not in force yet"),
                });
            }
        }
    }
    if let Some(target) = view.target
        && view.state.phase == Phase::Distributing
        && let Some(reason) = unfit(target, view.now_ms)
    {
        problems.push(format!("the rotation cannot go on, roll it back: {reason}"));
    }
    problems
}
