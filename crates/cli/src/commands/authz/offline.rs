//! Decisions over policies in files.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use maille_analysis::authz::{Answer, Checker, Question, Settings, read_questions};
use maille_config::istio::AuthorizationPolicy;
use maille_config::{Diagnostic, Object, yaml};
use maille_core::{Labels, TrustDomain};

use super::CheckArgs;
use crate::Outcome;
use crate::commands::objects::read_sources;
use crate::output::{out, write_out};

pub(super) fn run(args: &CheckArgs, request: &Path) -> Result<Outcome> {
    let standard_input = Path::new("-");
    ensure!(
        request != standard_input || !args.files.iter().any(|file| file == standard_input),
        "standard input can be the policies or the requests, not both"
    );
    let policies = match load(&read_sources(&args.files)?, args.namespace.as_deref().unwrap_or("default")) {
        Ok(policies) => policies,
        Err(diagnostics) => {
            for diagnostic in &diagnostics {
                eprintln!("{diagnostic}");
            }
            eprintln!("nothing was decided: the policies have to be right first");
            return Ok(Outcome::Exit(ExitCode::from(2)));
        }
    };
    let questions = questions(request)?;
    let mut checker = Checker::new(policies.values(), settings(args)?);
    let answers: Vec<Answer> = questions.iter().map(|question| checker.decide(question)).collect();
    if args.output.is_some() {
        out!("{}", serde_json::to_string_pretty(&answers)?);
    } else {
        write_out(&for_people(&checker, &questions, &answers));
    }
    let fine = answers.iter().all(|answer| answer.allowed);
    Ok(if fine { Outcome::Fine } else { Outcome::NotFine })
}

pub(super) fn settings(args: &CheckArgs) -> Result<Settings> {
    let domain = |text: &String| TrustDomain::parse(text).map_err(anyhow::Error::from);
    Ok(Settings {
        trust_domain: domain(&args.trust_domain)?,
        aliases: args.trust_domain_aliases.iter().map(domain).collect::<Result<_>>()?,
        root_namespace: args.root_namespace.clone(),
    })
}

/// The AuthorizationPolicies of the texts by namespace and name; of two with one name the later counts, as if they
/// had been applied one after the other.
fn load(
    sources: &[(String, String)],
    default_namespace: &str,
) -> Result<BTreeMap<(String, String), AuthorizationPolicy>, Vec<Diagnostic>> {
    let (mut policies, mut wrong) = (BTreeMap::new(), Vec::new());
    for (file, text) in sources {
        let documents = match yaml::parse(file, text) {
            Ok(documents) => documents,
            Err(mut diagnostics) => {
                wrong.append(&mut diagnostics);
                continue;
            }
        };
        for document in documents.iter().filter(|d| d.value["kind"] == "AuthorizationPolicy") {
            match document.check() {
                Ok(Object::AuthorizationPolicy(mut policy)) => {
                    let metadata = &mut policy.metadata;
                    let namespace =
                        metadata.namespace.get_or_insert_with(|| default_namespace.to_owned()).clone();
                    let key = (namespace, metadata.name.clone().unwrap_or_default());
                    if policies.contains_key(&key) {
                        eprintln!(
                            "{file}:{}: AuthorizationPolicy {}/{} is given again, and replaces the one before",
                            document.line, key.0, key.1
                        );
                    }
                    policies.insert(key, policy);
                }
                Ok(_) => {}
                Err(mut diagnostics) => wrong.append(&mut diagnostics),
            }
        }
    }
    if wrong.is_empty() { Ok(policies) } else { Err(wrong) }
}

fn questions(path: &Path) -> Result<Vec<Question>> {
    let (name, text) = if path == Path::new("-") {
        (
            "<stdin>".to_owned(),
            std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?,
        )
    } else {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        (path.display().to_string(), text)
    };
    match read_questions(&text) {
        Ok(questions) => Ok(questions),
        Err(error) => bail!("{name}:{error}"),
    }
}

/// A block for each request.
fn for_people(checker: &Checker, questions: &[Question], answers: &[Answer]) -> String {
    let mut text = String::new();
    for (index, (question, answer)) in questions.iter().zip(answers).enumerate() {
        let none = Labels::new();
        let labels = question.workload.labels().unwrap_or(&none);
        let selected = checker.selected(question.workload.namespace(), labels);
        let selected = if selected.is_empty() { "none".to_owned() } else { selected.join(", ") };
        let lines = [
            ("to", to(question)),
            ("from", from(question)),
            ("request", what(question)),
            ("policies", selected),
            ("because", answer.reason.clone()),
        ];
        text.push_str(&format!("{}. {}\n", index + 1, verdict(answer)));
        for (name, value) in lines {
            text.push_str(&format!("   {name:<9} {}\n", one_line(&value)));
        }
        text.push('\n');
    }
    let refused = answers.iter().filter(|answer| !answer.allowed).count();
    text + &format!("{} allowed, {refused} refused\n", answers.len() - refused)
}

/// `REFUSED by shop/no-debug, rule 0 (DENY)`.
pub(super) fn verdict(answer: &Answer) -> String {
    let word = if answer.allowed { "ALLOWED" } else { "REFUSED" };
    match (&answer.policy, answer.rule) {
        (Some(policy), Some(rule)) => format!("{word} by {policy}, rule {rule} ({})", answer.action.as_str()),
        _ => word.to_owned(),
    }
}

fn to(question: &Question) -> String {
    let mut parts = vec![format!("namespace {}", question.workload.namespace())];
    parts.extend(question.workload.labels().into_iter().flatten().map(|(k, v)| format!("{k}={v}")));
    parts.extend(question.request.destination_port().map(|port| format!("port {port}")));
    parts.extend(question.request.destination_ip().map(|address| format!("at {address}")));
    parts.join(", ")
}

fn from(question: &Question) -> String {
    let request = &question.request;
    let mut parts = vec![match request.identity() {
        Some(identity) => identity.to_string(),
        None => "plaintext, no identity".to_owned(),
    }];
    parts.extend(request.source_ip().map(|address| format!("at {address}")));
    parts.extend(request.remote_ip().map(|address| format!("for {address}")));
    parts.extend(request.sni().map(|name| format!("SNI {name}")));
    parts.join(", ")
}

fn what(question: &Question) -> String {
    use maille_analysis::authz::Protocol;
    let request = &question.request;
    if request.protocol() == Protocol::Tcp {
        return "TCP".to_owned();
    }
    let mut text = format!("{} {}", request.method().unwrap_or("-"), request.path().unwrap_or("-"));
    if let Some(host) = request.host() {
        text.push_str(&format!(", host {host}"));
    }
    for (name, _) in request.headers() {
        text.push_str(&format!(", with {name}"));
    }
    text
}

/// What a file says may hold control characters, which do not belong on a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
