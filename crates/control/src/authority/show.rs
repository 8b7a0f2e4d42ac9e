//! The rotation as people see it.

use super::driver::live;
use super::gate::{Tally, without_certificate};
use super::machine::{self, in_force, progress, some, soon};
use super::state::{Ca, Home, State, View};
use super::wire::{CaStatus, RotationStatus, Status};
use crate::proxies::millis;
use crate::server::ControlPlane;

/// Proxies that are named.
const NAMED: usize = 1000;

/// What is known of the rotation, without any key.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) state: State,
    pub(crate) current: Ca,
    pub(crate) target: Option<Ca>,
    pub(crate) self_signed: Home,
    pub(crate) plugged_in: Home,
    pub(crate) problem: Option<String>,
    /// What is wrong with the files that a plugged-in CA comes from.
    pub(crate) files_problem: Option<String>,
}

impl ControlPlane {
    /// How the authority and its rotation are; `None` while there is no authority.
    pub fn authority_status(&self) -> Option<Status> {
        let shown = self.rotation.load_full()?;
        let proxies = live(self);
        let view = View {
            state: &shown.state,
            current: &shown.current,
            target: shown.target.as_ref(),
            self_signed: &shown.self_signed,
            plugged_in: &shown.plugged_in,
            proxies: proxies.as_deref(),
            bundle_is_read: self.bundle_is_read(),
            now_ms: millis(self.clock.now()),
        };
        let mut problems: Vec<String> = shown.problem.iter().chain(&shown.files_problem).cloned().collect();
        problems.extend(machine::problems(&view));
        if shown.state.rotation.is_some() && proxies.is_none() {
            problems.push("the world is not complete yet, so that nobody can be counted".to_owned());
        }
        Some(Status {
            phase: shown.state.phase,
            since_ms: shown.state.since_ms,
            authority: authority(&view),
            rotation: rotation(&view),
            last: shown.state.last.clone(),
            answer: shown.state.answer.clone(),
            problems,
            warnings: warnings(&view),
        })
    }
}

/// What is in force.
fn authority(view: &View<'_>) -> CaStatus {
    let force = in_force(view.state.phase);
    let rotation = view.state.rotation.as_ref();
    match (view.target, rotation) {
        (Some(target), Some(rotation)) => {
            let (signing, source, other) = match force.target_signs {
                true => (target, rotation.source, view.current),
                false => (view.current, view.state.source, target),
            };
            let mut status = signing.status(source);
            if force.trusts_both {
                status.roots.extend(other.roots_beyond(signing));
            }
            status
        }
        _ => view.current.status(view.state.source),
    }
}

fn rotation(view: &View<'_>) -> Option<RotationStatus> {
    let (rotation, target) = (view.state.rotation.as_ref()?, view.target?);
    let Tally { live, confirmed, mut waiting, waived } = progress(view).unwrap_or_default();
    let waiting_count = waiting.len();
    waiting.truncate(NAMED);
    Some(RotationStatus {
        id: rotation.id.clone(),
        kind: rotation.kind,
        backwards: rotation.backwards,
        cause: rotation.cause.clone(),
        started_ms: rotation.started_ms,
        from: view.current.status(view.state.source),
        to: target.status(rotation.source),
        confirmed,
        live,
        waiting,
        waiting_count,
        waived,
    })
}

fn warnings(view: &View<'_>) -> Vec<String> {
    let mut all = soon(view.current, view.now_ms);
    for warning in view.target.into_iter().flat_map(|target| soon(target, view.now_ms)) {
        if !all.contains(&warning) {
            all.push(warning);
        }
    }
    let without = view.state.rotation.as_ref().and(view.proxies).map(without_certificate);
    if let Some(pods) = without.filter(|pods| !pods.is_empty()) {
        all.push(format!(
            "not waited for, since they never had a certificate of this authority: {} (is their container istio-proxy a \
             sidecar that runs?)",
            some(&pods)
        ));
    }
    all
}
