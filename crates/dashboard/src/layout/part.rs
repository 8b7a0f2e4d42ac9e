//! What is laid out together: columns of groups, ranks of nodes, and the lanes of the lines that pass them.

use std::collections::BTreeMap;

use super::{Input, JOINED_GAP, NODE_H, ROW_GAP, ranks};

/// A node, or the lane of an edge, in one rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) node: Option<usize>,
    pub(super) h: f64,
    /// Middle.
    pub(super) y: f64,
    /// Distance kept above it.
    pub(super) gap: f64,
}

/// What stands in one column above each other: a group with its nodes and the lanes through it, or one edge's lanes beside
/// all groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Group(usize),
    Edge(usize),
}

/// A place for one of these.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) content: Content,
    /// Items of each of the column's ranks, from above.
    pub(super) ranks: Vec<Vec<usize>>,
    /// First and last of the column's ranks that hold nodes.
    pub(super) span: (usize, usize),
}

#[derive(Debug, Default)]
pub(super) struct Column {
    /// Number of its first rank in the whole part.
    pub(super) first: usize,
    pub(super) width: usize,
    pub(super) slots: Vec<Slot>,
}

/// Groups that edges join, as columns and ranks.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) columns: Vec<Column>,
    pub(super) items: Vec<Item>,
    /// Items joined by a piece of an edge, from left to right.
    pub(super) before: Vec<Vec<usize>>,
    pub(super) after: Vec<Vec<usize>>,
    /// For each edge of the part: its number, and the items it passes from left to right.
    pub(super) chains: Vec<(usize, Vec<usize>)>,
    /// Edges within one rank.
    pub(super) level: Vec<usize>,
    /// Items that such edges join.
    pub(super) mates: BTreeMap<usize, Vec<usize>>,
    pub(super) item_of: BTreeMap<usize, usize>,
    /// Column of each rank.
    pub(super) column_of: Vec<usize>,
}

impl Part {
    /// Gives every node its rank and every edge its lanes; nothing has its height yet.
    pub(super) fn build(input: &Input, groups: &[usize]) -> Self {
        let group_of = |node: usize| input.group_of.get(node).copied().unwrap_or(0);
        let between: Vec<(usize, usize)> = input
            .edges
            .iter()
            .map(|e| (group_of(e.from), group_of(e.to)))
            .filter(|(a, b)| a != b && groups.contains(a))
            .collect();
        let column_of_group = ranks::ranks(groups, &between);
        let count = column_of_group.values().max().map_or(1, |most| most + 1);
        let mut columns: Vec<Column> = (0..count).map(|_| Column::default()).collect();

        let mut rank_in: BTreeMap<usize, usize> = BTreeMap::new();
        for &group in groups {
            let members: Vec<usize> = (0..input.group_of.len()).filter(|n| group_of(*n) == group).collect();
            let (own, width) = ranks_within(input, &members, groups.len() > 1);
            rank_in.extend(own);
            if let Some(column) = column_of_group.get(&group).and_then(|at| columns.get_mut(*at)) {
                column.width = column.width.max(width);
                column.slots.push(Slot {
                    content: Content::Group(group),
                    ranks: Vec::new(),
                    span: (0, width - 1),
                });
            }
        }
        let (mut first, mut column_of) = (0, Vec::new());
        for (at, column) in columns.iter_mut().enumerate() {
            column.first = first;
            first += column.width;
            column_of.extend(std::iter::repeat_n(at, column.width));
            for slot in &mut column.slots {
                slot.ranks = vec![Vec::new(); column.width];
                // Those who only call stand at the right of their column, next to whom they call.
                if !between.iter().any(|(_, to)| Content::Group(*to) == slot.content) {
                    slot.span = (column.width - 1 - slot.span.1, column.width - 1);
                }
            }
        }
        let mut part = Self {
            columns,
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
                let Content::Group(group) = slot.content else { continue };
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
    pub(super) fn rank_of(&self, item: usize) -> usize {
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
                let group = |node: usize| input.group_of.get(node).copied().map(Content::Group);
                let content = if here == column(left) {
                    group(left)
                } else if here == column(right) {
                    group(right)
                } else {
                    None
                };
                chain.push(self.add_lane(here, at, content.unwrap_or(Content::Edge(number)), edge.lane));
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

    fn add_lane(&mut self, column: usize, rank: usize, content: Content, h: f64) -> usize {
        let item = self.items.len();
        self.items.push(Item { node: None, h, y: 0.0, gap: ROW_GAP / 2.0 });
        self.before.push(Vec::new());
        self.after.push(Vec::new());
        if let Some(column) = self.columns.get_mut(column) {
            let at = rank.saturating_sub(column.first);
            let place = match column.slots.iter().position(|slot| slot.content == content) {
                Some(place) => place,
                None => {
                    let ranks = vec![Vec::new(); column.width];
                    column.slots.push(Slot { content, ranks, span: (0, 0) });
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

    pub(super) fn y(&self, item: usize) -> f64 {
        self.items.get(item).map_or(0.0, |item| item.y)
    }

    pub(super) fn mean(&self, of: &[usize]) -> Option<f64> {
        let sum: f64 = of.iter().map(|item| self.y(*item)).sum();
        (!of.is_empty()).then(|| sum / of.len() as f64)
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
