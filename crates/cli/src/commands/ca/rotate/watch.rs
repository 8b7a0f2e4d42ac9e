//! Watching a rotation until it is over: a line for each thing that changes.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use maille_control::authority::{Phase, RotationStatus, Status};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::PAUSE;
use crate::Outcome;
use crate::commands::ca::asking::{Asked, now};
use crate::commands::ca::described::short;
use crate::commands::ca::rotation;
use crate::output::out;
use crate::progress::Progress;

/// How long a control plane may be away before that is told: it may be restarting, and then goes on.
const AWAY: Duration = Duration::from_secs(60);
/// How long the same proxies are waited for before people are told what to do.
const PATIENT: Duration = Duration::from_secs(15);

/// Watches the rotation of this id until it is over, for so long at most.
pub(super) async fn run(asked: &Asked, id: &str, patience: Duration, shown: bool) -> Result<Outcome> {
    let deadline = Instant::now() + patience;
    let mut away: Option<Instant> = None;
    let mut teller = shown.then(Teller::new);
    loop {
        match rotation::status(asked).await {
            Ok(status) => {
                away = None;
                if let Some(teller) = &mut teller {
                    teller.tell(&status, now());
                }
                let over = is_over(&status, id);
                if over || Instant::now() >= deadline {
                    return end(&status, over, patience.is_zero(), shown);
                }
            }
            Err(error) => {
                let since = *away.get_or_insert_with(Instant::now);
                if since.elapsed() > AWAY || Instant::now() >= deadline {
                    return Err(error
                        .context("the control plane no longer answers; the rotation goes on when it does"));
                }
                if let Some(teller) = &mut teller {
                    teller.progress.show("the control plane does not answer; it may be restarting");
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// Whether the rotation has ended. One that replaced it while nobody looked ended it, too.
fn is_over(status: &Status, id: &str) -> bool {
    match &status.rotation {
        Some(rotation) => rotation.id != id,
        None => status.phase == Phase::Idle,
    }
}

fn end(status: &Status, over: bool, no_wait: bool, shown: bool) -> Result<Outcome> {
    if !shown {
        let Status { phase, rotation, last, answer, .. } = status;
        let value =
            json!({"done": over, "phase": phase, "rotation": rotation, "last": last, "answer": answer});
        out!("{}", serde_json::to_string_pretty(&value)?);
    } else if over {
        let signer = rotation::certificate(&status.authority.signer, now());
        let turned = status.last.as_ref().is_some_and(|last| last.rolled_back);
        out!("{}: {signer} signs", if turned { "rolled back" } else { "done" });
        for name in status.last.iter().flat_map(|last| &last.waived) {
            eprintln!("note: {name} was not waited for; restart its workload");
        }
    } else {
        let progress = status.rotation.as_ref().map(rotation::progress).unwrap_or_default();
        out!("{}: {progress}", status.phase.name());
        if !no_wait {
            eprintln!("the rotation goes on without this command; `maille ca status` shows it");
        }
    }
    Ok(if over || no_wait { Outcome::Fine } else { Outcome::NotFine })
}

/// Tells what is new.
struct Teller {
    progress: Progress,
    phase: Option<(Phase, bool)>,
    /// The names waited for, and since when.
    waiting: (Vec<String>, Instant),
    advised: bool,
}

impl Teller {
    fn new() -> Self {
        Self { progress: Progress::new(), phase: None, waiting: (Vec::new(), Instant::now()), advised: false }
    }

    fn tell(&mut self, status: &Status, now: SystemTime) {
        let Some(rotation) = &status.rotation else { return };
        if self.phase != Some((status.phase, rotation.backwards)) {
            self.phase = Some((status.phase, rotation.backwards));
            self.progress.done(&heading(status.phase, rotation));
            self.waiting = (Vec::new(), Instant::now());
            self.advised = false;
        }
        let names: Vec<String> = rotation.waiting.iter().map(|one| one.name.clone()).collect();
        if names != self.waiting.0 {
            self.waiting = (names, Instant::now());
            self.advised = false;
        }
        let count = rotation.waiting_count;
        let who = match rotation.waiting.first() {
            Some(first) if count == 1 => format!(", waiting for {}: {}", first.name, first.why),
            Some(first) => format!(", waiting for {} and {} more", first.name, count - 1),
            None => String::new(),
        };
        self.progress.show(&format!("{}{who}", rotation::progress(rotation)));
        // Proxies that take part confirm within seconds: whoever is still missing needs somebody to look.
        if !self.advised && count > 0 && self.waiting.1.elapsed() > PATIENT {
            self.advised = true;
            self.progress.done(&format!("{}, waiting for:", rotation::progress(rotation)));
            for line in rotation::waiting(&rotation.waiting, count, now) {
                eprintln!("             {line}");
            }
            if let Some(advice) = rotation::advice(rotation) {
                eprintln!("           {advice}");
            }
        }
    }
}

fn heading(phase: Phase, rotation: &RotationStatus) -> String {
    let back = if rotation.backwards { "back, " } else { "" };
    let to = short(&rotation.to.signer.fingerprint);
    format!("{back}{} ({to})", rotation::step(phase))
}

#[cfg(test)]
mod tests {
    use maille_control::authority::CaStatus;

    use super::*;

    fn status(phase: Phase, id: Option<&str>) -> Status {
        let rotation = id.map(|id| RotationStatus {
            id: id.to_owned(),
            kind: maille_control::authority::Kind::Root,
            backwards: false,
            cause: String::new(),
            started_ms: 0,
            from: CaStatus::default(),
            to: CaStatus::default(),
            confirmed: 0,
            live: 1,
            waiting: Vec::new(),
            waiting_count: 0,
            waived: Vec::new(),
        });
        Status {
            phase,
            since_ms: 0,
            authority: CaStatus::default(),
            rotation,
            last: None,
            answer: None,
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_rotation_is_over_when_it_is_gone_or_another_one_runs() {
        assert!(!is_over(&status(Phase::Signing, Some("a")), "a"));
        assert!(is_over(&status(Phase::Distributing, Some("b")), "a"));
        assert!(is_over(&status(Phase::Idle, None), "a"));
    }
}
