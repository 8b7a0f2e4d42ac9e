//! The rules of one action, compiled.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use crate::RuleId;
use crate::index::Index;
use crate::index::key::Keys;
use crate::index::pairs::Pairs;
use crate::plan::Planner;
use crate::rule::{RuleTree, TestId, Tests};
use crate::test::{Connection, Request};

/// Index of a rule in its [`Side`]; ranks ascend as printed ids do.
pub(crate) type Rank = u32;

/// Index of a [`Part`].
pub(crate) type PartId = u32;

/// The rules of one action; immutable and shared by all workers.
///
/// Each rule falls into a part that is fixed for a connection and a part that each request decides. Equal
/// connection parts are one, found by an index over connection attributes and judged once per connection.
/// Rules are then found through the rarer of two ways: their connection part, or an index over request
/// attributes. So neither a connection nor a request pays for rules that name somebody or something else.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) tests: Tests,
    /// Sorted by printed id.
    pub(crate) rules: Vec<CompiledRule>,
    parts: Vec<Part>,
    part_index: Index<PartId>,
    /// Parts that no index can find: judged on every connection.
    unindexed_parts: Vec<PartId>,
    /// Finds rules by one request attribute; lists ascend by rank.
    index: Index<Posting>,
    /// Finds rules by two request attributes; lists ascend by rank.
    pairs: Pairs<Posting>,
}

/// A rule in an index, with what decides mostly, so that the rule itself need not be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Posting {
    rank: Rank,
    /// What its connection must satisfy.
    part: PartId,
    /// Being found is all that it demands of a request.
    settled: bool,
}

/// A rule under its name.
#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) id: RuleId,
    /// The whole, for explanations.
    pub(crate) tree: RuleTree,
    /// What its connection must satisfy (HTTP).
    part: PartId,
    /// What then a request must satisfy, beyond what being found proves.
    request: RuleTree,
}

/// What some rules demand of a connection, and what follows once it is satisfied.
#[derive(Debug, Default)]
struct Part {
    tree: RuleTree,
    /// The first rule that matches TCP.
    tcp: Option<Rank>,
    /// The first rule that matches every HTTP request.
    http: Option<Rank>,
    /// Rules to judge on each request; ascending.
    attached: Vec<Rank>,
    /// Whether the index over requests may find rules of this part.
    indexed: bool,
}

/// What of one action is left for a connection.
#[derive(Debug)]
pub(crate) struct Open {
    satisfied: Bits,
    /// The first rule that matches TCP.
    pub(crate) tcp: Option<Rank>,
    /// The first rule that matches every HTTP request.
    pub(crate) http: Option<Rank>,
    /// Satisfied parts with rules to judge on each request.
    attached: Vec<PartId>,
    /// Whether the index over requests may find a rule that counts.
    indexed: bool,
}

impl Open {
    /// Whether some HTTP request could match a rule. May say yes too often, never no.
    pub(crate) fn can_match_http(&self) -> bool {
        self.http.is_some() || !self.attached.is_empty() || self.indexed
    }
}

/// A set of part ids.
#[derive(Debug)]
struct Bits(Box<[u64]>);

impl Bits {
    fn contains(&self, id: PartId) -> bool {
        self.0.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    fn insert(&mut self, id: PartId) {
        if let Some(word) = self.0.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
        }
    }
}

impl Side {
    /// Compiles rules; `on_tcp` says what becomes of one on TCP.
    pub(crate) fn new(
        tests: Tests,
        rules: Vec<(RuleId, RuleTree)>,
        on_tcp: fn(&RuleTree, &Tests) -> Option<RuleTree>,
    ) -> Self {
        Builder { tests, parts: Vec::new(), ids: HashMap::default(), weights: Vec::new() }
            .build(rules, on_tcp)
    }

    /// Evaluates what is fixed for the connection.
    pub(crate) fn open(&self, connection: &Connection) -> Open {
        let satisfied = Bits(vec![0; self.parts.len().div_ceil(64)].into());
        let mut open = Open { satisfied, tcp: None, http: None, attached: Vec::new(), indexed: false };
        let first = |a: Option<Rank>, b: Option<Rank>| a.into_iter().chain(b).min();
        let mut judge = |parts: &[PartId]| {
            for id in parts {
                let Some(part) = self.parts.get(*id as usize) else { continue };
                if !open.satisfied.contains(*id) && part.tree.matches(&self.tests, connection, None) {
                    open.satisfied.insert(*id);
                    open.tcp = first(open.tcp, part.tcp);
                    open.http = first(open.http, part.http);
                    if !part.attached.is_empty() {
                        open.attached.push(*id);
                    }
                    open.indexed |= part.indexed;
                }
            }
        };
        judge(&self.unindexed_parts);
        self.part_index.visit(connection, None, &mut judge);
        open
    }

    /// The first rule that matches the request.
    pub(crate) fn first(&self, open: &Open, connection: &Connection, request: &Request<'_>) -> Option<Rank> {
        let matches = |rank: Rank| {
            let rule = self.rules.get(rank as usize);
            rule.is_some_and(|rule| rule.request.matches(&self.tests, connection, Some(request)))
        };
        let mut best = open.http;
        for part in open.attached.iter().filter_map(|id| self.parts.get(*id as usize)) {
            let below = part.attached.iter().take_while(|rank| best.is_none_or(|b| **rank < b));
            best = below.copied().find(|rank| matches(*rank)).or(best);
        }
        if open.indexed {
            let mut judge = |found: &[Posting]| {
                let below = found.iter().take_while(|posting| best.is_none_or(|b| posting.rank < b));
                let mut satisfied = below.filter(|posting| open.satisfied.contains(posting.part));
                let first = satisfied.find(|posting| posting.settled || matches(posting.rank));
                best = first.map(|posting| posting.rank).or(best);
            };
            self.index.visit(connection, Some(request), &mut judge);
            self.pairs.visit(connection, Some(request), &mut judge);
        }
        best
    }

    /// Rules that the connection satisfies or the request hits, most promising first; may repeat.
    pub(crate) fn promising(
        &self,
        open: &Open,
        connection: &Connection,
        request: Option<&Request<'_>>,
        visit: &mut dyn FnMut(Rank),
    ) {
        let parts = open.attached.iter().filter_map(|id| self.parts.get(*id as usize));
        parts.flat_map(|part| &part.attached).for_each(|rank| visit(*rank));
        if request.is_some() {
            let mut each = |found: &[Posting]| found.iter().for_each(|posting| visit(posting.rank));
            self.pairs.visit(connection, request, &mut each);
            self.index.visit(connection, request, &mut each);
        }
    }

    /// The name of a rule.
    pub(crate) fn id(&self, rank: Rank) -> Option<&RuleId> {
        self.rules.get(rank as usize).map(|rule| &rule.id)
    }
}

struct Builder {
    tests: Tests,
    parts: Vec<Part>,
    ids: HashMap<RuleTree, PartId, RandomState>,
    /// How many rules that look at requests hang on each part.
    weights: Vec<u32>,
}

impl Builder {
    fn part(&mut self, tree: RuleTree) -> PartId {
        *self.ids.entry(tree).or_insert_with_key(|tree| {
            self.parts.push(Part { tree: tree.clone(), ..Part::default() });
            self.weights.push(1);
            self.parts.len() as PartId - 1
        })
    }

    fn change(&mut self, part: PartId, change: impl FnOnce(&mut Part)) {
        if let Some(part) = self.parts.get_mut(part as usize) {
            change(part);
        }
    }

    fn build(
        mut self,
        mut rules: Vec<(RuleId, RuleTree)>,
        on_tcp: fn(&RuleTree, &Tests) -> Option<RuleTree>,
    ) -> Side {
        rules.sort_by_cached_key(|(id, _)| id.to_string());
        let mut compiled = Vec::with_capacity(rules.len());
        // Rules that need a look at the request, without those that another rule makes redundant; ascending.
        let mut per_request = Vec::new();
        let mut seen: HashSet<(PartId, RuleTree), RandomState> = HashSet::default();
        for (rank, (id, tree)) in rules.into_iter().enumerate() {
            let rank = rank as Rank;
            if let Some(tcp) = on_tcp(&tree, &self.tests) {
                let part = self.part(tcp);
                self.change(part, |p| p.tcp = p.tcp.or(Some(rank)));
            }
            let (fixed, request) = tree.split(&self.tests);
            let part = self.part(fixed);
            if request.demands_nothing() {
                self.change(part, |p| p.http = p.http.or(Some(rank)));
            } else if seen.insert((part, request.clone())) {
                per_request.push(rank);
                if let Some(weight) = self.weights.get_mut(part as usize) {
                    *weight += 1;
                }
            }
            compiled.push(CompiledRule { id, tree, part, request });
        }
        let keys = Keys::new(&self.tests);
        let (part_index, unindexed_parts, costs) = self.find_parts(&keys);
        let (index, pairs) = self.place(&mut compiled, per_request, &keys, &costs);
        let Self { tests, parts, .. } = self;
        Side { tests, rules: compiled, parts, part_index, unindexed_parts, index, pairs }
    }

    /// How connections find parts, and how many others each part is found with.
    fn find_parts(&self, keys: &Keys) -> (Index<PartId>, Vec<PartId>, Vec<u32>) {
        // A part holds only tests that are fixed for a connection: all may be used.
        let any = |_: TestId| true;
        let mut planner = Planner::new(keys, &self.tests, &any);
        for (part, weight) in self.parts.iter().zip(&self.weights) {
            planner.count(&part.tree, *weight);
        }
        let mut costs = Vec::with_capacity(self.parts.len());
        let mut unindexed = Vec::new();
        for (id, part) in self.parts.iter().enumerate() {
            let choice = planner.choose(&part.tree);
            match &choice {
                Some(choice) => planner.register(choice, id as PartId),
                None => unindexed.push(id as PartId),
            }
            costs.push(choice.map_or(u32::MAX, |c| c.cost));
        }
        (planner.build().0, unindexed, costs)
    }

    /// Puts each rule where it is met least often: into the index over requests, or onto its part.
    fn place(
        &mut self,
        rules: &mut [CompiledRule],
        per_request: Vec<Rank>,
        keys: &Keys,
        part_costs: &[u32],
    ) -> (Index<Posting>, Pairs<Posting>) {
        let Self { tests, parts, .. } = self;
        let usable = |id: TestId| tests.is_per_request(id);
        let mut planner = Planner::new(keys, tests, &usable);
        for rule in per_request.iter().filter_map(|rank| rules.get(*rank as usize)) {
            planner.count(&rule.request, 1);
        }
        for rank in per_request {
            let Some(rule) = rules.get_mut(rank as usize) else { continue };
            let part_cost = part_costs.get(rule.part as usize).copied().unwrap_or(u32::MAX);
            // In a tie the index wins: a request's cost is then the same for one policy and for thousands.
            let choice = planner.choose_well(&rule.request).filter(|choice| choice.cost <= part_cost);
            if let Some(choice) = &choice {
                rule.request = rule.request.without(&choice.settled);
                let settled = rule.request.demands_nothing();
                planner.register(choice, Posting { rank, part: rule.part, settled });
            }
            if let Some(part) = parts.get_mut(rule.part as usize) {
                match choice.is_some() {
                    true => part.indexed = true,
                    false => part.attached.push(rank),
                }
            }
        }
        planner.build()
    }
}
