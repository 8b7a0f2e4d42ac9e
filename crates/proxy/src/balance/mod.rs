//! Which endpoint of a service port gets a request or connection, where a rule or weights have a say in it.
//!
//! A port without either has no [`Balance`]: the less busy of two endpoints drawn at random gets it, which looks at nothing
//! shared. Where there is one, it was made beside the workers when the destination changed ([`states`]), and what a request
//! does is read it. What must be counted over all workers (turns of round robin, failures in a row, bounds) is atomics that
//! outlive the endpoints' changes; how busy an endpoint is, each worker knows of itself, as that is what it can do
//! something about.

mod busy;
mod clock;
mod hash;
mod health;
mod key;
mod lifetime;
mod room;
mod states;
mod terms;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::snapshot::{Algorithm, Endpoint, EndpointPort, HashKey, Service};
use hash::Table;
use health::{Health, Watch};

pub(crate) use busy::Busy;
pub(crate) use health::Outcome;
pub(crate) use key::{Keyed, of_request, of_source};
pub(crate) use lifetime::Timed;
pub(crate) use room::{Counted, Kept, Room};
pub(crate) use states::States;
pub(crate) use terms::{Held, Terms, What, limits_of_opaque};

/// The least share of a new endpoint (Envoy's `min_weight_percent`).
const LEAST_SHARE: usize = 10;
/// Draws before a new endpoint is taken whatever its share.
const DRAWS: usize = 16;

/// How load is spread over the endpoints of one service port.
#[derive(Debug)]
pub(crate) struct Balance {
    algorithm: Algorithm,
    hosts: Vec<Host>,
    /// Indices of hosts in the order of their turns, each as often as it weighs; empty if all weigh the same.
    turns: Vec<u32>,
    next: Arc<AtomicUsize>,
    table: Option<Arc<Table>>,
    watch: Option<Watch>,
    warming: Option<Warming>,
    terms: Option<Arc<Terms>>,
    /// Outlives this: what comes next finds it.
    _state: Arc<states::State>,
}

/// One endpoint that serves the port.
#[derive(Debug)]
struct Host {
    /// Its place in [`Service::endpoints`], and that of its port.
    endpoint: usize,
    port: usize,
    /// `address:port`, or the path of its socket.
    name: Box<str>,
    weight: u32,
    health: Arc<Health>,
}

/// New endpoints get less.
#[derive(Debug, Clone, Copy)]
struct Warming {
    window_ms: u64,
    /// When the newest has its whole share.
    until_ms: u64,
    /// When the oldest was first seen.
    oldest_ms: u64,
}

/// What a choice is made by.
pub(crate) struct Wish<'a> {
    /// Draws a number below its argument.
    pub(crate) random: &'a dyn Fn(usize) -> usize,
    /// Of what the rule says to hash, if the request has it.
    pub(crate) hash: Option<u64>,
    /// Endpoints to leave out if others are left.
    pub(crate) avoid: Option<&'a dyn Fn(usize) -> bool>,
    /// How busy an endpoint is.
    pub(crate) active: &'a dyn Fn(usize) -> usize,
}

impl Balance {
    /// Bounds on connections and requests.
    pub(crate) fn terms(&self) -> Option<&Arc<Terms>> {
        self.terms.as_ref()
    }

    /// What a request is to be hashed by.
    pub(crate) fn key(&self) -> Option<&HashKey> {
        match &self.algorithm {
            Algorithm::Hash(key, _) => Some(key),
            _ => None,
        }
    }

    /// Whether it is the address that was dialled.
    pub(crate) fn is_passthrough(&self) -> bool {
        self.algorithm == Algorithm::Passthrough
    }

    /// An endpoint, if attempts at it are to be noted.
    pub(crate) fn watched(self: &Arc<Self>, index: usize) -> Option<Watched> {
        self.watch.as_ref().map(|_| Watched { balance: self.clone(), index })
    }

    /// The endpoint behind an index.
    pub(crate) fn at<'a>(
        &self,
        service: &'a Service,
        index: usize,
    ) -> Option<(&'a Endpoint, &'a EndpointPort)> {
        let host = self.hosts.get(index)?;
        let endpoint = service.endpoints.get(host.endpoint)?;
        Some((endpoint, endpoint.ports.get(host.port)?))
    }

    /// Takes note of an attempt at an endpoint.
    fn note(&self, index: usize, outcome: Outcome) {
        if let (Some(watch), Some(host)) = (&self.watch, self.hosts.get(index)) {
            watch.note(&host.health, outcome, &host.name);
        }
    }

    /// Endpoints that are left out now, and for how long yet.
    pub(crate) fn ejected(&self) -> impl Iterator<Item = (&str, Duration)> {
        let hosts = self.hosts.iter().enumerate();
        hosts.filter_map(|(index, host)| {
            let left = self.watch.as_ref()?.ejected_for_ms(index)?;
            Some((&*host.name, Duration::from_millis(left)))
        })
    }

    /// Chooses an endpoint; none if none is fit.
    pub(crate) fn pick(&self, wish: &Wish<'_>) -> Option<usize> {
        let looks_at = self.watch.as_ref().and_then(Watch::looks_at);
        let is_fit = |index: usize| match (looks_at, self.hosts.get(index)) {
            (Some(now), Some(host)) => !host.health.is_ejected(now),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if let (Some(table), Some(hash)) = (&self.table, wish.hash) {
            // The next places belong to others, so that a key keeps to the same second choice.
            let looks = if looks_at.is_some() { table.len().min(4096) } else { 1 };
            let found = (0..looks).filter_map(|attempt| table.find(hash, attempt)).find(|i| is_fit(*i));
            return found.or_else(|| self.draw(&wish.random, Some(&is_fit)));
        }
        let is_wanted = |index: usize| is_fit(index) && !wish.avoid.is_some_and(|avoid| avoid(index));
        let chosen = match (looks_at, wish.avoid) {
            (None, None) => self.choose(wish, None),
            _ => self.choose(wish, Some(&is_wanted)),
        };
        // Rather one that failed a moment ago than none.
        chosen.or_else(|| wish.avoid.and_then(|_| self.choose(wish, Some(&is_fit))))
    }

    fn choose(&self, wish: &Wish<'_>, is_wanted: Option<&dyn Fn(usize) -> bool>) -> Option<usize> {
        match self.algorithm {
            Algorithm::RoundRobin => {
                let turn = |count: usize| self.next.fetch_add(1, Relaxed) % count.max(1);
                self.draw_warm(&turn, wish.random, is_wanted)
            }
            Algorithm::LeastRequest => {
                let first = self.draw_warm(wish.random, wish.random, is_wanted)?;
                let other = (0..4)
                    .filter_map(|_| self.draw_warm(wish.random, wish.random, is_wanted))
                    .find(|other| *other != first);
                let Some(second) = other else { return Some(first) };
                // Weights have their say in what is drawn; where nobody is busy, the first stands.
                let load = |index: usize, of: usize| {
                    let weight = self.hosts.get(of).map_or(1, |host| host.weight as usize);
                    (wish.active)(index).saturating_mul(weight)
                };
                Some(if load(first, second) <= load(second, first) { first } else { second })
            }
            Algorithm::Random | Algorithm::Passthrough | Algorithm::Hash(..) => {
                self.draw(wish.random, is_wanted)
            }
        }
    }

    /// Draws, and lets a new endpoint pass with the probability that its share lacks.
    fn draw_warm(
        &self,
        draw: &dyn Fn(usize) -> usize,
        random: &dyn Fn(usize) -> usize,
        is_wanted: Option<&dyn Fn(usize) -> bool>,
    ) -> Option<usize> {
        let first = self.draw(draw, is_wanted)?;
        let Some(warming) = &self.warming else { return Some(first) };
        let now = clock::now_ms();
        if now >= warming.until_ms {
            return Some(first);
        }
        let share = |since: u64| {
            let passed = usize::try_from(now.saturating_sub(since) * 1000 / warming.window_ms.max(1));
            passed.unwrap_or(1000).clamp(LEAST_SHARE * 10, 1000)
        };
        // In proportion to the oldest: where all are new, none is.
        let whole = share(warming.oldest_ms);
        let mut chosen = first;
        for _ in 0..DRAWS {
            let own = self.hosts.get(chosen).map_or(whole, |host| share(host.health.since_ms));
            if random(whole) < own {
                break;
            }
            chosen = self.draw(draw, is_wanted)?;
        }
        Some(chosen)
    }

    /// One endpoint, by the number that `draw` gives below the number of choices.
    fn draw(
        &self,
        draw: &dyn Fn(usize) -> usize,
        is_wanted: Option<&dyn Fn(usize) -> bool>,
    ) -> Option<usize> {
        let count = if self.turns.is_empty() { self.hosts.len() } else { self.turns.len() };
        let at = |turn: usize| match self.turns.get(turn) {
            Some(index) => *index as usize,
            None => turn,
        };
        let Some(is_wanted) = is_wanted else {
            return (count > 0).then(|| at(draw(count)));
        };
        // Counted first, so that the one behind a missing one does not get its share as well.
        let wanted = (0..count).filter(|turn| is_wanted(at(*turn)));
        let left = wanted.clone().count();
        if left == 0 {
            return None;
        }
        wanted.clone().nth(draw(left)).map(at)
    }
}

/// An endpoint of which attempts are noted.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    balance: Arc<Balance>,
    index: usize,
}

impl Watched {
    /// Takes note of an attempt.
    pub(crate) fn note(&self, outcome: Outcome) {
        self.balance.note(self.index, outcome);
    }
}

/// How an endpoint is called in rings and in the log.
fn name_of(endpoint: &Endpoint, port: u16) -> Box<str> {
    match &endpoint.unix_path {
        Some(path) => (**path).into(),
        None => SocketAddr::new(endpoint.address, port).to_string().into(),
    }
}

#[cfg(test)]
mod tests;
