//! How high everything stands: in its order, and as near as that allows to what it is joined with.

use super::isotonic::arrange;
use super::part::{Content, Part, Slot};
use super::{GROUP_GAP, PAD, ROW_GAP, TITLE};

/// Rounds that straighten the lines.
const ROUNDS: usize = 16;

impl Part {
    /// Moves everything, in its order, towards what it is joined with.
    pub(super) fn straighten(&mut self) {
        for _ in 0..ROUNDS {
            for column in 0..self.columns.len() {
                let slots = self.columns.get(column).map(|c| c.slots.clone()).unwrap_or_default();
                for slot in &slots {
                    self.straighten_slot(slot);
                }
                self.separate(&slots);
            }
        }
    }

    fn straighten_slot(&mut self, slot: &Slot) {
        let items = || slot.ranks.iter().flatten();
        let middle = items().map(|item| self.wish(*item)).sum::<f64>() / (items().count() as f64).max(1.0);
        let height = |list: &Vec<usize>| -> f64 {
            list.iter().filter_map(|item| self.items.get(*item)).map(|item| item.h + item.gap).sum()
        };
        // Straight lines are not worth a group that is torn apart: it grows by a quarter at most.
        let reach = slot.ranks.iter().map(height).fold(0.0, f64::max) * 0.625;
        for list in &slot.ranks {
            let within = |wish: f64| wish.clamp(middle - reach, middle + reach);
            let wanted: Vec<f64> = list.iter().map(|item| within(self.wish(*item))).collect();
            let apart = self.distances(list);
            for (item, y) in list.iter().zip(arrange(&wanted, &apart)) {
                self.items.get_mut(*item).into_iter().for_each(|item| item.y = y);
            }
        }
    }

    /// In the middle between what it is joined with on both sides.
    fn wish(&self, item: usize) -> f64 {
        let before = self.before.get(item).and_then(|list| self.mean(list));
        let after = self.after.get(item).and_then(|list| self.mean(list));
        match (before, after) {
            (Some(a), Some(b)) => (a + b) / 2.0,
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => {
                self.mates.get(&item).and_then(|list| self.mean(list)).unwrap_or_else(|| self.y(item))
            }
        }
    }

    fn distances(&self, list: &[usize]) -> Vec<f64> {
        let item = |at: usize| list.get(at).and_then(|i| self.items.get(*i));
        let apart = |at: usize| match (at.checked_sub(1).and_then(&item), item(at)) {
            (Some(above), Some(own)) => (above.h + own.h) / 2.0 + own.gap.max(above.gap.min(ROW_GAP)),
            _ => 0.0,
        };
        (0..list.len()).map(apart).collect()
    }

    /// Keeps the groups of a column apart.
    fn separate(&mut self, slots: &[Slot]) {
        let extents: Vec<(f64, f64)> = slots.iter().map(|slot| self.extent(slot, false)).collect();
        let middles: Vec<f64> = extents.iter().map(|(top, bottom)| (top + bottom) / 2.0).collect();
        let height = |at: usize| extents.get(at).map_or(0.0, |(top, bottom)| bottom - top);
        let is_lane = |at: usize| slots.get(at).is_some_and(|slot| matches!(slot.content, Content::Edge(_)));
        let gap = |a: usize, b: usize| if is_lane(a) && is_lane(b) { ROW_GAP / 2.0 } else { GROUP_GAP };
        let apart: Vec<f64> = (0..slots.len())
            .map(|at| match at.checked_sub(1) {
                Some(above) => (height(above) + height(at)) / 2.0 + gap(above, at),
                None => 0.0,
            })
            .collect();
        for ((slot, middle), moved) in slots.iter().zip(&middles).zip(arrange(&middles, &apart)) {
            for item in slot.ranks.iter().flatten() {
                self.items.get_mut(*item).into_iter().for_each(|item| item.y += moved - middle);
            }
        }
    }

    /// Top and bottom of a slot; of the group's box alone if `framed`, which lanes beside it do not widen.
    pub(super) fn extent(&self, slot: &Slot, framed: bool) -> (f64, f64) {
        let (mut top, mut bottom) = (f64::INFINITY, f64::NEG_INFINITY);
        for (at, list) in slot.ranks.iter().enumerate() {
            if framed && (at < slot.span.0 || at > slot.span.1) {
                continue;
            }
            for item in list.iter().filter_map(|i| self.items.get(*i)) {
                top = top.min(item.y - item.h / 2.0);
                bottom = bottom.max(item.y + item.h / 2.0);
            }
        }
        if top > bottom {
            return (0.0, 0.0);
        }
        match slot.content {
            Content::Group(_) => (top - PAD - TITLE, bottom + PAD),
            Content::Edge(_) => (top, bottom),
        }
    }
}
