//! How many streams into Pods may be open: each costs descriptors, and a command costs a process.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::status::{ApiError, ApiResult};

/// Streams of one user: a terminal for each Pod of a large mesh, and a dashboard beside them.
const EACH: usize = 128;
/// Streams of everyone.
const ALL: usize = 256;

/// Who has how many.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<HashMap<String, usize>>>);

/// One stream's place; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Session {
    sessions: Sessions,
    user: String,
}

impl Sessions {
    /// Takes one; 429 if the user, or everyone together, has too many.
    pub(crate) fn take(&self, user: &str) -> ApiResult<Session> {
        let mut taken = self.0.lock();
        let all: usize = taken.values().sum();
        let own = taken.get(user).copied().unwrap_or_default();
        if own >= EACH || all >= ALL {
            return Err(ApiError::new(
                429,
                "TooManyRequests",
                format!(
                    "too many streams into Pods are open ({own} of {EACH} by {user}, {all} of {ALL} in all); end some first"
                ),
            ));
        }
        *taken.entry(user.to_owned()).or_default() += 1;
        Ok(Session { sessions: self.clone(), user: user.to_owned() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut taken = self.sessions.0.lock();
        if let Some(count) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_every_stream_and_gets_them_back() {
        let sessions = Sessions::default();
        let held: Vec<_> = std::iter::from_fn(|| sessions.take("greedy").ok()).collect();
        assert_eq!(held.len(), EACH);
        assert_eq!(sessions.take("greedy").map(drop).unwrap_err().code, 429);
        assert!(sessions.take("other").is_ok());
        drop(held);
        assert!(sessions.take("greedy").is_ok() && sessions.0.lock().is_empty());
    }
}
