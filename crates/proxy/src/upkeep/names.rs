//! Names that are looked up again and again while somebody wants to know.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::lookup::{Found, LookUp, LookupError};

/// Names looked after at a time.
const MAX_NAMES: usize = 1024;
/// Addresses taken of one answer.
const MAX_ADDRESSES: usize = 64;
/// Bounds on how long an answer is used, whatever its TTL says. The shorter one is Envoy's `dns_min_refresh_rate`.
const REFRESH: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// A lookup that takes longer has failed: the first caller waits for it.
const LIMIT: Duration = Duration::from_secs(4);
/// Failed lookups are repeated after this, then after twice as long, up to a bound. Istio repeats them every minute
/// (`dnsRefreshRate`), which is long for a host that cannot be called meanwhile.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A name that was taken out of DNS may come back any moment, as that of a headless Service does.
const ABSENT_MAX: Duration = Duration::from_secs(5);

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// In the order of the answer. The last good ones, while the servers cannot be asked.
    pub(super) addresses: Arc<[IpAddr]>,
    /// Why there are none.
    pub(super) failure: Option<Arc<str>>,
}

/// `None` before the first lookup is over.
type Sender = Arc<watch::Sender<Option<Known>>>;

/// See the module's text.
pub(super) struct Names {
    lookup: Arc<dyn LookUp>,
    held: Mutex<HashMap<Arc<str>, Sender>>,
}

impl Names {
    pub(super) fn new(lookup: Arc<dyn LookUp>) -> Arc<Self> {
        Arc::new(Self { lookup, held: Mutex::default() })
    }

    /// Hears of a name's addresses, now and at every change. The name is given up when nobody listens any more.
    pub(super) fn follow(self: &Arc<Self>, name: &Arc<str>) -> watch::Receiver<Option<Known>> {
        let mut held = self.held.lock();
        if let Some(sender) = held.get(name) {
            return sender.subscribe();
        }
        if held.len() >= MAX_NAMES {
            let failure = format!("more than {MAX_NAMES} names are in use by this workload");
            let full = Known { addresses: Arc::new([]), failure: Some(failure.into()) };
            return watch::Sender::new(Some(full)).subscribe();
        }
        let sender = Arc::new(watch::Sender::new(None));
        let receiver = sender.subscribe();
        held.insert(name.clone(), sender.clone());
        tokio::spawn(self.clone().keep(name.clone(), sender));
        receiver
    }

    async fn keep(self: Arc<Self>, name: Arc<str>, sender: Sender) {
        let mut failures = 0;
        loop {
            let late = || LookupError::Away(format!("the name servers did not answer within {LIMIT:?}"));
            let outcome = timeout(LIMIT, self.lookup.look_up(&name)).await.unwrap_or_else(|_| Err(late()));
            failures = if outcome.is_ok() { 0 } else { failures + 1 };
            let wait = pause(&outcome, failures);
            self.note(&name, &sender, outcome, failures == 1);
            tokio::select! {
                () = sleep(wait) => {}
                () = sender.closed() => {}
            }
            let mut held = self.held.lock();
            if sender.receiver_count() == 0 {
                held.remove(&name);
                return;
            }
        }
    }

    fn note(&self, name: &str, sender: &Sender, outcome: Result<Found, LookupError>, is_first_failure: bool) {
        sender.send_if_modified(|known| {
            let last_good = known.take();
            let next = match outcome {
                Ok(found) => {
                    if last_good.as_ref().is_some_and(|last| last.failure.is_some()) {
                        info!(name, "the name has addresses again");
                    }
                    let addresses = found.addresses.iter().copied().take(MAX_ADDRESSES).collect();
                    Known { addresses, failure: None }
                }
                Err(LookupError::Away(why)) => match &last_good {
                    Some(last) if !last.addresses.is_empty() => {
                        if is_first_failure {
                            warn!(name, %why, "the name cannot be looked up; its last addresses stay in use");
                        }
                        last.clone()
                    }
                    _ => nothing(name, &why, is_first_failure),
                },
                Err(LookupError::NoAddress(why)) => nothing(name, &why, is_first_failure),
            };
            let is_other = last_good.as_ref() != Some(&next);
            *known = Some(next);
            is_other
        });
    }
}

fn nothing(name: &str, why: &str, is_first_failure: bool) -> Known {
    if is_first_failure {
        warn!(name, why, "the name cannot be looked up");
    }
    Known { addresses: Arc::new([]), failure: Some(format!("{name} cannot be looked up: {why}").into()) }
}

/// How long until the next lookup.
fn pause(outcome: &Result<Found, LookupError>, failures: u32) -> Duration {
    let backoff = RETRY.saturating_mul(1 << failures.saturating_sub(1).min(6));
    match outcome {
        Ok(found) => found.good_for.clamp(*REFRESH.start(), *REFRESH.end()),
        Err(LookupError::Away(_)) => backoff.min(RETRY_MAX),
        Err(LookupError::NoAddress(_)) => backoff.min(ABSENT_MAX),
    }
}

#[cfg(test)]
mod tests;
