//! The arithmetic of a rolling update; pure.
//!
//! Source: Kubernetes pkg/controller/deployment/rolling.go and util/deployment_util.go.

use maille_config::k8s::IntOrString;

/// How many Pods more, and how many fewer, than asked for there may be during an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) max_surge: i32,
    pub(super) max_unavailable: i32,
}

impl Bounds {
    /// Resolves percentages: surge is rounded up, unavailability down; if both come to
    /// nothing one Pod may be unavailable, as otherwise nothing could move.
    pub(super) fn resolve(
        desired: i32,
        surge: Option<&IntOrString>,
        unavailable: Option<&IntOrString>,
    ) -> Self {
        let max_surge = resolve(surge, desired, true);
        let max_unavailable = resolve(unavailable, desired, false);
        if max_surge == 0 && max_unavailable == 0 {
            return Self { max_surge, max_unavailable: 1 };
        }
        Self { max_surge, max_unavailable }
    }
}

fn resolve(value: Option<&IntOrString>, desired: i32, up: bool) -> i32 {
    value.map_or_else(|| percent(25, desired, up), |value| share(value, desired, up))
}

/// A number of Pods, or a percentage of those that are asked for.
pub(super) fn share(value: &IntOrString, desired: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            percent(text.trim_end_matches('%').parse::<i64>().unwrap_or(25), desired, up)
        }
    }
}

fn percent(percent: i64, desired: i32, up: bool) -> i32 {
    let exact = percent.saturating_mul(i64::from(desired));
    let rounded = if up { exact.saturating_add(99) / 100 } else { exact / 100 };
    i32::try_from(rounded).unwrap_or(i32::MAX).max(0)
}

/// One ReplicaSet of the Deployment as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Set {
    /// What its spec asks for.
    pub(super) replicas: i32,
    /// Pods that are available.
    pub(super) available: i32,
}

/// How many Pods the new ReplicaSet should ask for next.
pub(super) fn scale_up(desired: i32, bounds: Bounds, new: Set, all_replicas: i32) -> i32 {
    if new.replicas >= desired {
        return desired;
    }
    let room = desired.saturating_add(bounds.max_surge).saturating_sub(all_replicas);
    new.replicas.saturating_add(room.max(0)).min(desired)
}

/// How many Pods each old ReplicaSet (oldest first) should ask for next: what does
/// not serve goes first, then what can be spared.
pub(super) fn scale_down(desired: i32, bounds: Bounds, new: Set, old: &[Set]) -> Vec<i32> {
    let mut next: Vec<i32> = old.iter().map(|set| set.replicas).collect();
    let min_available = desired - bounds.max_unavailable;
    let all = next.iter().copied().fold(new.replicas, i32::saturating_add);
    let new_unavailable = (new.replicas - new.available).max(0);
    let mut removable = (all - min_available - new_unavailable).max(0);
    for (replicas, set) in next.iter_mut().zip(old) {
        let broken = (set.replicas - set.available).clamp(0, removable);
        *replicas -= broken;
        removable -= broken;
    }
    let available: i32 = new.available + old.iter().map(|set| set.available).sum::<i32>();
    let mut spare = (available - min_available).max(0);
    for (replicas, set) in next.iter_mut().zip(old) {
        let serving = (*replicas).min(set.available);
        let gone = serving.clamp(0, spare);
        *replicas -= gone;
        spare -= gone;
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUARTER: Bounds = Bounds { max_surge: 1, max_unavailable: 0 };

    #[test]
    fn percentages_round_towards_service() {
        assert_eq!(Bounds::resolve(1, None, None), Bounds { max_surge: 1, max_unavailable: 0 });
        assert_eq!(Bounds::resolve(10, None, None), Bounds { max_surge: 3, max_unavailable: 2 });
        let zero = IntOrString::Int(0);
        assert_eq!(Bounds::resolve(4, Some(&zero), Some(&zero)), Bounds { max_surge: 0, max_unavailable: 1 });
    }

    #[test]
    fn one_replica_is_replaced_by_surge() {
        let old = Set { replicas: 1, available: 1 };
        let none = Set { replicas: 0, available: 0 };
        assert_eq!(scale_up(1, QUARTER, none, 1), 1);
        let starting = Set { replicas: 1, available: 0 };
        assert_eq!(scale_down(1, QUARTER, starting, &[old]), [1]);
        let ready = Set { replicas: 1, available: 1 };
        assert_eq!(scale_down(1, QUARTER, ready, &[old]), [0]);
    }

    #[test]
    fn what_does_not_serve_goes_first() {
        let new = Set { replicas: 2, available: 2 };
        let broken = Set { replicas: 2, available: 0 };
        let serving = Set { replicas: 2, available: 2 };
        let bounds = Bounds { max_surge: 1, max_unavailable: 1 };
        assert_eq!(scale_down(4, bounds, new, &[serving, broken]), [1, 0]);
    }

    /// Whatever the state, an update never asks for more than allowed, nor spares more than allowed.
    #[test]
    fn bounds_hold_in_every_small_state() {
        for desired in 0..5 {
            for surge in 0..3 {
                for unavailable in 0..3 {
                    let bounds = Bounds { max_surge: surge, max_unavailable: unavailable };
                    for new_replicas in 0..=desired {
                        for new_available in 0..=new_replicas {
                            for old_replicas in 0..5 {
                                for old_available in 0..=old_replicas {
                                    let new = Set { replicas: new_replicas, available: new_available };
                                    let old = Set { replicas: old_replicas, available: old_available };
                                    let all = new_replicas + old_replicas;
                                    let up = scale_up(desired, bounds, new, all);
                                    assert!(up + old_replicas <= (desired + surge).max(all));
                                    let down = scale_down(desired, bounds, new, &[old])[0];
                                    assert!((0..=old_replicas).contains(&down));
                                    let left = new_available + old_available.min(down);
                                    let before = new_available + old_available;
                                    assert!(
                                        left >= (desired - unavailable).min(before),
                                        "{new:?} {old:?} {down}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
