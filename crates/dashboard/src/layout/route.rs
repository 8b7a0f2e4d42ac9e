//! The lines: out of a node's right side, along lanes, into the next one's left side.

use std::collections::BTreeMap;

use super::isotonic::arrange;
use super::{Input, NODE_H, NODE_W};

/// Distance kept between labels above each other.
const BETWEEN_LABELS: f64 = 4.0;

/// A place in the picture.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
}

impl Point {
    fn moved(self, x: f64, y: f64) -> Self {
        Self { x: self.x + x, y: self.y + y }
    }
}

/// A line of cubic curves: each has two control points and an end; `start` begins the first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Route {
    pub(crate) start: Point,
    pub(crate) curves: Vec<[Point; 3]>,
    /// Where there is room for its label, if that was seen to.
    pub(crate) label: Option<Point>,
}

impl Route {
    pub(super) fn moved(self, x: f64, y: f64) -> Self {
        let curves = self.curves.into_iter().map(|curve| curve.map(|p| p.moved(x, y))).collect();
        Self { start: self.start.moved(x, y), curves, label: self.label.map(|label| label.moved(x, y)) }
    }

    /// The line in the other direction.
    fn reversed(self) -> Self {
        let mut ends = vec![self.start];
        ends.extend(self.curves.iter().map(|[_, _, end]| *end));
        let start = ends.pop().unwrap_or_default();
        let curves = self.curves.into_iter().rev().zip(ends.into_iter().rev());
        Self { start, curves: curves.map(|([a, b, _], end)| [b, a, end]).collect(), label: self.label }
    }

    /// SVG path data.
    pub(crate) fn path(&self) -> String {
        let mut out = format!("M{} {}", figure(self.start.x), figure(self.start.y));
        for [a, b, end] in &self.curves {
            let [a, b, end] = [a, b, end].map(|p| format!("{} {}", figure(p.x), figure(p.y)));
            out.push_str(&format!("C{a} {b} {end}"));
        }
        out
    }

    /// What it keeps within: top left and bottom right.
    pub(super) fn extent(&self) -> (Point, Point) {
        let points = self.curves.iter().flatten().chain([&self.start]);
        points.fold((self.start, self.start), |(low, high), p| {
            let low = Point { x: low.x.min(p.x), y: low.y.min(p.y) };
            (low, Point { x: high.x.max(p.x), y: high.y.max(p.y) })
        })
    }

    /// Places on the line for a label, the best first: where it runs straight, then the middles of its curves, then the
    /// rest of it; of equals, those nearer to the middle of the line.
    pub(crate) fn anchors(&self) -> Vec<Point> {
        let mut from = self.start;
        let mut found: Vec<(u8, usize, Point)> = Vec::new();
        let middle = self.curves.len() / 2;
        for (at, [a, b, end]) in self.curves.iter().enumerate() {
            let is_lane = (from.y - end.y).abs() < 0.01;
            let spread: &[(u8, f64)] = &[(1, 0.5), (2, 0.36), (2, 0.64), (3, 0.22), (3, 0.78)];
            for (worse, t) in spread {
                let rank = if is_lane { worse - 1 } else { *worse };
                found.push((rank, at.abs_diff(middle), bezier(from, *a, *b, *end, *t)));
            }
            from = *end;
        }
        found.sort_by_key(|(rank, distance, _)| (*rank, *distance));
        self.label.into_iter().chain(found.into_iter().map(|(_, _, point)| point)).collect()
    }
}

/// A coordinate with one decimal at most.
pub(crate) fn figure(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn bezier(from: Point, a: Point, b: Point, to: Point, t: f64) -> Point {
    let u = 1.0 - t;
    let mix = |p: f64, q: f64, r: f64, s: f64| {
        u * u * u * p + 3.0 * u * u * t * q + 3.0 * u * t * t * r + t * t * t * s
    };
    Point { x: mix(from.x, a.x, b.x, to.x), y: mix(from.y, a.y, b.y, to.y) }
}

/// What a line passes, from left to right.
pub(super) struct Chain {
    /// Number of the edge.
    pub(super) number: usize,
    /// Middles of the nodes at both ends, and of the lanes between them.
    pub(super) points: Vec<Point>,
    /// Whether the edge goes from right to left.
    pub(super) leftwards: bool,
}

/// An edge between two nodes of one rank, or of a node with itself.
pub(super) struct Level {
    pub(super) number: usize,
    pub(super) from: Point,
    pub(super) to: Point,
    /// Whether nothing stands between them.
    pub(super) adjacent: bool,
}

/// Draws the lines.
pub(super) fn routes(input: &Input, chains: &[Chain], level: &[Level]) -> Vec<(usize, Route)> {
    let ports = Ports::share(input, chains);
    let knees = knees(input, chains, &ports);
    let mut found = Vec::new();
    for chain in chains {
        let [first, lanes @ .., last] = chain.points.as_slice() else { continue };
        let start = Point { x: first.x + NODE_W / 2.0, y: ports.at(chain.number, true, first.y) };
        let end = Point { x: last.x - NODE_W / 2.0, y: ports.at(chain.number, false, last.y) };
        let mut route = Route { start, ..Route::default() };
        let mut at = start;
        if let Some(y) = knees.get(&chain.number) {
            let knee = Point { x: (start.x + end.x) / 2.0, y: *y };
            route.curves.push(across(at, knee));
            route.label = Some(knee);
            at = knee;
        }
        for lane in lanes {
            let enter = Point { x: lane.x - NODE_W / 2.0, y: lane.y };
            let leave = Point { x: lane.x + NODE_W / 2.0, y: lane.y };
            route.curves.push(across(at, enter));
            route.curves.push(across(enter, leave));
            at = leave;
        }
        route.curves.push(across(at, end));
        found.push((chain.number, if chain.leftwards { route.reversed() } else { route }));
    }
    let mut same: BTreeMap<(usize, usize), u8> = BTreeMap::new();
    for edge in level {
        let Some(line) = input.edges.get(edge.number) else { continue };
        let nth = same.entry((line.from.min(line.to), line.from.max(line.to))).or_default();
        found.push((edge.number, within_rank(edge, f64::from(*nth))));
        *nth = nth.saturating_add(1);
    }
    found
}

/// Lines between neighbouring ranks have no lanes, and their labels stand in the gap between the ranks: those that would
/// cover each other are led apart there. For each such line, the height at which it passes the middle of the gap.
fn knees(input: &Input, chains: &[Chain], ports: &Ports) -> BTreeMap<usize, f64> {
    // By the gap they pass: a rank's nodes all stand at the same place from left to right.
    let mut gaps: BTreeMap<i64, Vec<(f64, usize, f64)>> = BTreeMap::new();
    for chain in chains {
        let [first, last] = chain.points.as_slice() else { continue };
        let Some(edge) = input.edges.get(chain.number) else { continue };
        let wish = (ports.at(chain.number, true, first.y) + ports.at(chain.number, false, last.y)) / 2.0;
        let gap = gaps.entry(first.x.round() as i64).or_default();
        gap.push((wish, chain.number, edge.lane + BETWEEN_LABELS));
    }
    let mut knees = BTreeMap::new();
    for mut lines in gaps.into_values() {
        lines.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let wishes: Vec<f64> = lines.iter().map(|(wish, ..)| *wish).collect();
        let mut above = 0.0;
        let apart: Vec<f64> = lines
            .iter()
            .map(|(_, _, height)| {
                let distance = (above + height) / 2.0;
                above = *height;
                distance
            })
            .collect();
        for ((wish, number, _), y) in lines.iter().zip(arrange(&wishes, &apart)) {
            if (y - wish).abs() > 1.0 {
                knees.insert(*number, y);
            }
        }
    }
    knees
}

/// A curve that leaves and arrives level.
fn across(from: Point, to: Point) -> [Point; 3] {
    let half = (to.x - from.x) / 2.0;
    [Point { x: from.x + half, y: from.y }, Point { x: to.x - half, y: to.y }, to]
}

/// A line down or up between neighbours, around those between them, or from a node back to itself.
fn within_rank(edge: &Level, nth: f64) -> Route {
    let Level { from, to, .. } = *edge;
    if from == to {
        let (x, top) = (from.x + NODE_W / 4.0 - nth.min(2.0) * 36.0, from.y - NODE_H / 2.0);
        let start = Point { x: x - 14.0, y: top };
        let [a, b, end] = [(x - 18.0, -24.0), (x + 18.0, -24.0), (x + 14.0, 0.0)];
        let point = |(x, y): (f64, f64)| Point { x, y: top + y };
        return Route { start, curves: vec![[point(a), point(b), point(end)]], label: None };
    }
    let down = if from.y < to.y { 1.0 } else { -1.0 };
    if edge.adjacent {
        // Beside the middle by turns, as far as the nodes are wide.
        let side = if nth % 2.0 == 0.0 { -1.0 } else { 1.0 };
        let x = from.x + side * ((nth / 2.0).ceil() * 40.0).min(NODE_W / 2.0 - 8.0);
        let (start, end) = (from.y + down * NODE_H / 2.0, to.y - down * NODE_H / 2.0);
        let half = (end - start) / 2.0;
        let curve = [(start + half), (end - half), end].map(|y| Point { x, y });
        return Route { start: Point { x, y: start }, curves: vec![curve], label: None };
    }
    let left = from.x - NODE_W / 2.0;
    let out = left - 30.0 - nth * 16.0;
    let curve = [Point { x: out, y: from.y }, Point { x: out, y: to.y }, Point { x: left, y: to.y }];
    Route { start: Point { x: left, y: from.y }, curves: vec![curve], label: None }
}

/// A line's end at the side of a node.
struct End {
    /// Height of where it comes from, or goes to.
    towards: f64,
    /// Number of the edge.
    number: usize,
    /// Height of the node's middle.
    middle: f64,
}

/// Where lines touch the sides of nodes: spread, in the order of where they come from or go to, so that they do not cross
/// there.
struct Ports {
    /// By edge, and whether it is the right side of a node.
    y: BTreeMap<(usize, bool), f64>,
}

impl Ports {
    fn share(input: &Input, chains: &[Chain]) -> Self {
        let mut sides: BTreeMap<(usize, bool), Vec<End>> = BTreeMap::new();
        for chain in chains {
            let Some(edge) = input.edges.get(chain.number) else { continue };
            let (left, right) = if chain.leftwards { (edge.to, edge.from) } else { (edge.from, edge.to) };
            let [first, .., last] = chain.points.as_slice() else { continue };
            let after_first = chain.points.get(1).unwrap_or(last).y;
            let before_last = chain.points.iter().rev().nth(1).unwrap_or(first).y;
            let end = |towards, middle: &Point| End { towards, number: chain.number, middle: middle.y };
            sides.entry((left, true)).or_default().push(end(after_first, first));
            sides.entry((right, false)).or_default().push(end(before_last, last));
        }
        let mut y = BTreeMap::new();
        for ((_, right), mut ends) in sides {
            ends.sort_by(|a, b| a.towards.total_cmp(&b.towards).then(a.number.cmp(&b.number)));
            let count = ends.len() as f64;
            let step = ((NODE_H - 14.0) / (count - 1.0).max(1.0)).min(11.0);
            for (at, end) in ends.into_iter().enumerate() {
                y.insert((end.number, right), end.middle + (at as f64 - (count - 1.0) / 2.0) * step);
            }
        }
        Self { y }
    }

    fn at(&self, number: usize, right: bool, otherwise: f64) -> f64 {
        self.y.get(&(number, right)).copied().unwrap_or(otherwise)
    }
}
