//! The compiled policies of one workload.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use maille_config::istio::Action;

use crate::compile::{Compiler, Fault};
use crate::connection::ConnectionPolicy;
use crate::rule::{RuleTree, Tests};
use crate::side::{CompiledRule, Rank, Side};
use crate::{Authorization, CompileProblem, ConnectionAttributes, Needs, RuleId, TrustContext};

/// The policies of one workload, compiled; immutable and shared by all workers. An action that no policy has is
/// `None`, and costs nothing.
#[derive(Debug)]
pub struct PolicySet {
    pub(crate) deny: Option<Side>,
    /// `Some` if an ALLOW policy applies, usable or not.
    pub(crate) allow: Option<Side>,
    pub(crate) custom: Option<Side>,
    /// Whom CUSTOM rules ask, by rank.
    pub(crate) asked: Vec<Asked>,
    /// The first CUSTOM rule that could not be compiled. It matches everything, and no rule that can ask somebody may
    /// hide it.
    pub(crate) never_asked: Option<Rank>,
    pub(crate) audit: Option<Side>,
    /// DENY policies of a dry run.
    pub(crate) shadow_deny: Option<Side>,
    /// ALLOW policies of a dry run.
    pub(crate) shadow_allow: Option<Side>,
    /// Rules that could not be compiled, of policies that match everything therefore.
    pub(crate) unusable: HashSet<RuleId, RandomState>,
    /// ALLOW policies that allow nothing, whatever comes.
    pub(crate) barren: Vec<Barren>,
}

/// Whom a CUSTOM rule asks.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) provider: Arc<str>,
    /// Why nobody can be asked.
    pub(crate) problem: Option<Arc<str>>,
}

/// An ALLOW policy without a usable rule.
#[derive(Debug)]
pub(crate) struct Barren {
    /// `namespace/name`.
    pub(crate) name: String,
    /// It has rules, but they could not be compiled.
    pub(crate) unusable: bool,
}

impl PolicySet {
    /// Compiles the policies that apply to a workload.
    ///
    /// A policy that cannot be compiled refuses, and is reported: as ALLOW it matches nothing but counts as an
    /// ALLOW policy, else it matches everything, CUSTOM without asking anybody. A dry run is possible with DENY and
    /// ALLOW only (reference authorization 14); a policy with another action that claims to be one has no effect.
    pub fn compile(policies: &[Authorization], trust: &TrustContext) -> (Self, Vec<CompileProblem>) {
        let mut drafts = Drafts { policies, trust, problems: Vec::new(), unusable: HashSet::default() };
        let widened = |tree: &RuleTree, tests: &Tests| Some(tree.deny_on_tcp(tests));
        let deny = drafts.side(Action::Deny, false, widened);
        let allow = drafts.side(Action::Allow, false, RuleTree::allow_on_tcp);
        let custom = drafts.side(Action::Custom, false, widened);
        let audit = drafts.side(Action::Audit, false, widened);
        let shadow_deny = drafts.side(Action::Deny, true, widened);
        let shadow_allow = drafts.side(Action::Allow, true, RuleTree::allow_on_tcp);
        let asked = custom.as_ref().map(|side| drafts.asked(side)).unwrap_or_default();
        let is_unusable = |rule: &CompiledRule| drafts.unusable.contains(&rule.id);
        let never_asked = custom.as_ref().and_then(|side| side.rules.iter().position(is_unusable));
        let barren = allow.as_ref().map(|side| drafts.barren(side)).unwrap_or_default();
        let Drafts { problems, unusable, .. } = drafts;
        let never_asked = never_asked.map(|rank| rank as Rank);
        (
            Self {
                deny,
                allow,
                custom,
                asked,
                never_asked,
                audit,
                shadow_deny,
                shadow_allow,
                unusable,
                barren,
            },
            problems,
        )
    }

    /// Evaluates once what is fixed for the life of a connection.
    pub fn on_connection(self: &Arc<Self>, attributes: &ConnectionAttributes<'_>) -> ConnectionPolicy {
        ConnectionPolicy::new(Arc::clone(self), attributes)
    }

    /// What beyond DENY and ALLOW there are policies for.
    pub fn needs(&self) -> Needs {
        Needs {
            asks: self.custom.is_some(),
            audits: self.audit.is_some(),
            shadows: self.shadow_deny.is_some() || self.shadow_allow.is_some(),
        }
    }
}

/// Policies on their way into [`Side`]s.
struct Drafts<'a> {
    policies: &'a [Authorization],
    trust: &'a TrustContext,
    problems: Vec<CompileProblem>,
    unusable: HashSet<RuleId, RandomState>,
}

impl<'a> Drafts<'a> {
    fn of(&self, action: Action, dry_run: bool) -> impl Iterator<Item = &'a Authorization> + use<'a> {
        self.policies.iter().filter(move |p| p.spec.action == action && p.dry_run == dry_run)
    }

    /// The rules of one action, if any policy has it.
    fn side(
        &mut self,
        action: Action,
        dry_run: bool,
        on_tcp: fn(&RuleTree, &Tests) -> Option<RuleTree>,
    ) -> Option<Side> {
        self.of(action, dry_run).next()?;
        let (mut compiler, mut rules) = (Compiler::default(), Vec::new());
        for policy in self.of(action, dry_run) {
            self.policy(policy, &mut compiler, &mut rules);
        }
        Some(Side::new(compiler.finish(), rules, on_tcp))
    }

    /// Appends the policy's rules, or what stands for them if one cannot be compiled.
    fn policy(
        &mut self,
        policy: &Authorization,
        compiler: &mut Compiler,
        rules: &mut Vec<(RuleId, RuleTree)>,
    ) {
        let (namespace, name): (Arc<str>, Arc<str>) =
            (policy.namespace.as_str().into(), policy.name.as_str().into());
        let id = |rule: usize| RuleId { namespace: namespace.clone(), name: name.clone(), rule: rule as u32 };
        let effect = match (policy.spec.action, policy.dry_run) {
            (Action::Allow, false) => "the policy allows nothing",
            (Action::Allow, true) => "the policy would allow nothing",
            (Action::Deny, true) => "the policy would refuse everything",
            (Action::Audit, _) => "the policy marks everything",
            (Action::Deny | Action::Custom, _) => "the policy refuses everything",
        };
        let mut trees = Vec::new();
        let mut first_bad = None;
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            match compiler.rule(rule, policy, self.trust) {
                Ok(tree) => trees.push((id(index), tree)),
                Err(fault) => {
                    first_bad.get_or_insert(index);
                    let Fault { field, message } = fault.below(&format!("spec.rules[{index}]"));
                    let (namespace, name) = (policy.namespace.clone(), policy.name.clone());
                    self.problems.push(CompileProblem { namespace, name, field, message, effect });
                }
            }
        }
        match first_bad {
            None => rules.append(&mut trees),
            Some(_) if policy.spec.action == Action::Allow => {}
            Some(index) => {
                rules.push((id(index), RuleTree::default()));
                self.unusable.insert(id(index));
            }
        }
    }

    /// Whom each CUSTOM rule asks, by rank. Only one provider is possible on a workload, as in Istio unless a feature
    /// is switched on there (reference authorization 15): with several, nobody can be asked.
    fn asked(&self, side: &Side) -> Vec<Asked> {
        fn provider(policy: &Authorization) -> &str {
            policy.spec.provider.as_ref().map_or("", |provider| provider.name.as_str())
        }
        let providers: BTreeSet<&str> = self.of(Action::Custom, false).map(provider).collect();
        let several: Option<Arc<str>> = (providers.len() > 1).then(|| {
            let names: Vec<_> = providers.iter().map(|name| format!("'{name}'")).collect();
            format!(
                "policies of this workload name several providers, but one is possible: {}",
                names.join(", ")
            )
            .into()
        });
        let shared: HashMap<&str, Arc<str>, RandomState> =
            providers.iter().map(|name| (*name, Arc::from(*name))).collect();
        let by_policy: HashMap<(&str, &str), &str, RandomState> = self
            .of(Action::Custom, false)
            .map(|policy| ((policy.namespace.as_str(), policy.name.as_str()), provider(policy)))
            .collect();
        let asked = side.rules.iter().map(|rule| {
            let provider = by_policy.get(&(&*rule.id.namespace, &*rule.id.name)).copied().unwrap_or_default();
            let problem = if self.unusable.contains(&rule.id) {
                Some(format!("rule {} of the policy cannot be compiled", rule.id.rule).into())
            } else if provider.is_empty() {
                Some("the policy names no provider".into())
            } else {
                several.clone()
            };
            Asked { provider: shared.get(provider).cloned().unwrap_or_default(), problem }
        });
        asked.collect()
    }

    /// The ALLOW policies that have no rule in their side.
    fn barren(&self, side: &Side) -> Vec<Barren> {
        let fertile: BTreeSet<(&str, &str)> =
            side.rules.iter().map(|rule| (&*rule.id.namespace, &*rule.id.name)).collect();
        let barren = self
            .of(Action::Allow, false)
            .filter(|p| !fertile.contains(&(p.namespace.as_str(), p.name.as_str())));
        let mut barren: Vec<_> = barren
            .map(|p| Barren {
                name: format!("{}/{}", p.namespace, p.name),
                unusable: !p.spec.rules.is_empty(),
            })
            .collect();
        barren.sort_by(|a, b| a.name.cmp(&b.name));
        barren
    }
}
