//! Who stands above whom: the order in every rank, and of the groups in every column, with few crossings.

use std::collections::BTreeSet;

use super::part::{Part, Slot};
use super::{GROUP_GAP, JOINED_GAP, TITLE};

/// Walks through the ranks to lessen crossings.
const SWEEPS: usize = 10;

impl Part {
    /// Heights as the order alone gives them.
    fn stack(&mut self) {
        for column in &self.columns {
            let mut top = 0.0;
            for slot in &column.slots {
                let height = |list: &Vec<usize>| -> f64 {
                    list.iter().filter_map(|i| self.items.get(*i)).map(|item| item.h + item.gap).sum()
                };
                let tallest = slot.ranks.iter().map(height).fold(0.0, f64::max);
                let tops: Vec<f64> = slot.ranks.iter().map(|l| top + (tallest - height(l)) / 2.0).collect();
                for (list, mut y) in slot.ranks.iter().zip(tops) {
                    for item in list {
                        let Some(item) = self.items.get_mut(*item) else { continue };
                        item.y = y + item.h / 2.0;
                        y += item.h + item.gap;
                    }
                }
                top += tallest + GROUP_GAP + TITLE;
            }
        }
    }

    /// Chooses the order in each rank, and of the groups in each column, by barycentres.
    pub(super) fn order(&mut self) {
        self.stack();
        let mut best = (self.crossings(), self.snapshot());
        for sweep in 0..SWEEPS {
            let forward = sweep % 2 == 0;
            let count = self.columns.len();
            let columns: Vec<usize> = if forward { (0..count).collect() } else { (0..count).rev().collect() };
            for at in columns {
                self.order_slots(at, forward);
                let width = self.columns.get(at).map_or(0, |c| c.width);
                let ranks: Vec<usize> =
                    if forward { (0..width).collect() } else { (0..width).rev().collect() };
                for rank in ranks {
                    self.order_rank(at, rank, forward);
                }
            }
            let crossings = self.crossings();
            if crossings < best.0 {
                best = (crossings, self.snapshot());
            }
        }
        for (column, slots) in self.columns.iter_mut().zip(best.1) {
            column.slots = slots;
        }
        self.stack();
    }

    fn snapshot(&self) -> Vec<Vec<Slot>> {
        self.columns.iter().map(|column| column.slots.clone()).collect()
    }

    fn order_slots(&mut self, column: usize, forward: bool) {
        let Some(slots) = self.columns.get(column).map(|c| c.slots.clone()) else { return };
        let mut wished: Vec<(f64, Slot)> = slots
            .into_iter()
            .map(|slot| {
                let items = || slot.ranks.iter().flatten();
                let sides = if forward { &self.before } else { &self.after };
                let inside: BTreeSet<usize> = items().copied().collect();
                let own: Vec<usize> = inside.iter().copied().collect();
                let outside: Vec<usize> = items()
                    .filter_map(|i| sides.get(*i))
                    .flatten()
                    .filter(|i| !inside.contains(i))
                    .copied()
                    .collect();
                (self.mean(&outside).or_else(|| self.mean(&own)).unwrap_or(0.0), slot)
            })
            .collect();
        wished.sort_by(|a, b| a.0.total_cmp(&b.0));
        if let Some(column) = self.columns.get_mut(column) {
            column.slots = wished.into_iter().map(|(_, slot)| slot).collect();
        }
        self.stack();
    }

    fn order_rank(&mut self, column: usize, rank: usize, forward: bool) {
        let slots = self.columns.get(column).map_or(0, |c| c.slots.len());
        for slot in 0..slots {
            let list = |part: &mut Self| -> Option<Vec<usize>> {
                part.columns.get(column)?.slots.get(slot)?.ranks.get(rank).cloned()
            };
            let Some(items) = list(self) else { continue };
            let side = if forward { &self.before } else { &self.after };
            // What hangs on nothing on this side stays where it is.
            let mut wished: Vec<(f64, usize)> = items
                .iter()
                .map(|i| (side.get(*i).and_then(|n| self.mean(n)).unwrap_or_else(|| self.y(*i)), *i))
                .collect();
            wished.sort_by(|a, b| a.0.total_cmp(&b.0));
            let joined = items.iter().any(|i| self.items.get(*i).is_some_and(|item| item.gap == JOINED_GAP));
            if joined {
                continue;
            }
            let place = self.columns.get_mut(column).and_then(|c| c.slots.get_mut(slot));
            if let Some(list) = place.and_then(|s| s.ranks.get_mut(rank)) {
                *list = wished.into_iter().map(|(_, item)| item).collect();
            }
        }
        self.stack();
    }

    fn crossings(&self) -> usize {
        let mut found = 0;
        for column in 0..self.column_of.len() {
            let mut pieces: Vec<(f64, f64)> = Vec::new();
            let owner = self.column_of.get(column).and_then(|at| self.columns.get(*at));
            let Some(owner) = owner else { continue };
            for slot in &owner.slots {
                for item in slot.ranks.get(column - owner.first).into_iter().flatten() {
                    pieces.extend(
                        self.after.get(*item).into_iter().flatten().map(|n| (self.y(*item), self.y(*n))),
                    );
                }
            }
            for (at, a) in pieces.iter().enumerate() {
                let crosses = |b: &&(f64, f64)| (a.0 - b.0) * (a.1 - b.1) < 0.0;
                found += pieces.iter().skip(at + 1).filter(crosses).count();
            }
        }
        found
    }
}
