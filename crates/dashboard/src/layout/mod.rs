//! Where everything stands in the picture: from left to right along the calls, the nodes of a namespace together.
//!
//! A layered drawing (Sugiyama, Tagawa and Toda, 1981) in two levels: namespaces stand in columns, and the nodes of each
//! in ranks within its column. An edge that spans several ranks gets a lane of its own through each of them, so that no
//! line runs behind a node. Nothing is random, and what is equal is taken in order of names: the same mesh gives the same
//! picture, whoever asks and however often.

mod component;
mod heights;
mod isotonic;
mod order;
mod part;
mod ranks;
mod route;

#[cfg(test)]
use route::Point;
pub(crate) use route::{Route, figure};

/// Size of a node.
pub(crate) const NODE_W: f64 = 150.0;
/// Height of a node.
pub(crate) const NODE_H: f64 = 46.0;
/// Between two ranks of a namespace: room for a rate, or for a policy's name.
const RANK_GAPS: Gaps = Gaps { narrow: 74.0, wide: 124.0 };
/// Between nodes of two namespaces beside each other.
const COLUMN_GAPS: Gaps = Gaps { narrow: 108.0, wide: 164.0 };
/// Between nodes, or lanes, above each other.
const ROW_GAP: f64 = 16.0;
/// Between two nodes above each other that a line joins.
const JOINED_GAP: f64 = 54.0;
/// Around the nodes of a namespace.
const PAD: f64 = 16.0;
/// Above them, for its name.
const TITLE: f64 = 26.0;
/// Between namespaces above each other.
const GROUP_GAP: f64 = 22.0;
/// Around everything.
const MARGIN: f64 = 4.0;
/// Parts without a line between them stand beside each other up to this width, or that of the widest.
const SHELF: f64 = 900.0;

/// Room between two ranks, for the labels of lines that pass no other.
struct Gaps {
    narrow: f64,
    /// Where one of them has more to say than a rate.
    wide: f64,
}

/// What is to be laid out. Every index is in bounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Input {
    /// The group of each node.
    pub(crate) group_of: Vec<usize>,
    pub(crate) groups: usize,
    pub(crate) edges: Vec<Line>,
}

/// An edge to be drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Height of the lane that its label needs.
    pub(crate) lane: f64,
    /// Whether the label is a wide one.
    pub(crate) wide: bool,
}

/// A rectangle.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Area {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) w: f64,
    pub(crate) h: f64,
}

impl Area {
    /// The area that two have in common.
    pub(crate) fn overlap(&self, other: &Self) -> f64 {
        let w = (self.x + self.w).min(other.x + other.w) - self.x.max(other.x);
        let h = (self.y + self.h).min(other.y + other.h) - self.y.max(other.y);
        w.max(0.0) * h.max(0.0)
    }
}

/// Where everything stands, in the input's order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layout {
    pub(crate) w: f64,
    pub(crate) h: f64,
    pub(crate) groups: Vec<Area>,
    pub(crate) nodes: Vec<Area>,
    pub(crate) routes: Vec<Route>,
}

/// Lays out.
pub(crate) fn layout(input: &Input) -> Layout {
    let mut whole = Layout {
        groups: vec![Area::default(); input.groups],
        nodes: vec![Area::default(); input.group_of.len()],
        routes: vec![Route::default(); input.edges.len()],
        ..Layout::default()
    };
    let parts = ranks::components(
        input.groups,
        input.edges.iter().filter_map(|e| Some((*input.group_of.get(e.from)?, *input.group_of.get(e.to)?))),
    );
    let mut placed: Vec<_> = parts.iter().map(|groups| component::place(input, groups)).collect();
    // The largest first: it is the story, the rest stands below.
    placed.sort_by(|a, b| (b.w * b.h).total_cmp(&(a.w * a.h)));
    let shelf = placed.iter().map(|part| part.w + MARGIN).fold(SHELF, f64::max);
    let (mut x, mut y, mut shelf_h) = (MARGIN, MARGIN, 0.0_f64);
    for part in placed {
        if x > MARGIN && x + part.w > shelf {
            x = MARGIN;
            y += shelf_h + GROUP_GAP;
            shelf_h = 0.0;
        }
        whole.w = whole.w.max(x + part.w + MARGIN);
        whole.h = whole.h.max(y + part.h + MARGIN);
        shelf_h = shelf_h.max(part.h);
        let w = part.w;
        part.copy_into(&mut whole, x, y);
        x += w + GROUP_GAP;
    }
    whole
}

#[cfg(test)]
mod tests;
