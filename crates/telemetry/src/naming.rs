//! Names for callers that were counted before anybody knew who they are.
//!
//! A plaintext caller is known by its address only, and the registry is asked who that is when it calls. What it did until
//! the answer came is counted under its address meanwhile, and under its name from then on.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::labels::WorkloadLabels;
use crate::series::Series;
use crate::tables::{RejectionKey, SeriesKey, Tables};

/// Addresses that wait for a name in one worker; callers beyond them are counted as unknown for good.
const MAX_UNNAMED: usize = 128;
/// Readings after which a caller without a name is counted as unknown: a Pod's first call may come before the registry
/// has heard of the Pod.
const MAX_READINGS: u8 = 30;

/// Who is behind an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// This workload.
    Named(Arc<WorkloadLabels>),
    /// Nobody said yet, or nobody knows.
    Pending,
}

/// Knows who is behind addresses. Must answer at once.
pub trait Names: Send + Sync {
    /// Who called from `address`. If it proved a `principal` (else empty), only a workload of that identity is it.
    fn name(&self, address: IpAddr, principal: &str) -> Naming;
}

/// The callers of one worker that wait for a name, and what was counted for them after they had one already.
#[derive(Debug, Default)]
pub(crate) struct Unnamed {
    /// With how often they were looked for.
    waiting: HashMap<IpAddr, u8>,
    /// More counters of a label set that has some already, as long as somebody counts on them.
    more: Vec<(SeriesKey, Arc<Series>)>,
    /// Sums of those that nobody counts on any more.
    past: HashMap<SeriesKey, Arc<Series>>,
}

impl Unnamed {
    /// Whether a caller at `address` may be counted by it for now.
    pub(crate) fn admit(&mut self, address: IpAddr) -> bool {
        if let Some(readings) = self.waiting.get(&address) {
            return *readings < MAX_READINGS;
        }
        if self.waiting.len() >= MAX_UNNAMED {
            self.waiting.retain(|_, readings| *readings < MAX_READINGS);
        }
        let admitted = self.waiting.len() < MAX_UNNAMED;
        if admitted {
            self.waiting.insert(address, 0);
        }
        admitted
    }

    /// Counters beside those in the tables' own map.
    pub(crate) fn len(&self) -> usize {
        self.more.len() + self.past.len()
    }

    /// All of them, with their label sets.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&SeriesKey, &Arc<Series>)> {
        self.more.iter().map(|(key, series)| (key, series)).chain(&self.past)
    }

    /// Sums up what nobody counts on any more. Workers find none of these, so a series without another owner
    /// stays without.
    fn sum_up(&mut self) {
        let past = &mut self.past;
        self.more.retain(|(key, series)| {
            let is_past = Arc::strong_count(series) == 1;
            if is_past {
                past.entry(key.clone()).or_default().absorb(series);
            }
            !is_past
        });
    }
}

/// A caller that waits for its name: address and proved principal.
pub(crate) type Waiting = (IpAddr, String);

impl Tables {
    /// Who waits for a name. The lock is not to be held while names are looked for: the worker may want it.
    pub(crate) fn waiting(&self) -> HashSet<Waiting> {
        let series = self.series.keys().filter_map(|k| Some((k.unnamed?, k.source.principal.clone())));
        let rejections =
            self.rejections.keys().filter_map(|k| Some((k.unnamed?, k.source.principal.clone())));
        series.chain(rejections).collect()
    }

    /// Gives callers the names found, and up on those that were looked for often enough.
    pub(crate) fn give_names(&mut self, found: &HashMap<Waiting, Arc<WorkloadLabels>>) {
        self.unnamed.sum_up();
        let mut given_up = HashSet::new();
        self.unnamed.waiting.retain(|address, readings| {
            if found.keys().any(|(known, _)| known == address) {
                return false;
            }
            // Those given up stay, so that they are not waited for again with each call.
            *readings = (*readings + 1).min(MAX_READINGS);
            if *readings == MAX_READINGS {
                given_up.insert(*address);
            }
            true
        });
        let new_name = |unnamed: Option<IpAddr>, source: &Arc<WorkloadLabels>| {
            let address = unnamed?;
            let named = found.get(&(address, source.principal.clone())).cloned();
            named.or_else(|| given_up.contains(&address).then(|| source.clone()))
        };
        let keys: Vec<SeriesKey> = self.series.keys().filter(|k| k.unnamed.is_some()).cloned().collect();
        for key in keys {
            let Some(source) = new_name(key.unnamed, &key.source) else { continue };
            let named = SeriesKey { source, unnamed: None, ..key.clone() };
            if !self.series.contains_key(&named) {
                // The same counters: whoever holds a handle goes on counting under the new name.
                if let Some(series) = self.series.remove(&key) {
                    self.series.insert(named, series);
                }
            } else if let Some(series) = self.series.remove(&key) {
                self.unnamed.more.push((named, series));
            }
        }
        let keys: Vec<RejectionKey> =
            self.rejections.keys().filter(|k| k.unnamed.is_some()).cloned().collect();
        for key in keys {
            let Some(source) = new_name(key.unnamed, &key.source) else { continue };
            if let Some(count) = self.rejections.remove(&key) {
                *self.rejections.entry(RejectionKey { source, unnamed: None, ..key }).or_default() += count;
            }
        }
    }
}
