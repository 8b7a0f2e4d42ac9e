//! When a probe is asked, and what its answers in a row mean.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

/// Repeats a probe at its period and tells `verdict` each change; ends with the verdict for which that answers
/// true.
///
/// A program takes a moment to listen. Up to `early` failures right after the start do not count, and
/// looking again soon shows it ready sooner than the period would.
pub(crate) async fn watch_probe<F: Future<Output = bool>>(
    probe: &Probe,
    mut early: u32,
    check: impl Fn(Probe) -> F,
    mut verdict: impl FnMut(bool) -> bool,
) -> bool {
    let number =
        |value: Option<i32>, default: u64| value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default);
    let period = Duration::from_secs(number(probe.period_seconds, 10).max(1));
    let mut streak = Streak::new(number(probe.success_threshold, 1), number(probe.failure_threshold, 3));
    tokio::time::sleep(Duration::from_secs(number(probe.initial_delay_seconds, 0))).await;
    loop {
        let success = check(probe.clone()).await;
        if !success && early > 0 {
            early -= 1;
            tokio::time::sleep(EARLY_PERIOD.min(period)).await;
            continue;
        }
        early = 0;
        if let Some(healthy) = streak.note(success)
            && verdict(healthy)
        {
            return healthy;
        }
        tokio::time::sleep(period).await;
    }
}

/// Successes and failures in a row, against a probe's thresholds.
struct Streak {
    successes: u64,
    failures: u64,
    successes_needed: u64,
    failures_needed: u64,
    told: Option<bool>,
}

impl Streak {
    fn new(successes_needed: u64, failures_needed: u64) -> Self {
        Self {
            successes: 0,
            failures: 0,
            successes_needed: successes_needed.max(1),
            failures_needed: failures_needed.max(1),
            told: None,
        }
    }

    /// Takes a result; answers the verdict if it is a new one.
    fn note(&mut self, success: bool) -> Option<bool> {
        if success {
            (self.successes, self.failures) = (self.successes + 1, 0);
        } else {
            (self.successes, self.failures) = (0, self.failures + 1);
        }
        let verdict = match (self.successes >= self.successes_needed, self.failures >= self.failures_needed) {
            (true, _) => true,
            (_, true) => false,
            _ => return None,
        };
        (self.told.replace(verdict) != Some(verdict)).then_some(verdict)
    }
}

/// Looks at a container that has just started, before its own period counts.
pub(crate) const EARLY_TRIES: u32 = 10;
const EARLY_PERIOD: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_needs_its_thresholds_in_a_row() {
        let mut streak = Streak::new(2, 3);
        let answers = [false, true, true, true, false, true, false, false, false, false];
        let told: Vec<_> = answers.into_iter().map(|answer| streak.note(answer)).collect();
        let mut expected = vec![None; 10];
        (expected[2], expected[8]) = (Some(true), Some(false));
        assert_eq!(told, expected);
    }
}
