//! The compiled policies of one workload.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use maille_config::istio::Action;

use crate::compile::{Compiler, Fault};
use crate::connection::ConnectionPolicy;
use crate::index::Index;
use crate::index::key::Keys;
use crate::index::pairs::Pairs;
use crate::plan::Planner;
use crate::rule::{RuleTree, TestId, Tests};
use crate::{Authorization, CompileProblem, ConnectionAttributes, RuleId, TrustContext};

/// Index of a rule in its [`Side`]; ranks ascend as printed ids do.
pub(crate) type Rank = u32;

/// Index of a [`Part`].
pub(crate) type PartId = u32;

/// The enforced policies of one workload, compiled; immutable and shared by all workers.
///
/// Each rule falls into a part that is fixed for a connection and a part that each request decides. Equal
/// connection parts are one, found by an index over connection attributes and judged once per connection.
/// Rules are then found through the rarer of two ways: their connection part, or an index over request
/// attributes. So neither a connection nor a request pays for rules that name somebody or something else.
#[derive(Debug)]
pub struct PolicySet {
    pub(crate) tests: Tests,
    pub(crate) deny: Side,
    pub(crate) allow: Side,
    /// Whether an ALLOW policy applies, usable or not.
    pub(crate) has_allow: bool,
    /// Rules of DENY policies that could not be compiled, so that the policy refuses everything.
    pub(crate) unusable: Vec<RuleId>,
    pub(crate) parts: Vec<Part>,
    pub(crate) part_index: Index<PartId>,
    /// Parts that no index can find: judged on every connection.
    pub(crate) unindexed_parts: Vec<PartId>,
}

/// The rules of one action.
#[derive(Debug)]
pub(crate) struct Side {
    /// Sorted by printed id.
    pub(crate) rules: Vec<CompiledRule>,
    /// Finds rules by one request attribute; lists ascend by rank.
    pub(crate) index: Index<Posting>,
    /// Finds rules by two request attributes; lists ascend by rank.
    pub(crate) pairs: Pairs<Posting>,
}

/// A rule in an index, with what decides mostly, so that the rule itself need not be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Posting {
    pub(crate) rank: Rank,
    /// What its connection must satisfy.
    pub(crate) part: PartId,
    /// Being found is all that it demands of a request.
    pub(crate) settled: bool,
}

/// A rule under its name.
#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) id: RuleId,
    /// The whole, for explanations.
    pub(crate) tree: RuleTree,
    /// What its connection must satisfy (HTTP).
    pub(crate) part: PartId,
    /// What then a request must satisfy, beyond what being found proves.
    pub(crate) request: RuleTree,
}

/// What some rules demand of a connection, and what follows once it is satisfied.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) tree: RuleTree,
    pub(crate) deny: Consequence,
    pub(crate) allow: Consequence,
}

/// What a satisfied part means for the rules of one action.
#[derive(Debug, Default)]
pub(crate) struct Consequence {
    /// The first rule that matches TCP.
    pub(crate) tcp: Option<Rank>,
    /// The first rule that matches every HTTP request.
    pub(crate) http: Option<Rank>,
    /// Rules to judge on each request; ascending.
    pub(crate) attached: Vec<Rank>,
    /// Whether the side's index may find rules of this part.
    pub(crate) indexed: bool,
}

impl PolicySet {
    /// Compiles the policies that apply to a workload, dry-run ones included (they are left out here).
    ///
    /// A policy that cannot be compiled refuses, and is reported: as ALLOW it matches nothing but counts as an
    /// ALLOW policy, as DENY or CUSTOM it matches everything. CUSTOM is not asked yet: what its rules match is
    /// refused, as with a provider that does not work (reference authorization 15).
    pub fn compile(policies: &[Authorization], trust: &TrustContext) -> (Self, Vec<CompileProblem>) {
        let mut compiler = Compiler::default();
        let (mut problems, mut unusable) = (Vec::new(), Vec::new());
        let (mut deny, mut allow, mut has_allow) = (Vec::new(), Vec::new(), false);
        for policy in policies.iter().filter(|p| !p.dry_run) {
            let rules = match policy.spec.action {
                Action::Audit => continue,
                Action::Allow => {
                    has_allow = true;
                    &mut allow
                }
                Action::Deny | Action::Custom => &mut deny,
            };
            unusable.extend(compile_policy(policy, trust, &mut compiler, rules, &mut problems));
        }
        let mut builder = Builder::new(compiler.finish());
        let deny = builder.side(deny, |part| &mut part.deny, |tree, tests| Some(tree.deny_on_tcp(tests)));
        let allow = builder.side(allow, |part| &mut part.allow, RuleTree::allow_on_tcp);
        (PolicySet { unusable, ..builder.finish(deny, allow, has_allow) }, problems)
    }

    /// Evaluates once what is fixed for the life of a connection.
    pub fn on_connection(self: &Arc<Self>, attributes: &ConnectionAttributes<'_>) -> ConnectionPolicy {
        ConnectionPolicy::new(Arc::clone(self), attributes)
    }
}

/// Rules of one action on their way into a [`Side`].
struct Draft {
    rules: Vec<CompiledRule>,
    consequence: fn(&mut Part) -> &mut Consequence,
    /// Rules that need a look at the request, without those that another rule makes redundant; ascending.
    per_request: Vec<Rank>,
}

struct Builder {
    tests: Tests,
    parts: Vec<Part>,
    ids: HashMap<RuleTree, PartId, RandomState>,
    /// How many rules of both sides that look at requests hang on each part.
    weights: Vec<u32>,
}

impl Builder {
    fn new(tests: Tests) -> Self {
        Self { tests, parts: Vec::new(), ids: HashMap::default(), weights: Vec::new() }
    }

    fn part(&mut self, tree: RuleTree) -> PartId {
        *self.ids.entry(tree).or_insert_with_key(|tree| {
            self.parts.push(Part { tree: tree.clone(), ..Part::default() });
            self.weights.push(1);
            self.parts.len() as PartId - 1
        })
    }

    fn side(
        &mut self,
        mut rules: Vec<(RuleId, RuleTree)>,
        consequence: fn(&mut Part) -> &mut Consequence,
        on_tcp: fn(&RuleTree, &Tests) -> Option<RuleTree>,
    ) -> Draft {
        rules.sort_by_cached_key(|(id, _)| id.to_string());
        let mut draft =
            Draft { rules: Vec::with_capacity(rules.len()), consequence, per_request: Vec::new() };
        let mut seen: HashSet<(PartId, RuleTree), RandomState> = HashSet::default();
        for (rank, (id, tree)) in rules.into_iter().enumerate() {
            let rank = rank as Rank;
            if let Some(tcp) = on_tcp(&tree, &self.tests) {
                let part = self.part(tcp);
                self.consequence(part, consequence, |c| c.tcp = c.tcp.or(Some(rank)));
            }
            let (fixed, request) = tree.split(&self.tests);
            let part = self.part(fixed);
            if request.demands_nothing() {
                self.consequence(part, consequence, |c| c.http = c.http.or(Some(rank)));
            } else if seen.insert((part, request.clone())) {
                draft.per_request.push(rank);
                if let Some(weight) = self.weights.get_mut(part as usize) {
                    *weight += 1;
                }
            }
            draft.rules.push(CompiledRule { id, tree, part, request });
        }
        draft
    }

    fn consequence(
        &mut self,
        part: PartId,
        side: fn(&mut Part) -> &mut Consequence,
        change: impl FnOnce(&mut Consequence),
    ) {
        if let Some(part) = self.parts.get_mut(part as usize) {
            change(side(part));
        }
    }

    fn finish(mut self, deny: Draft, allow: Draft, has_allow: bool) -> PolicySet {
        let keys = Keys::new(&self.tests);
        // A part holds only tests that are fixed for a connection: all may be used.
        let any = |_: TestId| true;
        let mut planner = Planner::new(&keys, &self.tests, &any);
        for (part, weight) in self.parts.iter().zip(&self.weights) {
            planner.count(&part.tree, *weight);
        }
        let mut costs = Vec::with_capacity(self.parts.len());
        let mut unindexed_parts = Vec::new();
        for (id, part) in self.parts.iter().enumerate() {
            let choice = planner.choose(&part.tree);
            match &choice {
                Some(choice) => planner.register(choice, id as PartId),
                None => unindexed_parts.push(id as PartId),
            }
            costs.push(choice.map_or(u32::MAX, |c| c.cost));
        }
        let (part_index, _) = planner.build();
        let deny = self.place(deny, &keys, &costs);
        let allow = self.place(allow, &keys, &costs);
        PolicySet {
            tests: self.tests,
            deny,
            allow,
            has_allow,
            unusable: Vec::new(),
            parts: self.parts,
            part_index,
            unindexed_parts,
        }
    }

    /// Puts each rule where it is met least often: into the index over requests, or onto its part.
    fn place(&mut self, mut draft: Draft, keys: &Keys, part_costs: &[u32]) -> Side {
        let tests = std::mem::take(&mut self.tests);
        let per_request = |id: TestId| tests.is_per_request(id);
        let mut planner = Planner::new(keys, &tests, &per_request);
        for rule in draft.per_request.iter().filter_map(|rank| draft.rules.get(*rank as usize)) {
            planner.count(&rule.request, 1);
        }
        for rank in draft.per_request {
            let Some(rule) = draft.rules.get_mut(rank as usize) else { continue };
            let part_cost = part_costs.get(rule.part as usize).copied().unwrap_or(u32::MAX);
            // In a tie the index wins: a request's cost is then the same for one policy and for thousands.
            let choice = planner.choose_well(&rule.request).filter(|choice| choice.cost <= part_cost);
            if let Some(choice) = &choice {
                rule.request = rule.request.without(&choice.settled);
                let settled = rule.request.demands_nothing();
                planner.register(choice, Posting { rank, part: rule.part, settled });
            }
            self.consequence(rule.part, draft.consequence, |c| match choice.is_some() {
                true => c.indexed = true,
                false => c.attached.push(rank),
            });
        }
        let (index, pairs) = planner.build();
        self.tests = tests;
        Side { rules: draft.rules, index, pairs }
    }
}

/// Appends the policy's rules, or what stands for them if one cannot be compiled: then, unless it is an ALLOW
/// policy, also returns that rule's id.
fn compile_policy(
    policy: &Authorization,
    trust: &TrustContext,
    compiler: &mut Compiler,
    rules: &mut Vec<(RuleId, RuleTree)>,
    problems: &mut Vec<CompileProblem>,
) -> Option<RuleId> {
    let (namespace, name): (Arc<str>, Arc<str>) =
        (policy.namespace.as_str().into(), policy.name.as_str().into());
    let id = |rule: usize| RuleId { namespace: namespace.clone(), name: name.clone(), rule: rule as u32 };
    let mut report = |fault: Fault, effect: &'static str| {
        problems.push(CompileProblem {
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            field: fault.field,
            message: fault.message,
            effect,
        });
    };
    if policy.spec.action == Action::Custom {
        let message = "external authorization is not enforced yet".to_owned();
        report(Fault { field: "spec.action".to_owned(), message }, "what its rules match is refused");
    }
    let mut trees = Vec::new();
    let mut first_bad = None;
    for (index, rule) in policy.spec.rules.iter().enumerate() {
        match compiler.rule(rule, policy, trust) {
            Ok(tree) => trees.push((id(index), tree)),
            Err(fault) => {
                first_bad.get_or_insert(index);
                let effect = match policy.spec.action {
                    Action::Allow => "the policy allows nothing",
                    _ => "the policy refuses everything",
                };
                report(fault.below(&format!("spec.rules[{index}]")), effect);
            }
        }
    }
    match (first_bad, policy.spec.action) {
        (None, _) => {
            rules.append(&mut trees);
            None
        }
        (Some(_), Action::Allow) => None,
        (Some(index), _) => {
            rules.push((id(index), RuleTree::default()));
            Some(id(index))
        }
    }
}
