//! Under which keys a rule is found: those that fewest others share.

use crate::index::Index;
use crate::index::key::{KeyId, Keys};
use crate::rule::{AllOf, RuleTree, TestId};

/// Keys of which a tree must hit one to match, and how many things share the most crowded of them.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) cost: u32,
    keys: Vec<KeyId>,
}

/// Counts who shares which key, chooses, and builds the index.
pub(crate) struct Planner<'a> {
    keys: &'a Keys,
    /// Which tests may be used for finding.
    usable: &'a dyn Fn(TestId) -> bool,
    population: Vec<u32>,
    lists: Vec<Vec<u32>>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(keys: &'a Keys, usable: &'a dyn Fn(TestId) -> bool) -> Self {
        Self { keys, usable, population: vec![0; keys.len()], lists: vec![Vec::new(); keys.len()] }
    }

    /// Counts a tree that stands for `weight` things at every key it could be found under.
    pub(crate) fn count(&mut self, tree: &RuleTree, weight: u32) {
        let mut own: Vec<KeyId> = tree
            .ids()
            .filter(|id| (self.usable)(*id))
            .filter_map(|id| self.keys.of_test(id))
            .flatten()
            .copied()
            .collect();
        own.sort_unstable();
        own.dedup();
        for key in own {
            if let Some(count) = self.population.get_mut(key as usize) {
                *count += weight;
            }
        }
    }

    /// The least crowded way to find the tree; `None` if it demands nothing that an index knows.
    pub(crate) fn choose(&self, tree: &RuleTree) -> Option<Choice> {
        let when = tree.when.iter().filter_map(|id| self.of_test(*id));
        let groups =
            [&tree.operations, &tree.sources].into_iter().filter_map(|any| self.of_alternatives(any));
        groups.chain(when).min_by_key(|choice| choice.cost)
    }

    /// One choice for each alternative, together.
    fn of_alternatives(&self, any: &[AllOf]) -> Option<Choice> {
        let mut together = Choice { cost: 0, keys: Vec::new() };
        for all in any {
            let best = all.iter().filter_map(|id| self.of_test(*id)).min_by_key(|choice| choice.cost)?;
            together.cost = together.cost.max(best.cost);
            together.keys.extend(best.keys);
        }
        (!any.is_empty()).then_some(together)
    }

    fn of_test(&self, test: TestId) -> Option<Choice> {
        let keys = self.keys.of_test(test).filter(|_| (self.usable)(test))?;
        let cost = keys.iter().filter_map(|k| self.population.get(*k as usize)).max().copied().unwrap_or(0);
        Some(Choice { cost, keys: keys.to_vec() })
    }

    /// Registers a thing; numbers come in ascending order.
    pub(crate) fn register(&mut self, choice: &Choice, number: u32) {
        for key in &choice.keys {
            if let Some(list) = self.lists.get_mut(*key as usize)
                && list.last() != Some(&number)
            {
                list.push(number);
            }
        }
    }

    /// The index of all that was registered.
    pub(crate) fn build(self) -> Index {
        let lists = self.lists.into_iter().enumerate().filter(|(_, list)| !list.is_empty());
        Index::new(lists.filter_map(|(id, list)| Some((self.keys.get(id as KeyId)?, list))))
    }
}
