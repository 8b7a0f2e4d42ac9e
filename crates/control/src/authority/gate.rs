//! Who has confirmed a phase, and who is waited for.

use std::collections::BTreeSet;

use super::holders::Holds;
use super::state::{Ca, LiveProxy, Rotation};
use super::wire::{Phase, Waiting};

/// Reports come every two seconds; after this silence something is wrong with whoever sends them.
const SILENCE_MS: u64 = 10_000;
/// What was said before a phase began does not confirm it, nor what was on its way then.
const SETTLE_MS: u64 = 1000;
/// A certificate that was asked for before the signer changed may arrive as late as this: a proxy waits ten seconds for one.
/// On the way forward nobody who has one of the new signer can get one of the old; after a turn it is the other way round.
const SETTLE_AFTER_TURN_MS: u64 = 15_000;

/// Who has confirmed a phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Live proxies.
    pub(crate) live: usize,
    /// Those that have confirmed.
    pub(crate) confirmed: usize,
    /// Those that are waited for.
    pub(crate) waiting: Vec<Waiting>,
    /// Those that have not confirmed but are not waited for.
    pub(crate) waived: Vec<String>,
}

impl Tally {
    pub(crate) fn is_passed(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// What every live proxy must have in use before a phase is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: the phase changes nothing for them.
    Nothing,
    /// These roots, for peers and for the control plane.
    Roots(BTreeSet<String>),
    /// A certificate by this signer.
    Signer(String),
    /// None of these roots for peers.
    NoRoots(BTreeSet<String>),
}

impl Need {
    pub(crate) fn of(phase: Phase, from: &Ca, to: &Ca) -> Self {
        let beyond = |one: &Ca, other: &Ca| -> BTreeSet<String> {
            one.roots_beyond(other).into_iter().map(|root| root.fingerprint).collect()
        };
        match phase {
            Phase::Idle => Self::Nothing,
            Phase::Distributing => match beyond(to, from) {
                added if added.is_empty() => Self::Nothing,
                added => Self::Roots(added),
            },
            // What a key has signed verifies under every certificate of that key (CA-16).
            Phase::Signing if from.key == to.key => Self::Nothing,
            Phase::Signing => Self::Signer(to.signer.fingerprint.clone()),
            Phase::Withdrawing => match beyond(from, to) {
                removed if removed.is_empty() => Self::Nothing,
                removed => Self::NoRoots(removed),
            },
        }
    }

    /// What a proxy lacks; `None`: it has confirmed. What it said before that time does not count.
    fn lack(&self, proxy: &LiveProxy, said_after_ms: u64) -> Option<String> {
        if *self == Self::Nothing {
            return None;
        }
        let Some(seen) = &proxy.seen else { return Some(unknown(proxy.holds).to_owned()) };
        let short = |name: &str| name.chars().take(12).collect::<String>();
        match self {
            Self::Nothing => None,
            Self::Roots(roots) => {
                let lacks = |held: &BTreeSet<String>| roots.iter().find(|root| !held.contains(*root));
                if let Some(root) = lacks(&seen.roots) {
                    return Some(format!("it does not verify peers by root {} yet", short(root)));
                }
                lacks(&seen.control_roots).map(|root| {
                    let file =
                        "its copy of ConfigMap istio-ca-root-cert, by which it verifies the control plane,";
                    format!("{file} has no root {} yet", short(root))
                })
            }
            Self::Signer(signer) => (seen.signer != *signer).then(|| match seen.signer.as_str() {
                "" => "it has no certificate yet".to_owned(),
                old => format!("its certificate is still signed by {}", short(old)),
            }),
            Self::NoRoots(roots) => {
                let held = roots.iter().find(|root| seen.roots.contains(*root));
                held.map(|held| format!("it still verifies peers by root {}", short(held)))
            }
        }
        .or_else(|| (seen.at_ms < said_after_ms).then(|| "it has not reported in this phase yet".to_owned()))
    }
}

/// Why nothing is known of who has said nothing.
fn unknown(holds: Holds) -> &'static str {
    match holds {
        Holds::Nothing => "it has no certificate, but one may be on its way",
        Holds::Until(_) => {
            "it has not said what it uses since this control plane began to watch, but it was given a certificate: it may \
             crash, be cut off, or be no sidecar of Maille's"
        }
        Holds::Perhaps(_) => {
            "it has not said what it uses since this control plane began to watch, and may have a certificate of before; if \
             its container istio-proxy is no sidecar, or never got as far as a certificate, go on without it"
        }
    }
}

/// Whether a proxy counts: one without a certificate that holds can neither call nor be called, and gets one by its token
/// only, of whoever signs then.
fn is_live(proxy: &LiveProxy, now_ms: u64) -> bool {
    proxy.holds.may_hold(now_ms)
}

/// Those that never had a certificate: they have nothing that a rotation could take from them.
pub(crate) fn without_certificate(proxies: &[LiveProxy]) -> Vec<String> {
    let without = proxies.iter().filter(|proxy| proxy.holds == Holds::Nothing);
    without.map(|proxy| proxy.name.clone()).collect()
}

/// Counts who has confirmed. `since_ms`: when the phase began.
pub(crate) fn tally(
    need: &Need,
    since_ms: u64,
    rotation: Option<&Rotation>,
    proxies: &[LiveProxy],
    now_ms: u64,
) -> Tally {
    let mut tally = Tally::default();
    let turned = rotation.is_some_and(|rotation| rotation.turned);
    let settle = match need {
        Need::Signer(_) if turned => SETTLE_AFTER_TURN_MS,
        _ => SETTLE_MS,
    };
    let said_after = since_ms.saturating_add(settle);
    // What was being signed when the phase began is known by then.
    let is_new = |proxy: &LiveProxy| proxy.holds == Holds::Nothing && now_ms < said_after;
    for proxy in proxies.iter().filter(|proxy| is_live(proxy, now_ms) || is_new(proxy)) {
        tally.live += 1;
        match need.lack(proxy, said_after) {
            None => tally.confirmed += 1,
            Some(_) if rotation.is_some_and(|rotation| rotation.waived.contains(&proxy.name)) => {
                tally.waived.push(proxy.name.clone());
            }
            Some(lack) => tally.waiting.push(Waiting {
                name: proxy.name.clone(),
                uid: proxy.uid.clone(),
                why: format!("{lack}{}", circumstance(proxy, now_ms)),
                not_after_ms: proxy.holds.ends_ms(),
            }),
        }
    }
    tally
}

/// Proxies that would keep a rotation waiting as they are.
pub(crate) fn silent(proxies: &[LiveProxy], now_ms: u64) -> Vec<Waiting> {
    let live = proxies.iter().filter(|proxy| is_live(proxy, now_ms));
    let silent = live.filter_map(|proxy| {
        let why = match &proxy.seen {
            None => unknown(proxy.holds).to_owned(),
            Some(_) => circumstance(proxy, now_ms).trim_start_matches("; ").to_owned(),
        };
        let not_after_ms = proxy.holds.ends_ms();
        let waiting = Waiting { name: proxy.name.clone(), uid: proxy.uid.clone(), why, not_after_ms };
        (!waiting.why.is_empty()).then_some(waiting)
    });
    silent.collect()
}

/// What may be the reason.
fn circumstance(proxy: &LiveProxy, now_ms: u64) -> String {
    let Some(seen) = &proxy.seen else { return String::new() };
    let silence = now_ms.saturating_sub(seen.at_ms);
    if silence > SILENCE_MS {
        return format!(
            "; nothing was heard of it for {} s: it may be stopped, overloaded, or cut off from the control plane",
            silence / 1000
        );
    }
    match seen.renewal_error.as_str() {
        "" => String::new(),
        error => format!("; its last renewal failed: {error}"),
    }
}
