//! What a StatefulSet does next; pure.
//!
//! Source: Kubernetes pkg/controller/statefulset/stateful_set_control.go, `updateStatefulSet`.

use std::collections::BTreeMap;

/// Pods that are made, or made again, in one round, at most; a number of replicas is any that somebody writes down.
pub(super) const BURST: usize = 50;

/// What the spec asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// The first number.
    pub(super) start: i32,
    pub(super) replicas: i32,
    /// One after the other, each ready before the next (`OrderedReady`).
    pub(super) ordered: bool,
    pub(super) strategy: Strategy,
}

impl Rules {
    /// Whether the update reaches this number.
    fn rolls(&self, ordinal: i32) -> bool {
        match self.strategy {
            Strategy::Rolling { partition, .. } => ordinal >= self.start.saturating_add(partition),
            Strategy::OnDelete => false,
        }
    }
}

/// How Pods of an older template are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strategy {
    /// Only when somebody deletes them.
    OnDelete,
    /// From the highest number down to the partition's; below it, Pods are made of the older template.
    Rolling { partition: i32, max_unavailable: i32 },
}

/// A Pod as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// Made of the newest template.
    pub(super) updated: bool,
    pub(super) terminating: bool,
    /// Succeeded or failed: it will not serve again.
    pub(super) ended: bool,
    /// Running, and ready for long enough.
    pub(super) available: bool,
}

impl Slot {
    fn is_healthy(&self) -> bool {
        self.available && !self.terminating
    }
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Create { ordinal: i32, updated: bool },
    Delete { ordinal: i32, scaled_down: bool },
}

/// The steps to take now; the next ones follow when these show, or if there are [`BURST`] of them.
pub(super) fn next(rules: &Rules, slots: &BTreeMap<i32, Slot>) -> Vec<Action> {
    let end = rules.start.saturating_add(rules.replicas);
    let mut actions = Vec::new();
    for ordinal in rules.start..end {
        if actions.len() >= BURST {
            break;
        }
        match slots.get(&ordinal) {
            None => {
                let updated = rules.strategy == Strategy::OnDelete || rules.rolls(ordinal);
                actions.push(Action::Create { ordinal, updated });
            }
            // It comes back under the same name, once it is gone.
            Some(slot) if slot.ended && !slot.terminating => {
                actions.push(Action::Delete { ordinal, scaled_down: false });
            }
            Some(slot) if slot.is_healthy() || !rules.ordered => continue,
            // Kubernetes waits for it for ever, until somebody deletes it ("forced rollback"); it does not serve, and
            // the template that might heal it is there.
            Some(slot) if !slot.updated && !slot.terminating && rules.rolls(ordinal) => {
                actions.push(Action::Delete { ordinal, scaled_down: false });
            }
            Some(_) => return actions,
        }
        if rules.ordered {
            return actions;
        }
    }
    let surplus = slots.iter().rev().filter(|(ordinal, _)| !(rules.start..end).contains(ordinal));
    // While one of them does not serve, only that one may go.
    let first_broken = slots.iter().find(|(_, slot)| !slot.is_healthy()).map(|(ordinal, _)| *ordinal);
    for (ordinal, slot) in surplus {
        if slot.terminating {
            if rules.ordered {
                return actions;
            }
            continue;
        }
        if rules.ordered && !slot.is_healthy() && first_broken != Some(*ordinal) {
            return actions;
        }
        actions.push(Action::Delete { ordinal: *ordinal, scaled_down: true });
        if rules.ordered {
            return actions;
        }
    }
    if actions.is_empty() {
        replace(rules, slots, end, &mut actions);
    }
    actions
}

/// Deletes Pods of an older template, from the highest number down.
fn replace(rules: &Rules, slots: &BTreeMap<i32, Slot>, end: i32, actions: &mut Vec<Action>) {
    let Strategy::Rolling { max_unavailable, .. } = rules.strategy else { return };
    let own = || slots.range(rules.start..end);
    let broken = own().filter(|(_, slot)| !slot.is_healthy()).count();
    let mut spare = max_unavailable.saturating_sub(i32::try_from(broken).unwrap_or(i32::MAX));
    for (ordinal, slot) in own().rev() {
        if !rules.rolls(*ordinal) {
            return;
        }
        if !slot.updated && !slot.terminating {
            // What does not serve anyway costs nothing.
            if slot.is_healthy() {
                if spare <= 0 {
                    continue;
                }
                spare -= 1;
            }
            actions.push(Action::Delete { ordinal: *ordinal, scaled_down: false });
        } else if !slot.is_healthy() && max_unavailable <= 1 {
            // Each is ready before the next one goes.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Slot = Slot { updated: false, terminating: false, ended: false, available: true };
    const NEW: Slot = Slot { updated: true, ..OLD };

    fn rules(replicas: i32, ordered: bool) -> Rules {
        let strategy = Strategy::Rolling { partition: 0, max_unavailable: 1 };
        Rules { start: 0, replicas, ordered, strategy }
    }

    fn slots(list: &[Slot]) -> BTreeMap<i32, Slot> {
        (0..).zip(list.iter().copied()).collect()
    }

    fn create(ordinal: i32) -> Action {
        Action::Create { ordinal, updated: true }
    }

    fn delete(ordinal: i32) -> Action {
        Action::Delete { ordinal, scaled_down: false }
    }

    fn scale_down(ordinal: i32) -> Action {
        Action::Delete { ordinal, scaled_down: true }
    }

    #[test]
    fn ordered_sets_make_one_after_the_other_and_parallel_ones_all_at_once() {
        assert_eq!(next(&rules(3, true), &slots(&[])), [create(0)]);
        let starting = Slot { available: false, ..NEW };
        assert_eq!(next(&rules(3, true), &slots(&[starting])), []);
        assert_eq!(next(&rules(3, true), &slots(&[NEW])), [create(1)]);
        assert_eq!(next(&rules(3, false), &slots(&[starting])), [create(1), create(2)]);
        // A hole in the row is filled first.
        let hole = BTreeMap::from([(0, NEW), (2, NEW)]);
        assert_eq!(next(&rules(3, true), &hole), [create(1)]);
    }

    #[test]
    fn the_highest_number_goes_first() {
        assert_eq!(next(&rules(1, true), &slots(&[NEW; 3])), [scale_down(2)]);
        assert_eq!(next(&rules(1, false), &slots(&[NEW; 3])), [scale_down(2), scale_down(1)]);
        let going = Slot { terminating: true, ..NEW };
        assert_eq!(next(&rules(1, true), &slots(&[NEW, NEW, going])), []);
        let broken = Slot { available: false, ..NEW };
        assert_eq!(next(&rules(1, true), &slots(&[NEW, NEW, broken])), [scale_down(2)]);
        assert_eq!(next(&rules(1, true), &slots(&[NEW, broken, broken])), []);
    }

    #[test]
    fn updates_go_down_to_the_partition_and_wait_for_each() {
        assert_eq!(next(&rules(3, true), &slots(&[OLD; 3])), [delete(2)]);
        assert_eq!(next(&rules(3, true), &slots(&[OLD, OLD, NEW])), [delete(1)]);
        let starting = Slot { available: false, ..NEW };
        assert_eq!(next(&rules(3, false), &slots(&[OLD, OLD, starting])), []);
        // A broken Pod of the older template does not hold up its own replacement.
        let broken = Slot { available: false, ..OLD };
        assert_eq!(next(&rules(3, false), &slots(&[OLD, OLD, broken])), [delete(2)]);
        let partition = |partition, max_unavailable| Rules {
            strategy: Strategy::Rolling { partition, max_unavailable },
            ..rules(3, false)
        };
        assert_eq!(next(&partition(2, 1), &slots(&[OLD, OLD, NEW])), []);
        assert_eq!(next(&partition(0, 2), &slots(&[OLD, OLD, OLD])), [delete(2), delete(1)]);
        assert_eq!(next(&partition(0, 2), &slots(&[OLD, OLD, starting])), [delete(1)]);
        let on_delete = Rules { strategy: Strategy::OnDelete, ..rules(3, true) };
        assert_eq!(next(&on_delete, &slots(&[OLD; 3])), []);
    }

    #[test]
    fn below_the_partition_pods_are_made_of_the_older_template() {
        let rules = Rules {
            start: 5,
            strategy: Strategy::Rolling { partition: 1, max_unavailable: 1 },
            ..rules(2, false)
        };
        let made =
            [Action::Create { ordinal: 5, updated: false }, Action::Create { ordinal: 6, updated: true }];
        assert_eq!(next(&rules, &slots(&[])), made);
    }

    #[test]
    fn what_has_ended_is_made_again() {
        let ended = Slot { ended: true, available: false, ..NEW };
        assert_eq!(next(&rules(2, true), &slots(&[ended, NEW])), [delete(0)]);
        let going = Slot { terminating: true, ..ended };
        assert_eq!(next(&rules(2, true), &slots(&[going, NEW])), []);
    }

    #[test]
    fn any_number_of_replicas_is_begun_with_a_few() {
        let most = rules(i32::MAX, false);
        let first = next(&most, &slots(&[]));
        assert_eq!(first, (0..50).map(create).collect::<Vec<_>>());
        // Those that are not ready hold up nobody, and those that are to go do not wait for the last to come.
        let starting = slots(&[Slot { available: false, ..NEW }; 50]);
        assert_eq!(next(&most, &starting), (50..100).map(create).collect::<Vec<_>>());
        let moved = next(&Rules { start: 49, ..most }, &slots(&[NEW; 50]));
        assert_eq!((moved.len(), moved.last()), (BURST + 49, Some(&scale_down(0))));
        assert_eq!(next(&rules(i32::MAX, true), &slots(&[])), [create(0)]);
    }

    /// Whatever the state, steps that are taken lead to all Pods being there, new and serving, and an update never
    /// takes more from service than it may.
    #[test]
    fn every_small_state_ends_well() {
        let kinds = [
            None,
            Some(NEW),
            Some(OLD),
            Some(Slot { available: false, ..OLD }),
            Some(Slot { ended: true, available: false, ..NEW }),
            Some(Slot { terminating: true, ..OLD }),
        ];
        for ordered in [true, false] {
            for index in 0..6_usize.pow(4) {
                let mut slots: BTreeMap<i32, Slot> = (0..4)
                    .filter_map(|n: i32| Some((n, kinds[index / 6_usize.pow(n.unsigned_abs()) % 6]?)))
                    .collect();
                let rules = rules(3, ordered);
                for _ in 0..40 {
                    for action in next(&rules, &slots) {
                        match action {
                            Action::Create { ordinal, updated } => {
                                slots.insert(ordinal, Slot { updated, ..NEW });
                            }
                            Action::Delete { ordinal, .. } => {
                                slots.get_mut(&ordinal).expect("there").terminating = true;
                            }
                        }
                    }
                    // Deletions complete.
                    slots.retain(|_, slot| !slot.terminating);
                }
                let end: Vec<(i32, Slot)> = slots.into_iter().collect();
                assert_eq!(end, [(0, NEW), (1, NEW), (2, NEW)], "{ordered} {index}");
            }
        }
    }
}
