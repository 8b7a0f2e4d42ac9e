//! Makes the [`Balance`] of each port of a destination, and keeps across its changes what must outlive them: turns,
//! failures, ejections, and what is in use of its bounds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::clock::now_ms;
use super::hash::Table;
use super::health::{Health, Watch};
use super::terms::{Load, Terms};
use super::{Balance, Host, Warming, name_of};
use crate::snapshot::{Algorithm, Destination, HashTable, Service, ServicePort, Traffic};

/// Turns in a row at most: heavier weights are scaled down.
const MAX_TURNS: u64 = 4096;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct States {
    ports: Mutex<HashMap<HostPort, Weak<State>>>,
}

/// A service's host name and one of its ports.
type HostPort = (Arc<str>, u16);

/// Of one service port, whatever name it was asked for by.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) load: Load,
    next: Arc<AtomicUsize>,
    ejected_until_ms: Arc<AtomicU64>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    hosts: HashMap<Box<str>, Weak<Health>>,
    table: Option<KeptTable>,
}

/// A table, and what it was made of.
#[derive(Debug)]
struct KeptTable {
    kind: HashTable,
    places: Vec<(Box<str>, u32)>,
    table: Arc<Table>,
}

impl States {
    /// Gives each port of a destination its balance, where it needs one.
    pub(crate) fn adopt(&self, destination: &mut Destination) {
        match destination {
            Destination::Workload(direct) => {
                for port in &mut direct.headless_ports {
                    let pool = port.traffic.as_ref().and_then(|traffic| traffic.pool.clone());
                    port.terms = pool.map(|pool| {
                        let state = self.state(&port.service.hostname, port.service_port);
                        Arc::new(Terms::new(pool, state))
                    });
                }
            }
            other => {
                let Some(service) = other.service_mut() else { return };
                let balances: Vec<_> = service.ports.iter().map(|port| self.balance(service, port)).collect();
                for (port, balance) in service.ports.iter_mut().zip(balances) {
                    port.balance = balance;
                }
            }
        }
    }

    fn balance(&self, service: &Service, port: &ServicePort) -> Option<Arc<Balance>> {
        let candidates = || {
            let endpoints = service.endpoints.iter().enumerate();
            endpoints.filter_map(|(index, endpoint)| {
                let at = endpoint.ports.iter().position(|at| at.service_port == port.number)?;
                Some((index, endpoint, at))
            })
        };
        let first = candidates().next().map(|(_, endpoint, _)| endpoint.weight);
        let is_even = candidates().all(|(_, endpoint, _)| Some(endpoint.weight) == first);
        if port.traffic.is_none() && is_even {
            return None;
        }
        let defaults = || Arc::new(Traffic::default());
        let traffic = port.traffic.clone().unwrap_or_else(defaults);
        let state = self.state(&service.name.hostname, port.number);
        let now = now_ms();
        let mut kept = state.kept.lock();
        kept.hosts.retain(|_, health| health.strong_count() > 0);
        let mut hosts = Vec::new();
        for (index, endpoint, at) in candidates() {
            let target = endpoint.ports.get(at).map_or(0, |at| at.target_port);
            let name = name_of(endpoint, target);
            let known = kept.hosts.get(&name).and_then(Weak::upgrade);
            let health = known.unwrap_or_else(|| {
                let fresh = Arc::new(Health::new(now));
                kept.hosts.insert(name.clone(), Arc::downgrade(&fresh));
                fresh
            });
            let weight = endpoint.weight.max(1);
            hosts.push(Host { endpoint: index, port: at, name, weight, health });
        }
        let table = match &traffic.algorithm {
            Algorithm::Hash(_, table) if !hosts.is_empty() => Some(kept.table(*table, &hosts)),
            _ => None,
        };
        drop(kept);
        let watch = traffic.outliers.as_ref().map(|rule| {
            let name = format!("{} port {}", service.name.hostname, port.number).into();
            let members = hosts.iter().map(|host| host.health.clone()).collect();
            Watch::new(rule.clone(), name, members, state.ejected_until_ms.clone())
        });
        let warming = traffic.warmup.and_then(|window| {
            let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
            let newest = hosts.iter().map(|host| host.health.since_ms).max()?;
            let oldest_ms = hosts.iter().map(|host| host.health.since_ms).min()?;
            // All of an age: nobody is to be spared.
            let until_ms = newest.saturating_add(window_ms);
            (newest > oldest_ms && until_ms > now).then_some(Warming { window_ms, until_ms, oldest_ms })
        });
        Some(Arc::new(Balance {
            algorithm: traffic.algorithm.clone(),
            turns: if is_even { Vec::new() } else { turns(&hosts) },
            hosts,
            next: state.next.clone(),
            table,
            watch,
            warming,
            terms: traffic.pool.clone().map(|pool| Arc::new(Terms::new(pool, state.clone()))),
            _state: state,
        }))
    }

    fn state(&self, hostname: &Arc<str>, port: u16) -> Arc<State> {
        let mut ports = self.ports.lock();
        let key = (hostname.clone(), port);
        if let Some(state) = ports.get(&key).and_then(Weak::upgrade) {
            return state;
        }
        ports.retain(|_, state| state.strong_count() > 0);
        let fresh = Arc::new(State::default());
        ports.insert(key, Arc::downgrade(&fresh));
        fresh
    }
}

impl Kept {
    /// Made anew only for other endpoints or weights: a ring takes a while to sort.
    fn table(&mut self, wanted: HashTable, hosts: &[Host]) -> Arc<Table> {
        let places: Vec<_> = hosts.iter().map(|host| (&*host.name, host.weight)).collect();
        if let Some(kept) = &self.table
            && kept.kind == wanted
            && kept.places.iter().map(|(name, weight)| (&**name, *weight)).eq(places.iter().copied())
        {
            return kept.table.clone();
        }
        let table = Arc::new(match wanted {
            HashTable::Ring(minimum) => Table::ring(&places, minimum),
            HashTable::Maglev(size) => Table::maglev(&places, size),
        });
        let places = hosts.iter().map(|host| (host.name.clone(), host.weight)).collect();
        self.table = Some(KeptTable { kind: wanted, places, table: table.clone() });
        table
    }
}

/// The order of turns in which each endpoint comes as often as it weighs, spread as evenly as can be: the k-th turn of
/// an endpoint of weight w is due at (k + 1/2) / w.
fn turns(hosts: &[Host]) -> Vec<u32> {
    let divisor = hosts.iter().map(|host| u64::from(host.weight)).fold(0, greatest_common_divisor).max(1);
    let total: u64 = hosts.iter().map(|host| u64::from(host.weight) / divisor).sum();
    let scaled = |weight: u32| {
        let weight = u64::from(weight) / divisor;
        if total <= MAX_TURNS { weight } else { (weight * MAX_TURNS / total).max(1) }
    };
    let mut due = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        let weight = scaled(host.weight);
        due.extend((0..weight).map(|k| ((2 * k + 1) * (1 << 40) / (2 * weight), index as u32)));
    }
    due.sort_unstable();
    due.into_iter().map(|(_, index)| index).collect()
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
