//! The compiled policies of one workload.

use std::sync::Arc;

use maille_config::istio::Action;

use crate::compile::{Compiler, Fault};
use crate::connection::ConnectionPolicy;
use crate::rule::{RuleTree, Tests};
use crate::{Authorization, CompileProblem, ConnectionAttributes, RuleId, TrustContext};

/// A rule under its name, in both forms.
#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) id: RuleId,
    pub(crate) http: RuleTree,
    /// `None`: dropped on TCP.
    pub(crate) tcp: Option<RuleTree>,
}

/// The enforced policies of one workload, compiled; immutable and shared by all workers.
#[derive(Debug)]
pub struct PolicySet {
    pub(crate) tests: Tests,
    /// Sorted by printed id.
    pub(crate) deny: Vec<CompiledRule>,
    /// Sorted by printed id.
    pub(crate) allow: Vec<CompiledRule>,
    /// Whether an ALLOW policy applies, usable or not.
    pub(crate) has_allow: bool,
}

impl PolicySet {
    /// Compiles the policies that apply to a workload, dry-run ones included (they are left out here).
    ///
    /// A policy that cannot be compiled refuses, and is reported: as ALLOW it matches nothing but counts as an
    /// ALLOW policy, as DENY or CUSTOM it matches everything. CUSTOM is not asked yet: what its rules match is
    /// refused, as with a provider that does not work (reference authorization 15).
    pub fn compile(policies: &[Authorization], trust: &TrustContext) -> (Self, Vec<CompileProblem>) {
        let mut compiler = Compiler::default();
        let mut problems = Vec::new();
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
            compile_policy(policy, trust, &mut compiler, rules, &mut problems);
        }
        let tests = compiler.finish();
        let named = |rules: Vec<(RuleId, RuleTree)>, tcp: fn(&RuleTree, &Tests) -> Option<RuleTree>| {
            let mut rules: Vec<_> = rules
                .into_iter()
                .map(|(id, http)| CompiledRule { tcp: tcp(&http, &tests), id, http })
                .collect();
            rules.sort_by_cached_key(|r: &CompiledRule| r.id.to_string());
            rules
        };
        let deny = named(deny, |tree, tests| Some(tree.deny_on_tcp(tests)));
        let allow = named(allow, RuleTree::allow_on_tcp);
        (Self { tests, deny, allow, has_allow }, problems)
    }

    /// Evaluates once what is fixed for the life of a connection.
    pub fn on_connection(self: &Arc<Self>, attributes: &ConnectionAttributes<'_>) -> ConnectionPolicy {
        ConnectionPolicy::new(Arc::clone(self), attributes)
    }
}

/// Appends the policy's rules, or what stands for them if one cannot be compiled.
fn compile_policy(
    policy: &Authorization,
    trust: &TrustContext,
    compiler: &mut Compiler,
    rules: &mut Vec<(RuleId, RuleTree)>,
    problems: &mut Vec<CompileProblem>,
) {
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
        let fault = Fault {
            field: "spec.action".to_owned(),
            message: "external authorization is not enforced yet".to_owned(),
        };
        report(fault, "what its rules match is refused");
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
        (None, _) => rules.append(&mut trees),
        (Some(_), Action::Allow) => {}
        (Some(index), _) => rules.push((id(index), RuleTree::default())),
    }
}
