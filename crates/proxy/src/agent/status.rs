//! Whether the proxy can serve, and if not, why.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

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
    /// The data path listens.
    Listeners,
}

impl Need {
    const ALL: [Self; 6] = [
        Self::Certificate,
        Self::Trust,
        Self::MeshSettings,
        Self::Inbound,
        Self::Authorization,
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
            Self::Listeners => "listeners",
        })
    }
}

const DRAINING: u32 = 1 << 31;

/// What is there already. What was there once stays: a control plane that goes away takes nothing with it.
#[derive(Debug, Default)]
pub(crate) struct Readiness(AtomicU32);

impl Readiness {
    /// A need is met from now on.
    pub(crate) fn met(&self, need: Need) {
        self.0.fetch_or(need.bit(), Ordering::Relaxed);
    }

    /// The proxy is going away.
    pub(crate) fn drain(&self) {
        self.0.fetch_or(DRAINING, Ordering::Relaxed);
    }

    /// Why it is not ready; `None` if it is.
    pub(crate) fn missing(&self) -> Option<String> {
        let bits = self.0.load(Ordering::Relaxed);
        if bits & DRAINING != 0 {
            return Some("draining".to_owned());
        }
        let missing: Vec<_> =
            Need::ALL.iter().filter(|need| bits & need.bit() == 0).map(ToString::to_string).collect();
        (!missing.is_empty()).then(|| format!("waiting for {}", missing.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_need_is_met_and_not_draining() {
        let readiness = Readiness::default();
        for need in Need::ALL {
            assert!(readiness.missing().is_some_and(|m| m.contains(&need.to_string())), "{need}");
            readiness.met(need);
        }
        assert_eq!(readiness.missing(), None);
        readiness.drain();
        assert_eq!(readiness.missing().as_deref(), Some("draining"));
    }
}
