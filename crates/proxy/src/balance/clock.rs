//! Milliseconds of one clock that all threads of the process share, for atomics.

use std::sync::OnceLock;
use std::time::Instant;

/// Now; never 0, which stands for "never".
pub(crate) fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let passed = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(passed).unwrap_or(u64::MAX - 1) + 1
}
