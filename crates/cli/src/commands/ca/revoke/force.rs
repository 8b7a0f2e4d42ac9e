//! Whether the proxies have a change of the revocations in force.

use std::time::Duration;

use anyhow::Result;
use maille_control::revocation::Revoked;
use maille_control::{ProxyWithout, RevocationStatus};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::commands::admin::PodRef;
use crate::commands::ca::asking::Asked;
use crate::output::out;
use crate::progress::Progress;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// Proxies that are named one by one.
const NAMED: usize = 10;

/// How far a change has got, over all Pods of the control plane.
#[derive(Debug, Default)]
pub(super) struct Force {
    /// Whether every Pod of the control plane knows the change.
    known: bool,
    version: String,
    connected: usize,
    in_force: usize,
    waiting: Vec<ProxyWithout>,
    problems: Vec<String>,
}

/// Looks until every connected proxy has the change in force, or `patience` is over.
pub(super) async fn wait(
    asked: &Asked,
    target: &Revoked,
    revoked: bool,
    patience: Duration,
    shown: bool,
) -> Result<Force> {
    let deadline = Instant::now() + patience;
    let control_planes = asked.control_planes().await?;
    let mut progress = shown.then(Progress::new);
    loop {
        let force = look(asked, &control_planes, target, revoked).await?;
        if force.is_everywhere() || Instant::now() >= deadline {
            return Ok(force);
        }
        if let Some(progress) = &mut progress {
            progress.show(&format!("in force at {} of {} proxies", force.in_force, force.connected));
        }
        sleep(PAUSE).await;
    }
}

async fn look(asked: &Asked, control_planes: &[PodRef], target: &Revoked, revoked: bool) -> Result<Force> {
    let mut force = Force { known: true, ..Force::default() };
    for pod in control_planes {
        force.add(asked.monitoring(pod, "/ca/revocations").await?, target, revoked);
    }
    Ok(force)
}

impl Force {
    fn add(&mut self, status: RevocationStatus, target: &Revoked, revoked: bool) {
        let RevocationStatus { version, connected, in_force, waiting, problems, .. } = &status;
        self.known &= status.revokes(target) == revoked;
        self.connected += connected;
        self.in_force += in_force;
        self.waiting.extend(waiting.iter().cloned());
        self.problems.extend(problems.iter().cloned());
        self.version.clone_from(version);
    }

    /// Whether every connected proxy enforces what is stored.
    pub(super) fn is_everywhere(&self) -> bool {
        self.known && self.waiting.is_empty()
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "version": self.version,
            "connected": self.connected,
            "inForce": if self.known { self.in_force } else { 0 },
            "waiting": self.waiting,
        })
    }

    pub(super) fn print(&self) {
        for problem in &self.problems {
            eprintln!("note: {problem}");
        }
        if !self.known {
            out!("the control plane has not read it yet; `maille ca status` shows when it has");
            return;
        }
        out!("in force at {} of {} connected proxies", self.in_force, self.connected);
        for proxy in self.waiting.iter().take(NAMED) {
            out!("  not at {}: {}", proxy.name, proxy.why);
        }
        if self.waiting.len() > NAMED {
            out!("  and {} more", self.waiting.len() - NAMED);
        }
    }
}
