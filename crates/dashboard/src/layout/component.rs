//! One connected part, from its edges to its places.

use std::collections::{BTreeMap, BTreeSet};

use super::part::{Content, Part};
use super::route::{self, Chain, Level, Point, Route};
use super::{Area, COLUMN_GAPS, Gaps, Input, Layout, NODE_H, NODE_W, PAD, RANK_GAPS};

/// A part laid out, its top left corner at the origin.
pub(super) struct Placed {
    pub(super) w: f64,
    pub(super) h: f64,
    groups: Vec<(usize, Area)>,
    nodes: Vec<(usize, Area)>,
    routes: Vec<(usize, Route)>,
}

impl Placed {
    /// Lines that were led around something may come out of the part, with half a label.
    fn make_room(mut self) -> Self {
        let (mut low, mut high) = (Point::default(), Point { x: self.w, y: self.h });
        for (a, b) in self.routes.iter().map(|(_, route)| route.extent()) {
            let beyond = if a.x < 0.0 { a.x - PAD } else { 0.0 };
            low = Point { x: low.x.min(beyond), y: low.y.min(a.y) };
            high = Point { x: high.x.max(b.x), y: high.y.max(b.y) };
        }
        (self.w, self.h) = (high.x - low.x, high.y - low.y);
        for (_, area) in self.groups.iter_mut().chain(&mut self.nodes) {
            area.x -= low.x;
            area.y -= low.y;
        }
        self.routes = self.routes.into_iter().map(|(at, route)| (at, route.moved(-low.x, -low.y))).collect();
        self
    }

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

/// Lays out the groups named, which edges join with each other and no others.
pub(super) fn place(input: &Input, groups: &[usize]) -> Placed {
    let mut part = Part::build(input, groups);
    part.order();
    part.straighten();
    part.finish(input)
}

impl Part {
    fn finish(self, input: &Input) -> Placed {
        // Left edges of the ranks.
        let wide = self.wide_gaps(input);
        let (mut x, mut lefts) = (PAD, Vec::new());
        for rank in 0..self.column_of.len() {
            lefts.push(x);
            let within = self.column_of.get(rank) == self.column_of.get(rank + 1);
            let Gaps { narrow, wide: more } = if within { RANK_GAPS } else { COLUMN_GAPS };
            x += NODE_W + if wide.contains(&rank) { more } else { narrow };
        }
        let w = lefts.last().map_or(0.0, |left| left + NODE_W + PAD);
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
                if let Content::Group(group) = slot.content {
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
        placed.make_room()
    }

    /// The ranks behind which there must be room for a line's label: it has more to say than a rate, and no lane.
    fn wide_gaps(&self, input: &Input) -> BTreeSet<usize> {
        let is_wide = |number: &usize| input.edges.get(*number).is_some_and(|edge| edge.wide);
        let direct = self.chains.iter().filter(|(number, chain)| chain.len() == 2 && is_wide(number));
        direct.filter_map(|(_, chain)| chain.first().map(|left| self.rank_of(*left))).collect()
    }

    fn is_adjacent(&self, a: usize, b: usize) -> bool {
        let lists = self.columns.iter().flat_map(|c| &c.slots).flat_map(|slot| &slot.ranks);
        lists.flat_map(|list| list.windows(2)).any(|pair| pair == [a, b] || pair == [b, a])
    }
}
