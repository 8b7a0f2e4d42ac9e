//! Orders along the arrows: components, directions without cycles, ranks.

use std::collections::{BTreeMap, BTreeSet};

/// Sets of what edges join, each in order, in the order of their first members.
pub(super) fn components(count: usize, edges: impl Iterator<Item = (usize, usize)>) -> Vec<Vec<usize>> {
    let mut root: Vec<usize> = (0..count).collect();
    fn find(root: &mut [usize], mut at: usize) -> usize {
        while let Some(&up) = root.get(at)
            && up != at
        {
            let above = root.get(up).copied().unwrap_or(up);
            if let Some(slot) = root.get_mut(at) {
                *slot = above;
            }
            at = above;
        }
        at
    }
    for (a, b) in edges {
        let (a, b) = (find(&mut root, a), find(&mut root, b));
        if let Some(slot) = root.get_mut(a.max(b)) {
            *slot = a.min(b);
        }
    }
    let mut sets: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in 0..count {
        sets.entry(find(&mut root, at)).or_default().push(at);
    }
    sets.into_values().collect()
}

/// A rank for each of `members` such that edges go from lower to higher ranks, but for those that close a cycle.
///
/// Between two members the direction that more edges have counts; a cycle is cut where a walk from the sources, in
/// order, comes back. Sources stand right before the first of their targets.
pub(super) fn ranks(members: &[usize], edges: &[(usize, usize)]) -> BTreeMap<usize, usize> {
    let mut weights: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for &(a, b) in edges {
        if a != b {
            *weights.entry((a, b)).or_default() += 1;
        }
    }
    let mut next: BTreeMap<usize, BTreeSet<usize>> = members.iter().map(|m| (*m, BTreeSet::new())).collect();
    for (&(a, b), &weight) in &weights {
        let back = weights.get(&(b, a)).copied().unwrap_or(0);
        if (weight > back || weight == back && a < b)
            && let Some(targets) = next.get_mut(&a)
        {
            targets.insert(b);
        }
    }
    let order = cut_cycles(members, &mut next);

    let mut rank: BTreeMap<usize, usize> = members.iter().map(|m| (*m, 0)).collect();
    for at in &order {
        let own = rank.get(at).copied().unwrap_or(0);
        for target in next.get(at).into_iter().flatten() {
            if let Some(r) = rank.get_mut(target) {
                *r = (*r).max(own + 1);
            }
        }
    }
    let targets: BTreeSet<usize> = next.values().flatten().copied().collect();
    for at in members.iter().filter(|m| !targets.contains(m)) {
        let nearest = next.get(at).into_iter().flatten().filter_map(|t| rank.get(t)).min().copied();
        if let (Some(nearest), Some(r)) = (nearest, rank.get_mut(at)) {
            *r = nearest.saturating_sub(1);
        }
    }
    rank
}

/// Takes away the edges that close cycles, and answers the rest's topological order.
fn cut_cycles(members: &[usize], next: &mut BTreeMap<usize, BTreeSet<usize>>) -> Vec<usize> {
    let targets: BTreeSet<usize> = next.values().flatten().copied().collect();
    let (mut starts, rest): (Vec<usize>, Vec<usize>) = members.iter().partition(|m| !targets.contains(m));
    starts.extend(rest);
    let mut done: BTreeSet<usize> = BTreeSet::new();
    let mut finished: Vec<usize> = Vec::new();
    for start in starts {
        if done.contains(&start) {
            continue;
        }
        // The way from `start`: who is on it, and whom each has still to visit.
        let mut on_way = BTreeSet::from([start]);
        let all = |at: usize, next: &BTreeMap<usize, BTreeSet<usize>>| -> Vec<usize> {
            next.get(&at).into_iter().flatten().rev().copied().collect()
        };
        let mut way = vec![(start, all(start, next))];
        while let Some((at, left)) = way.last_mut() {
            let at = *at;
            match left.pop() {
                Some(target) if on_way.contains(&target) => {
                    if let Some(targets) = next.get_mut(&at) {
                        targets.remove(&target);
                    }
                }
                Some(target) if done.contains(&target) => {}
                Some(target) => {
                    on_way.insert(target);
                    let targets = all(target, next);
                    way.push((target, targets));
                }
                None => {
                    way.pop();
                    on_way.remove(&at);
                    done.insert(at);
                    finished.push(at);
                }
            }
        }
    }
    finished.reverse();
    finished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_the_edges() {
        let rank = ranks(&[0, 1, 2, 3, 4], &[(0, 1), (1, 2), (0, 2), (4, 2)]);
        assert_eq!(rank.into_values().collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn a_cycle_is_cut_where_it_closes() {
        let rank = ranks(&[0, 1, 2], &[(0, 1), (1, 2), (2, 0)]);
        assert_eq!(rank.into_values().collect::<Vec<_>>(), [0, 1, 2]);
        // The direction that more edges have counts.
        let rank = ranks(&[0, 1], &[(0, 1), (1, 0), (1, 0)]);
        assert_eq!(rank.into_values().collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn components_are_what_edges_join() {
        assert_eq!(components(5, [(3, 1), (1, 4)].into_iter()), [vec![0], vec![1, 3, 4], vec![2]]);
    }
}
