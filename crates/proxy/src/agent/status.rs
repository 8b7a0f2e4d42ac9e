//! Whether the proxy can serve, and if not, why.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use maille_tls::Skew;

/// Something a proxy needs before it can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A workload certificate.
    Certificate,
    /// Roots to verify peers against.
    Trust,
    /// What holds for the whole mesh.
    MeshSettings,
    /// The own workload's ports and modes.
    Inbound,
    /// The complete set of policies.
    Authorization,
    /// The complete set of rules about tokens.
    Authentication,
    /// The data path listens.
    Listeners,
}

impl Need {
    const ALL: [Self; 7] = [
        Self::Certificate,
        Self::Trust,
        Self::MeshSettings,
        Self::Inbound,
        Self::Authorization,
        Self::Authentication,
        Self::Listeners,
    ];

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "a workload certificate",
            Self::Trust => "trust roots",
            Self::MeshSettings => "mesh settings",
            Self::Inbound => "the facts of its own workload",
            Self::Authorization => "the authorization policies",
            Self::Authentication => "the rules about tokens",
            Self::Listeners => "listeners",
        })
    }
}

const DRAINING: u32 = 1 << 31;

/// What is there already. What was there once stays: a control plane that goes away takes nothing with it, until
/// the certificate ends.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    met: AtomicU32,
    /// Unix seconds; nothing before the first certificate.
    certificate_ends: AtomicU64,
}

impl Readiness {
    /// A need is met from now on.
    pub(crate) fn met(&self, need: Need) {
        self.met.fetch_or(need.bit(), Ordering::Relaxed);
    }

    /// A certificate is in use that ends at `not_after`.
    pub(crate) fn certified_until(&self, not_after: SystemTime) {
        self.certificate_ends.store(unix_seconds(not_after), Ordering::Relaxed);
        self.met(Need::Certificate);
    }

    /// The proxy is going away.
    pub(crate) fn drain(&self) {
        self.met.fetch_or(DRAINING, Ordering::Relaxed);
    }

    /// Why it is not ready at `now`; `None` if it is.
    pub(crate) fn missing(&self, now: SystemTime) -> Option<String> {
        let bits = self.met.load(Ordering::Relaxed);
        if bits & DRAINING != 0 {
            return Some("draining".to_owned());
        }
        let missing: Vec<_> =
            Need::ALL.iter().filter(|need| bits & need.bit() == 0).map(ToString::to_string).collect();
        if !missing.is_empty() {
            return Some(format!("waiting for {}", missing.join(", ")));
        }
        // Peers refuse it from then on, whatever we say.
        let ends = self.certificate_ends.load(Ordering::Relaxed);
        (unix_seconds(now) > ends).then(|| match Skew::known().filter(|skew| skew.is_worth_saying()) {
            Some(skew) => {
                format!("the workload certificate has expired by the clock of this machine; {skew}")
            }
            None => "the workload certificate has expired and was not renewed".to_owned(),
        })
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ready_only_when_every_need_is_met_and_not_draining() {
        let (readiness, now) = (Readiness::default(), SystemTime::now());
        readiness.certified_until(now + Duration::from_secs(10));
        for need in Need::ALL.into_iter().skip(1) {
            assert!(readiness.missing(now).is_some_and(|m| m.contains(&need.to_string())), "{need}");
            readiness.met(need);
        }
        assert_eq!(readiness.missing(now), None);
        let later = now + Duration::from_secs(20);
        assert!(readiness.missing(later).is_some_and(|m| m.contains("expired")));
        readiness.drain();
        assert_eq!(readiness.missing(now).as_deref(), Some("draining"));
    }
}
