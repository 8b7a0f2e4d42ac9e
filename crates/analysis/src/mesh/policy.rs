use maille_config::istio::{Action, AuthorizationPolicy, Operation, Rule, Source};
use maille_config::scope::Attachment;
use maille_core::Selector;

use super::{Typed, Workload};
use crate::resource::Resource;

/// An AuthorizationPolicy, and whom it selects.
#[derive(Debug)]
pub(crate) struct Policy<'r> {
    /// The object.
    pub(crate) resource: &'r Resource,
    /// As its type reads it.
    pub(crate) object: AuthorizationPolicy,
    /// Its namespace.
    pub(crate) namespace: String,
    /// It sits in the root namespace.
    pub(crate) mesh_wide: bool,
    /// Attached to gateways or services, and so to no workload (reference authorization 2.3).
    pub(crate) attached_elsewhere: bool,
    /// Evaluated as a shadow only (reference authorization 14).
    pub(crate) dry_run: bool,
    /// Labels that it selects by.
    pub(crate) selector: Selector,
    /// Indices of the workloads with a sidecar that it selects.
    pub(crate) workloads: Vec<usize>,
}

impl<'r> Policy<'r> {
    pub(super) fn new(
        typed: Typed<'r, AuthorizationPolicy>,
        workloads: &[Workload<'_>],
        root_namespace: &str,
    ) -> Self {
        let Typed { resource, object } = typed;
        let namespace = resource.namespace().unwrap_or("default").to_owned();
        let spec = &object.spec;
        let selector =
            Selector::new(spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default());
        let attachment = Attachment::from(spec);
        let mesh_wide = namespace == root_namespace;
        let selects = |w: &Workload<'_>| {
            w.meshed && attachment.applies(&namespace, root_namespace, (&w.namespace, &w.labels))
        };
        let selected = workloads.iter().enumerate().filter(|(_, w)| selects(w)).map(|(index, _)| index);
        let dry_run = resource
            .metadata("annotations")
            .get("istio.io/dry-run")
            .is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "TRUE" | "true" | "True"));
        Self {
            workloads: selected.collect(),
            attached_elsewhere: attachment.has_targets(),
            resource,
            object,
            namespace,
            mesh_wide,
            dry_run,
            selector,
        }
    }

    /// Its action.
    pub(crate) fn action(&self) -> Action {
        self.object.spec.action
    }

    /// Its rules and their field paths.
    pub(crate) fn rules(&self) -> impl Iterator<Item = (String, &Rule)> {
        let rules = self.object.spec.rules.iter().enumerate();
        rules.map(|(index, rule)| (format!("spec.rules[{index}]"), rule))
    }
}

/// Sources of a rule, with field paths.
pub(crate) fn sources<'p>(path: &str, rule: &'p Rule) -> impl Iterator<Item = (String, &'p Source)> {
    let path = path.to_owned();
    let from = rule.from.iter().enumerate();
    from.filter_map(move |(i, from)| Some((format!("{path}.from[{i}].source"), from.source.as_ref()?)))
}

/// Operations of a rule.
pub(crate) fn operations(rule: &Rule) -> impl Iterator<Item = &Operation> {
    rule.to.iter().filter_map(|to| to.operation.as_ref())
}

/// Whether a rule can match on a port, as far as its port fields say. (`when` keys included.)
pub(crate) fn admits_port(rule: &Rule, port: u16) -> bool {
    let text = port.to_string();
    let both = |wanted: &[String], unwanted: &[String]| {
        (wanted.is_empty() || wanted.contains(&text)) && !unwanted.contains(&text)
    };
    let to = rule.to.is_empty()
        || rule.to.iter().any(|to| match &to.operation {
            Some(operation) => both(&operation.ports, &operation.not_ports),
            None => true,
        });
    let when = rule.when.iter().filter(|c| c.key == "destination.port");
    to && when.into_iter().all(|c| both(&c.values, &c.not_values))
}

/// Whether a rule names a port itself.
pub(crate) fn names_port(rule: &Rule, port: u16) -> bool {
    let text = port.to_string();
    operations(rule).any(|operation| operation.ports.contains(&text))
        || rule.when.iter().any(|c| c.key == "destination.port" && c.values.contains(&text))
}
