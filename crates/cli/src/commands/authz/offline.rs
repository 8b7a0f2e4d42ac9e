//! Decisions over policies in files.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use maille_analysis::authz::{Action, Answer, Checker, Providers, Question, read_questions};
use maille_config::istio::{AuthorizationPolicy, RequestAuthentication};
use maille_config::k8s::meta::ObjectMeta;
use maille_config::mesh::{self, CONFIG_KEY, CONFIG_MAP, MeshConfig};
use maille_config::yaml::{self, Document};
use maille_config::{Diagnostic, Object};
use maille_core::{Labels, ROOT_NAMESPACE};

use super::CheckArgs;
use super::held::settings;
use crate::Outcome;
use crate::commands::objects::read_sources;
use crate::output::{out, write_out};

pub(super) fn run(args: &CheckArgs, request: &Path) -> Result<Outcome> {
    let standard_input = Path::new("-");
    ensure!(
        request != standard_input || !args.files.iter().any(|file| file == standard_input),
        "standard input can be the policies or the requests, not both"
    );
    let loaded = match load(&read_sources(&args.files)?, args.namespace.as_deref().unwrap_or("default")) {
        Ok(loaded) => loaded,
        Err(diagnostics) => {
            for diagnostic in &diagnostics {
                eprintln!("{diagnostic}");
            }
            eprintln!("nothing was decided: the policies have to be right first");
            return Ok(Outcome::Exit(ExitCode::from(2)));
        }
    };
    let questions = questions(request)?;
    let mut settings = settings(args, &loaded.config.clone().unwrap_or_default())?;
    if loaded.config.is_none() {
        settings.providers = Providers::Unknown;
    }
    let mut checker = Checker::new(loaded.policies.values(), settings)
        .with_authentications(loaded.authentications.values());
    let answers: Vec<Answer> = questions.iter().map(|question| checker.decide(question)).collect();
    if args.output.is_some() {
        out!("{}", serde_json::to_string_pretty(&answers)?);
    } else {
        write_out(&for_people(&checker, &questions, &answers));
    }
    let fine = answers.iter().all(|answer| answer.allowed);
    Ok(if fine { Outcome::Fine } else { Outcome::NotFine })
}

/// Objects by namespace and name.
type Named<T> = BTreeMap<(String, String), T>;

/// What decides, of the files.
#[derive(Default)]
struct Loaded {
    policies: Named<AuthorizationPolicy>,
    authentications: Named<RequestAuthentication>,
    config: Option<MeshConfig>,
}

/// Reads the objects that decide; of two with one name the later counts, as if they had been applied one after the
/// other.
fn load(sources: &[(String, String)], default_namespace: &str) -> Result<Loaded, Vec<Diagnostic>> {
    let (mut loaded, mut wrong) = (Loaded::default(), Vec::new());
    for (file, text) in sources {
        let documents = match yaml::parse(file, text) {
            Ok(documents) => documents,
            Err(mut diagnostics) => {
                wrong.append(&mut diagnostics);
                continue;
            }
        };
        for document in documents.iter().filter(|document| decides(document)) {
            match document.check() {
                Ok(object) => loaded.add(document, object, default_namespace),
                Err(mut diagnostics) => wrong.append(&mut diagnostics),
            }
        }
    }
    if wrong.is_empty() { Ok(loaded) } else { Err(wrong) }
}

fn decides(document: &Document) -> bool {
    let metadata = &document.value["metadata"];
    match document.value["kind"].as_str() {
        Some("AuthorizationPolicy" | "RequestAuthentication") => true,
        Some("ConfigMap") => metadata["name"] == CONFIG_MAP && metadata["namespace"] == ROOT_NAMESPACE,
        _ => false,
    }
}

impl Loaded {
    fn add(&mut self, document: &Document, object: Object, default_namespace: &str) {
        let key = |metadata: &mut ObjectMeta| {
            let namespace = metadata.namespace.get_or_insert_with(|| default_namespace.to_owned()).clone();
            (namespace, metadata.name.clone().unwrap_or_default())
        };
        let before = match object {
            Object::AuthorizationPolicy(mut policy) => {
                self.policies.insert(key(&mut policy.metadata), policy).is_some()
            }
            Object::RequestAuthentication(mut one) => {
                self.authentications.insert(key(&mut one.metadata), one).is_some()
            }
            // Checked with the object.
            _ => {
                let text = document.value["data"][CONFIG_KEY].as_str().unwrap_or_default();
                self.config.replace(mesh::check(text).unwrap_or_default()).is_some()
            }
        };
        if before {
            eprintln!(
                "{}:{}: {} is given again, and replaces the one before",
                document.file,
                document.line,
                document.object_name().unwrap_or_default()
            );
        }
    }
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
        let mut lines = vec![
            ("to", to(question)),
            ("from", from(question)),
            ("request", what(question)),
            ("policies", selected),
        ];
        lines.extend(why(answer));
        text.push_str(&format!("{}. {}\n", index + 1, verdict(answer)));
        for (name, value) in lines {
            text.push_str(&format!("   {name:<9} {}\n", one_line(&value)));
        }
        text.push('\n');
    }
    let refused = answers.iter().filter(|answer| !answer.allowed).count();
    text + &format!("{} allowed, {refused} refused\n", answers.len() - refused)
}

/// Why it is so, whom else is asked, and what policies would do that decide nothing.
pub(super) fn why(answer: &Answer) -> Vec<(&'static str, String)> {
    let mut lines = vec![("because", answer.reason.clone())];
    if let (Some(provider), true) = (&answer.provider, answer.action != Action::Custom) {
        lines.push(("asks", format!("provider {provider}, whose yes would change nothing")));
    }
    if let Some(audit) = &answer.audit {
        lines.push(("audit", format!("{} rule {} marks it in the access log", audit.policy, audit.rule)));
    }
    if let Some(shadow) = &answer.shadow {
        lines.push(("dry run", shadow.reason.clone()));
    }
    lines
}

/// `REFUSED by shop/no-debug, rule 0 (DENY)`.
pub(super) fn verdict(answer: &Answer) -> String {
    let word = match (answer.undecided, answer.allowed) {
        (true, _) => "UNDECIDED, refused unless the provider says yes:",
        (false, true) => "ALLOWED",
        (false, false) => "REFUSED",
    };
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
    if let Some(claims) = request.jwt() {
        let text = |name: &str| claims.get(name).and_then(|claim| claim.as_str()).unwrap_or("-");
        parts.push(format!("token of {}/{}", text("iss"), text("sub")));
    }
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
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
