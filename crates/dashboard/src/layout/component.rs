//! One connected part: columns of groups, ranks of nodes, lanes, and the heights of all of them.

use std::collections::BTreeMap;

use super::isotonic::arrange;
use super::ranks;
use super::route::{self, Chain, Level, Point, Route};
use super::{
    Area, COLUMN_GAP, GROUP_GAP, Input, JOINED_GAP, Layout, NODE_H, NODE_W, PAD, RANK_GAP, ROW_GAP, TITLE,
    WIDE_COLUMN_GAP,
};

/// Walks through the ranks to lessen crossings.
const SWEEPS: usize = 10;
/// Rounds that straighten the lines.
const ROUNDS: usize = 16;

/// A part laid out, its top left corner at the origin.
pub(super) struct Placed {
    pub(super) w: f64,
    pub(super) h: f64,
    groups: Vec<(usize, Area)>,
    nodes: Vec<(usize, Area)>,
    routes: Vec<(usize, Route)>,
}

impl Placed {
    pub(super) fn copy_into(self, whole: &mut Layout, x: f64, y: f64) {
        let moved = |area: Area| Area { x: area.x + x, y: area.y + y, ..area };
        for (at, area) in self.groups {
            if let Some(slot) = whole.groups.get_mut(at) {
                *slot = moved(area);
            }
        }
        for (at, area) in self.nodes {
            if let Some(slot) = whole.nodes.get_mut(at) {
                *slot = moved(area);
            }
        }
        for (at, route) in self.routes {
            if let Some(slot) = whole.routes.get_mut(at) {
                *slot = route.moved(x, y);
            }
        }
    }
}

/// A node, or the lane of an edge, in one rank.
#[derive(Debug, Clone, Copy)]
struct Item {
    node: Option<usize>,
    h: f64,
    /// Middle.
    y: f64,
    /// Distance kept above it.
    gap: f64,
}

/// What stands in one column above each other: a group, or the lanes of edges that pass the column.
#[derive(Debug, Clone, Default)]
struct Slot {
    group: Option<usize>,
    /// Items of each of the column's ranks, from above.
    ranks: Vec<Vec<usize>>,
    /// First and last of the column's ranks that hold nodes.
    span: (usize, usize),
}

struct Column {
    /// Number of its first rank in the whole part.
    first: usize,
    width: usize,
    slots: Vec<Slot>,
}

struct Part {
    columns: Vec<Column>,
    items: Vec<Item>,
    /// Items joined by a piece of an edge, from left to right.
    before: Vec<Vec<usize>>,
    after: Vec<Vec<usize>>,
    /// For each edge of the part: its number, and the items it passes from left to right.
    chains: Vec<(usize, Vec<usize>)>,
    /// Edges within one rank.
    level: Vec<usize>,
    /// Items that such edges join.
    mates: BTreeMap<usize, Vec<usize>>,
    item_of: BTreeMap<usize, usize>,
    /// Column of each rank.
    column_of: Vec<usize>,
}

/// Lays out the groups named, which edges join with each other and no others.
pub(super) fn place(input: &Input, groups: &[usize]) -> Placed {
    let mut part = Part::build(input, groups);
    part.order();
    part.straighten();
    part.finish(input)
}

impl Part {
    fn build(input: &Input, groups: &[usize]) -> Self {
        let group_of = |node: usize| input.group_of.get(node).copied().unwrap_or(0);
        let between: Vec<(usize, usize)> = input
            .edges
            .iter()
            .map(|e| (group_of(e.from), group_of(e.to)))
            .filter(|(a, b)| a != b && groups.contains(a))
            .collect();
        let column_of_group = ranks::ranks(groups, &between);
        let columns = column_of_group.values().max().map_or(1, |most| most + 1);
        let mut stacks: Vec<Column> =
            (0..columns).map(|_| Column { first: 0, width: 1, slots: Vec::new() }).collect();

        // Ranks of nodes within their groups.
        let mut rank_in: BTreeMap<usize, usize> = BTreeMap::new();
        for &group in groups {
            let members: Vec<usize> = (0..input.group_of.len()).filter(|n| group_of(*n) == group).collect();
            let (own, width) = ranks_within(input, &members, groups.len() > 1);
            let has_incoming = between.iter().any(|(_, to)| *to == group);
            let slot = Slot { group: Some(group), ranks: Vec::new(), span: (0, width.max(1) - 1) };
            rank_in.extend(own);
            if let Some(column) = column_of_group.get(&group).and_then(|at| stacks.get_mut(*at)) {
                column.width = column.width.max(width);
                column.slots.push(slot);
            }
            // Those who only call stand at the right of their column, next to whom they call.
            if !has_incoming
                && let Some(column) = column_of_group.get(&group).and_then(|at| stacks.get_mut(*at))
            {
                if let Some(slot) = column.slots.last_mut() {
                    slot.span.0 = usize::MAX;
                    slot.span.1 = width.max(1);
                }
            }
        }
        let mut first = 0;
        let mut column_of = Vec::new();
        for (at, column) in stacks.iter_mut().enumerate() {
            column.first = first;
            first += column.width;
            column_of.extend(std::iter::repeat_n(at, column.width));
            for slot in &mut column.slots {
                slot.ranks = vec![Vec::new(); column.width];
                if slot.span.0 == usize::MAX {
                    let width = slot.span.1;
                    slot.span = (column.width - width, column.width - 1);
                }
            }
        }
        let mut part = Self {
            columns: stacks,
            items: Vec::new(),
            before: Vec::new(),
            after: Vec::new(),
            chains: Vec::new(),
            level: Vec::new(),
            mates: BTreeMap::new(),
            item_of: BTreeMap::new(),
            column_of,
        };
        part.add_nodes(input, &rank_in);
        part.add_edges(input, &column_of_group);
        part
    }

    fn add_nodes(&mut self, input: &Input, rank_in: &BTreeMap<usize, usize>) {
        for column in &mut self.columns {
            for slot in &mut column.slots {
                let Some(group) = slot.group else { continue };
                for (node, rank) in rank_in.iter().filter(|(n, _)| input.group_of.get(**n) == Some(&group)) {
                    let item = self.items.len();
                    self.items.push(Item { node: Some(*node), h: NODE_H, y: 0.0, gap: ROW_GAP });
                    self.item_of.insert(*node, item);
                    if let Some(list) = slot.ranks.get_mut(slot.span.0 + rank) {
                        list.push(item);
                    }
                }
            }
        }
        self.before = vec![Vec::new(); self.items.len()];
        self.after = vec![Vec::new(); self.items.len()];
    }

    /// Number in the whole part of the rank that holds this item.
    fn rank_of(&self, item: usize) -> usize {
        for column in &self.columns {
            for slot in &column.slots {
                if let Some(at) = slot.ranks.iter().position(|list| list.contains(&item)) {
                    return column.first + at;
                }
            }
        }
        0
    }

    fn add_edges(&mut self, input: &Input, column_of_group: &BTreeMap<usize, usize>) {
        let rank: BTreeMap<usize, usize> =
            self.item_of.iter().map(|(node, item)| (*node, self.rank_of(*item))).collect();
        for (number, edge) in input.edges.iter().enumerate() {
            let (Some(&from), Some(&to)) = (rank.get(&edge.from), rank.get(&edge.to)) else { continue };
            if from == to {
                self.level.push(number);
                continue;
            }
            let (left, right) = if from < to { (edge.from, edge.to) } else { (edge.to, edge.from) };
            let column = |node: usize| {
                input.group_of.get(node).and_then(|group| column_of_group.get(group)).copied().unwrap_or(0)
            };
            let mut chain: Vec<usize> = self.item_of.get(&left).copied().into_iter().collect();
            for at in from.min(to) + 1..from.max(to) {
                let here = self.column_of.get(at).copied().unwrap_or(0);
                let group = if here == column(left) {
                    input.group_of.get(left).copied()
                } else if here == column(right) {
                    input.group_of.get(right).copied()
                } else {
                    None
                };
                chain.push(self.add_lane(here, at, group, edge.lane));
            }
            chain.extend(self.item_of.get(&right).copied());
            for pair in chain.windows(2) {
                if let [a, b] = pair {
                    self.after.get_mut(*a).into_iter().for_each(|list| list.push(*b));
                    self.before.get_mut(*b).into_iter().for_each(|list| list.push(*a));
                }
            }
            self.chains.push((number, chain));
        }
        self.join_level(input);
    }

    fn add_lane(&mut self, column: usize, rank: usize, group: Option<usize>, h: f64) -> usize {
        let item = self.items.len();
        self.items.push(Item { node: None, h, y: 0.0, gap: ROW_GAP / 2.0 });
        self.before.push(Vec::new());
        self.after.push(Vec::new());
        if let Some(column) = self.columns.get_mut(column) {
            let at = rank.saturating_sub(column.first);
            let place = match column.slots.iter().position(|slot| slot.group == group) {
                Some(place) => place,
                None => {
                    let ranks = vec![Vec::new(); column.width];
                    column.slots.push(Slot { group, ranks, span: (0, 0) });
                    column.slots.len() - 1
                }
            };
            let list = column.slots.get_mut(place).and_then(|slot| slot.ranks.get_mut(at));
            list.into_iter().for_each(|list| list.push(item));
        }
        item
    }

    /// Nodes that edges join within a rank stand further apart, the caller above.
    fn join_level(&mut self, input: &Input) {
        for number in &self.level {
            let Some(edge) = input.edges.get(*number) else { continue };
            let ends = (self.item_of.get(&edge.from), self.item_of.get(&edge.to));
            let (Some(&from), Some(&to)) = ends else { continue };
            if from == to {
                continue;
            }
            for slot in self.columns.iter_mut().flat_map(|c| &mut c.slots) {
                for list in &mut slot.ranks {
                    let places = (list.iter().position(|i| *i == from), list.iter().position(|i| *i == to));
                    if let (Some(a), Some(b)) = places
                        && a > b
                    {
                        list.swap(a, b);
                    }
                }
            }
            self.mates.entry(from).or_default().push(to);
            self.mates.entry(to).or_default().push(from);
            for end in [from, to] {
                self.items.get_mut(end).into_iter().for_each(|item| item.gap = JOINED_GAP);
            }
        }
    }

    fn y(&self, item: usize) -> f64 {
        self.items.get(item).map_or(0.0, |item| item.y)
    }

    fn mean(&self, of: &[usize]) -> Option<f64> {
        let sum: f64 = of.iter().map(|item| self.y(*item)).sum();
        (!of.is_empty()).then(|| sum / of.len() as f64)
    }

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
    fn order(&mut self) {
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
                let own: Vec<usize> = items().copied().collect();
                let outside: Vec<usize> = items()
                    .filter_map(|i| sides.get(*i))
                    .flatten()
                    .filter(|i| !own.contains(i))
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

    /// Moves everything, in its order, towards what it is joined with.
    fn straighten(&mut self) {
        for _ in 0..ROUNDS {
            for column in 0..self.columns.len() {
                let slots = self.columns.get(column).map(|c| c.slots.clone()).unwrap_or_default();
                for list in slots.iter().flat_map(|slot| &slot.ranks) {
                    let wanted: Vec<f64> = list.iter().map(|item| self.wish(*item)).collect();
                    let apart = self.distances(list);
                    for (item, y) in list.iter().zip(arrange(&wanted, &apart)) {
                        self.items.get_mut(*item).into_iter().for_each(|item| item.y = y);
                    }
                }
                self.separate(&slots);
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
        let apart: Vec<f64> = (0..slots.len())
            .map(|at| match at.checked_sub(1) {
                Some(above) => (height(above) + height(at)) / 2.0 + GROUP_GAP,
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
    fn extent(&self, slot: &Slot, framed: bool) -> (f64, f64) {
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
        if slot.group.is_some() { (top - PAD - TITLE, bottom + PAD) } else { (top, bottom) }
    }

    fn finish(self, input: &Input) -> Placed {
        // Left edges of the ranks.
        let mut x = PAD;
        let mut lefts = Vec::new();
        let mut w = 0.0;
        for (at, column) in self.columns.iter().enumerate() {
            for _ in 0..column.width {
                lefts.push(x);
                x += NODE_W + RANK_GAP;
            }
            w = x - RANK_GAP + PAD;
            x += self.gap_after(input, at) - RANK_GAP;
        }
        let all = self.columns.iter().flat_map(|c| &c.slots).map(|slot| self.extent(slot, false));
        let (top, bottom) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |a, b| (a.0.min(b.0), a.1.max(b.1)));
        let h = (bottom - top).max(0.0);
        let mut placed = Placed { w, h, groups: Vec::new(), nodes: Vec::new(), routes: Vec::new() };
        let mut middle_of: BTreeMap<usize, Point> = BTreeMap::new();
        for column in &self.columns {
            for slot in &column.slots {
                for (at, list) in slot.ranks.iter().enumerate() {
                    let left = lefts.get(column.first + at).copied().unwrap_or(0.0);
                    for (item, known) in list.iter().filter_map(|i| Some((i, self.items.get(*i)?))) {
                        let y = known.y - top;
                        middle_of.insert(*item, Point { x: left + NODE_W / 2.0, y });
                        if let Some(node) = known.node {
                            placed
                                .nodes
                                .push((node, Area { x: left, y: y - NODE_H / 2.0, w: NODE_W, h: NODE_H }));
                        }
                    }
                }
                if let Some(group) = slot.group {
                    let edge = |at: usize| lefts.get(column.first + at).copied().unwrap_or(0.0);
                    let (from, to) = (edge(slot.span.0) - PAD, edge(slot.span.1) + NODE_W + PAD);
                    let (box_top, box_bottom) = self.extent(slot, true);
                    let area = Area { x: from, y: box_top - top, w: to - from, h: box_bottom - box_top };
                    placed.groups.push((group, area));
                }
            }
        }
        let point = |item: &usize| middle_of.get(item).copied();
        let chains: Vec<Chain> = self
            .chains
            .iter()
            .map(|(number, chain)| Chain {
                number: *number,
                points: chain.iter().filter_map(point).collect(),
                leftwards: input.edges.get(*number).and_then(|e| self.item_of.get(&e.from)) != chain.first(),
            })
            .collect();
        let level: Vec<Level> = self
            .level
            .iter()
            .filter_map(|number| {
                let edge = input.edges.get(*number)?;
                let (from, to) = (self.item_of.get(&edge.from)?, self.item_of.get(&edge.to)?);
                let adjacent = self.is_adjacent(*from, *to);
                Some(Level { number: *number, from: point(from)?, to: point(to)?, adjacent })
            })
            .collect();
        placed.routes = route::routes(input, &chains, &level);
        placed
    }
}

impl Part {
    /// Room between a column and the next: more if a line that must say why ends right behind it, or begins right before
    /// it, and so has no lane for its label.
    fn gap_after(&self, input: &Input, column: usize) -> f64 {
        let last = self.columns.get(column).map_or(0, |c| c.first + c.width - 1);
        let crosses = |chain: &Vec<usize>| match chain.as_slice() {
            [a, b] => self.rank_of(*a) == last && self.rank_of(*b) == last + 1,
            _ => false,
        };
        let is_wide = |number: &usize| input.edges.get(*number).is_some_and(|edge| edge.wide);
        match self.chains.iter().any(|(number, chain)| is_wide(number) && crosses(chain)) {
            true => WIDE_COLUMN_GAP,
            false => COLUMN_GAP,
        }
    }

    fn is_adjacent(&self, a: usize, b: usize) -> bool {
        let lists = self.columns.iter().flat_map(|c| &c.slots).flat_map(|slot| &slot.ranks);
        lists.flat_map(|list| list.windows(2)).any(|pair| pair == [a, b] || pair == [b, a])
    }
}

/// Ranks of a group's nodes, and how many ranks there are.
fn ranks_within(input: &Input, members: &[usize], among_others: bool) -> (BTreeMap<usize, usize>, usize) {
    let inner: Vec<(usize, usize)> = input
        .edges
        .iter()
        .map(|e| (e.from, e.to))
        .filter(|(a, b)| members.contains(a) && members.contains(b))
        .collect();
    let joined: Vec<usize> =
        members.iter().copied().filter(|m| input.edges.iter().any(|e| e.from == *m || e.to == *m)).collect();
    let mut own = ranks::ranks(&joined, &inner);
    let mut width = own.values().max().map_or(0, |most| most + 1);
    if among_others && width == 2 && members.len() <= 3 {
        own.values_mut().for_each(|rank| *rank = 0);
        width = 1;
    }
    // Those without traffic fill the gaps, in a shape that is wider than tall.
    let alone: Vec<usize> = members.iter().copied().filter(|m| !joined.contains(m)).collect();
    let wide = ((members.len() as f64 / 2.0).sqrt().ceil() as usize).clamp(1, 6);
    if !alone.is_empty() {
        width = width.max(wide);
    }
    let mut filled = vec![0_usize; width.max(1)];
    for rank in own.values() {
        filled.get_mut(*rank).into_iter().for_each(|n| *n += 1);
    }
    for node in alone {
        let emptiest = filled.iter().enumerate().min_by_key(|(at, n)| (**n, *at)).map_or(0, |(at, _)| at);
        filled.get_mut(emptiest).into_iter().for_each(|n| *n += 1);
        own.insert(node, emptiest);
    }
    (own, width.max(1))
}
