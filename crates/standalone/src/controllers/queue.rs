//! What has to be looked at: now, or later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// An object to look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// Which controller looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Claim,
    CronJob,
    Job,
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Service,
    /// Every Service of a namespace: one of its Pods changed.
    Services,
}

/// The keys that wait, each at most once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    keys: Mutex<BTreeSet<Key>>,
    filled: Notify,
    /// Keys whose time comes, at the earliest that was asked for.
    later: Mutex<BTreeMap<Key, Instant>>,
    sooner: Notify,
}

impl Queue {
    pub(super) fn add(&self, key: Key) {
        self.keys.lock().insert(key);
        self.filled.notify_one();
    }

    /// Adds the key when this much time has passed.
    pub(super) fn add_later(&self, key: Key, delay: Duration) {
        let at = Instant::now() + delay;
        let mut later = self.later.lock();
        let due = later.entry(key).or_insert(at);
        *due = at.min(*due);
        drop(later);
        self.sooner.notify_one();
    }

    /// All keys that wait; there is at least one. Cancel-safe.
    pub(super) async fn take(&self) -> BTreeSet<Key> {
        loop {
            let taken = std::mem::take(&mut *self.keys.lock());
            if !taken.is_empty() {
                return taken;
            }
            self.filled.notified().await;
        }
    }

    /// Moves keys whose time has come, for ever.
    pub(super) async fn clock(&self) {
        loop {
            let now = Instant::now();
            let (due, next) = {
                let mut later = self.later.lock();
                let due: Vec<Key> =
                    later.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
                for key in &due {
                    later.remove(key);
                }
                (due, later.values().min().copied())
            };
            due.into_iter().for_each(|key| self.add(key));
            match next {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.sooner.notified() => {}
                    }
                }
                None => self.sooner.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { kind: Kind::Job, namespace: "a".to_owned(), name: name.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_comes_at_the_earliest_time_that_was_asked_for() {
        let queue = Queue::default();
        queue.add_later(key("b"), Duration::from_secs(90));
        queue.add_later(key("b"), Duration::from_secs(30));
        queue.add_later(key("b"), Duration::from_secs(60));
        let start = Instant::now();
        let taken = tokio::select! {
            taken = queue.take() => taken,
            () = queue.clock() => unreachable!("it runs for ever"),
        };
        assert_eq!((taken, start.elapsed().as_secs()), (BTreeSet::from([key("b")]), 30));
        assert!(queue.later.lock().is_empty());
    }
}
