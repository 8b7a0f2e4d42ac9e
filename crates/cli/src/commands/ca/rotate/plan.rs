//! `--dry-run`: what a rotation would do.

use anyhow::Result;
use maille_control::authority::{Answer, CertificateStatus, Outcome as Said, Phase, Plan};
use serde_json::json;

use crate::Outcome;
use crate::commands::ca::asking::now;
use crate::commands::ca::rotation;
use crate::output::out;

/// Prints the plan; fine if nothing stands in its way.
pub(super) fn show(answer: &Answer, refusal: Option<String>, for_people: bool) -> Result<Outcome> {
    let plan = answer.plan.as_ref();
    let mut fine = answer.outcome != Said::Refused && refusal.is_none();
    fine &= plan.is_some_and(|plan| plan.waiting.is_empty() && plan.problems.is_empty());
    match (plan, for_people) {
        (_, false) => out!("{}", serde_json::to_string_pretty(&json!({"fine": fine, "answer": answer}))?),
        (Some(plan), true) => lines(plan).iter().for_each(|line| out!("{line}")),
        (None, true) => {}
    }
    if answer.outcome == Said::Refused {
        eprintln!("maille: refused: {}", answer.message);
    }
    if let Some(refusal) = refusal {
        eprintln!("maille: {refusal}");
    }
    Ok(if fine { Outcome::Fine } else { Outcome::NotFine })
}

fn lines(plan: &Plan) -> Vec<String> {
    let now = now();
    let certificate = |one: &CertificateStatus| rotation::certificate(one, now);
    let mut lines = vec![
        format!("would replace   {}", rotation::kind(plan.kind)),
        format!("would sign      {}", certificate(&plan.to.signer)),
    ];
    lines.extend(plan.added.iter().map(|root| format!("would trust     {}", certificate(root))));
    lines.extend(plan.withdrawn.iter().map(|root| format!("would withdraw  {}", certificate(root))));
    let steps: Vec<&str> = plan.phases.iter().filter(|p| **p != Phase::Idle).map(|p| p.name()).collect();
    lines.push(format!("in the steps    {}", steps.join(", ")));
    lines.push(format!("confirmed by    {} proxies, each step", plan.live));
    for waiting in rotation::waiting(&plan.waiting, plan.waiting.len(), now) {
        lines.push(format!("would wait for  {waiting}"));
    }
    lines.extend(plan.problems.iter().map(|problem| format!("but             {problem}")));
    lines
}
