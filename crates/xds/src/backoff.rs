use std::time::Duration;

/// Exponential back-off with full jitter: each wait is uniform between half of the current step and the
/// whole of it, so that proxies that lost the same control plane do not return together.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    current: Duration,
}

impl Backoff {
    /// Steps double from `initial` up to `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, current: initial }
    }

    /// The next wait. `jitter` in `0.0..=1.0` chooses within the step; values outside are clamped.
    pub fn next_wait(&mut self, jitter: f64) -> Duration {
        let step = self.current.min(self.max);
        self.current = (step * 2).min(self.max);
        step.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// Back to the first step, after a success.
    pub fn reset(&mut self) {
        self.current = self.initial;
    }
}

/// 100 ms doubling to 5 s: a control plane that restarts is found again within a moment, and one
/// that is gone for an hour costs a dial every few seconds, most of which are refused at once.
impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over_after_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let waits: Vec<_> = (0..4).map(|_| backoff.next_wait(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.next_wait(0.0).as_millis(), 50);
    }
}
