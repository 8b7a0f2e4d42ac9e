//! Under which keys a rule is found: those that fewest others share.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::index::Index;
use crate::index::key::{KeyId, Keys};
use crate::index::pairs::Pairs;
use crate::rule::{AllOf, RuleTree, TestId, Tests};

/// A key shared by more than this many is worth combining with another.
const CROWDED: u32 = 8;

/// How many pairs of keys one rule may be registered under.
const PAIRS_PER_RULE: usize = 64;

/// How a tree can be found.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    /// How many things share the most crowded of the keys.
    pub(crate) cost: u32,
    /// Keys of which the tree must hit one to match; with `partners`, one of each.
    keys: Vec<KeyId>,
    partners: Vec<KeyId>,
    /// Tests that are known to hold once the keys are hit.
    pub(crate) settled: Vec<TestId>,
}

/// Counts who shares which key, chooses, and builds the indices.
pub(crate) struct Planner<'a, T> {
    keys: &'a Keys,
    tests: &'a Tests,
    /// Which tests may be used for finding.
    usable: &'a dyn Fn(TestId) -> bool,
    population: Vec<u32>,
    lists: Vec<Vec<T>>,
    pairs: HashMap<(KeyId, KeyId), Vec<T>, RandomState>,
}

impl<'a, T: Copy + PartialEq> Planner<'a, T> {
    pub(crate) fn new(keys: &'a Keys, tests: &'a Tests, usable: &'a dyn Fn(TestId) -> bool) -> Self {
        Self {
            keys,
            tests,
            usable,
            population: vec![0; keys.len()],
            lists: vec![Vec::new(); keys.len()],
            pairs: HashMap::default(),
        }
    }

    /// Counts a tree that stands for `weight` things at every key it could be found under.
    pub(crate) fn count(&mut self, tree: &RuleTree, weight: u32) {
        let usable = tree.ids().filter(|id| (self.usable)(*id));
        let mut own: Vec<KeyId> = usable.filter_map(|id| self.keys.of_test(id)).flatten().copied().collect();
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

    /// As [`Self::choose`], but if each single way is crowded, by two tests together.
    pub(crate) fn choose_well(&self, tree: &RuleTree) -> Option<Choice> {
        let best = self.choose(tree)?;
        if best.cost <= CROWDED {
            return Some(best);
        }
        let mut single: Vec<Choice> = tree.certain().filter_map(|id| self.of_test(id)).collect();
        single.sort_by_key(|choice| choice.cost);
        match single.as_slice() {
            [first, second, ..] if first.keys.len() * second.keys.len() <= PAIRS_PER_RULE => Some(Choice {
                // A guess, but the two are at least as rare together as the rarer alone.
                cost: first.cost.min(CROWDED),
                keys: first.keys.clone(),
                partners: second.keys.clone(),
                settled: first.settled.iter().chain(&second.settled).copied().collect(),
            }),
            _ => Some(best),
        }
    }

    /// One choice for each alternative, together.
    fn of_alternatives(&self, any: &[AllOf]) -> Option<Choice> {
        let mut together = Choice { cost: 0, keys: Vec::new(), partners: Vec::new(), settled: Vec::new() };
        for all in any {
            let best = all.iter().filter_map(|id| self.of_test(*id)).min_by_key(|choice| choice.cost)?;
            if any.len() == 1 {
                return Some(best);
            }
            together.cost = together.cost.max(best.cost);
            together.keys.extend(best.keys);
        }
        (!any.is_empty()).then_some(together)
    }

    fn of_test(&self, test: TestId) -> Option<Choice> {
        let keys = self.keys.of_test(test).filter(|_| (self.usable)(test))?;
        let cost = keys.iter().filter_map(|k| self.population.get(*k as usize)).max().copied().unwrap_or(0);
        let exact = self.tests.get(test).is_some_and(|t| t.keys_are_exact());
        let settled = if exact { vec![test] } else { Vec::new() };
        Some(Choice { cost, keys: keys.to_vec(), partners: Vec::new(), settled })
    }

    /// Registers a thing; things come in the order in which lists shall hold them.
    pub(crate) fn register(&mut self, choice: &Choice, thing: T) {
        for key in &choice.keys {
            for partner in &choice.partners {
                let pair = (*key.min(partner), *key.max(partner));
                push_once(self.pairs.entry(pair).or_default(), thing);
            }
            if choice.partners.is_empty()
                && let Some(list) = self.lists.get_mut(*key as usize)
            {
                push_once(list, thing);
            }
        }
    }

    /// The indices of all that was registered: by one key, and by two.
    pub(crate) fn build(self) -> (Index<T>, Pairs<T>) {
        let lists = self.lists.into_iter().enumerate().filter(|(_, list)| !list.is_empty());
        let index = Index::new(lists.filter_map(|(id, list)| Some((self.keys.get(id as KeyId)?, list))));
        (index, Pairs::new(self.keys, self.pairs))
    }
}

fn push_once<T: PartialEq>(list: &mut Vec<T>, thing: T) {
    if list.last() != Some(&thing) {
        list.push(thing);
    }
}
