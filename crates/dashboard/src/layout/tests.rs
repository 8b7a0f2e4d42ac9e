use super::*;

/// The shop: dev → frontend, catalog, payment; frontend → catalog, cart, payment, orders; and so on.
fn shop() -> Input {
    let groups = [("dev", 0), ("legacy-client", 1), ("inventory", 1), ("frontend", 2), ("catalog", 2)];
    let more = [("cart", 2), ("payment", 2), ("orders", 2), ("idle", 3)];
    let calls = [
        (0, 3),
        (0, 4),
        (0, 6),
        (1, 2),
        (1, 3),
        (1, 6),
        (3, 4),
        (3, 5),
        (3, 6),
        (3, 7),
        (5, 6),
        (5, 7),
        (6, 7),
    ];
    Input {
        group_of: groups.iter().chain(&more).map(|(_, group)| *group).collect(),
        groups: 4,
        edges: calls
            .iter()
            .map(|(from, to)| Line { from: *from, to: *to, lane: 20.0, wide: false })
            .collect(),
    }
}

fn assert_sound(input: &Input, found: &Layout) {
    let inside = |a: &Area, b: &Area| {
        a.x >= b.x - 0.1 && a.y >= b.y - 0.1 && a.x + a.w <= b.x + b.w + 0.1 && a.y + a.h <= b.y + b.h + 0.1
    };
    let whole = Area { x: 0.0, y: 0.0, w: found.w, h: found.h };
    for (at, node) in found.nodes.iter().enumerate() {
        assert!(node.w > 0.0 && inside(node, &found.groups[input.group_of[at]]), "node {at}: {node:?}");
        for (other, area) in found.nodes.iter().enumerate().skip(at + 1) {
            assert_eq!(node.overlap(area), 0.0, "nodes {at} and {other}");
        }
    }
    for (at, group) in found.groups.iter().enumerate().filter(|(_, g)| g.w > 0.0) {
        assert!(inside(group, &whole), "group {at}: {group:?} in {whole:?}");
        for (other, area) in found.groups.iter().enumerate().skip(at + 1) {
            assert!(group.overlap(area) < 0.1, "groups {at} {group:?} and {other} {area:?}");
        }
    }
    for (edge, route) in input.edges.iter().zip(&found.routes) {
        let touches = |node: usize, p: Point| {
            let a = &found.nodes[node];
            inside(&Area { x: p.x, y: p.y, w: 0.0, h: 0.0 }, a)
        };
        assert!(touches(edge.from, route.start), "{edge:?}: {route:?}");
        assert!(route.curves.last().is_some_and(|[_, _, end]| touches(edge.to, *end)), "{edge:?}: {route:?}");
    }
}

#[test]
fn the_shop_is_laid_out_along_its_calls() {
    let input = shop();
    let found = layout(&input);
    assert_sound(&input, &found);
    let x = |node: usize| found.nodes[node].x;
    // dev-service | frontend | cart | payment | orders
    assert!(x(0) < x(3) && x(3) < x(5) && x(5) < x(6) && x(6) < x(7));
    assert!(found.w < 1400.0 && found.h < 600.0, "{} x {}", found.w, found.h);
    // What talks to nobody stands below.
    assert!(found.groups[3].y > found.groups[2].y + found.groups[2].h);
}

#[test]
fn no_line_runs_behind_a_node() {
    let input = shop();
    let found = layout(&input);
    for (edge, route) in input.edges.iter().zip(&found.routes) {
        for point in route.anchors() {
            for (at, node) in
                found.nodes.iter().enumerate().filter(|(at, _)| *at != edge.from && *at != edge.to)
            {
                let spot = Area { x: point.x - 1.0, y: point.y - 1.0, w: 2.0, h: 2.0 };
                assert_eq!(node.overlap(&spot), 0.0, "{edge:?} passes node {at}");
            }
        }
    }
}

#[test]
fn the_same_mesh_gives_the_same_picture() {
    let (a, b) = (layout(&shop()), layout(&shop()));
    assert_eq!((a.nodes, a.groups, a.routes), (b.nodes, b.groups, b.routes));
}

#[test]
fn nothing_at_all_is_laid_out() {
    let found = layout(&Input::default());
    assert!(found.nodes.is_empty());
}

/// As much as a picture ever holds: 200 nodes in 25 namespaces, 400 edges criss-cross.
#[test]
fn the_largest_picture_is_laid_out() {
    let edges = (0..400_usize).map(|n| {
        let from = (n * 7919) % 200;
        Line { from, to: (from + 1 + (n * 104_729) % 60) % 200, lane: 33.0, wide: true }
    });
    let input = Input { group_of: (0..200).map(|n| n / 8).collect(), groups: 25, edges: edges.collect() };
    assert_sound(&input, &layout(&input));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]
    #[test]
    fn any_mesh_is_laid_out_soundly(
        group_of in proptest::collection::vec(0_usize..5, 1..24),
        pairs in proptest::collection::vec((0_usize..24, 0_usize..24), 0..40),
    ) {
        let count = group_of.len();
        let edges = pairs.iter().map(|(a, b)| Line { from: a % count, to: b % count, lane: 30.0, wide: true }).collect();
        let input = Input { group_of, groups: 5, edges };
        assert_sound(&input, &layout(&input));
    }
}
