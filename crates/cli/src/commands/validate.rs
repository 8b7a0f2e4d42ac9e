//! `maille validate`: whether files hold valid objects (reference cli 1.7).

use std::path::PathBuf;

use anyhow::{Context, Result};
use maille_analysis::{Resource, Settings, overlay, registry};
use maille_config::yaml::{self, Document};
use maille_config::{Diagnostic, Severity, kinds};
use serde_json::Value;

use crate::Outcome;
use crate::commands::objects::read_sources;
use crate::output::out;

/// Checks files as `apply` does, and changes nothing: YAML, unknown and repeated fields, values, what nothing enforces.
/// Names of Service ports that do not tell their protocol, and Deployments without the labels that metrics are named by,
/// are warnings. Objects of kinds that are not known here pass.
///
/// -o json prints a list of {"code","severity","file","line","column","object","field","message","help"}.
///
/// Exit code 0 if everything is valid, warnings or not, 1 if something is not, 2 if a file cannot be read.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ValidateArgs {
    /// File or folder to check; `-` is standard input. May be given several times.
    #[arg(short = 'f', long = "filename", value_name = "FILE", num_args = 1.., required = true)]
    files: Vec<PathBuf>,
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
}

pub(crate) async fn run(args: ValidateArgs) -> Result<Outcome> {
    let mut all = Vec::new();
    for (file, text) in read_sources(&args.files)? {
        let found = validate(&file, &text);
        if args.output.is_none() {
            report(&file, &found);
        }
        all.extend(found);
    }
    if args.output.is_some() {
        out!("{}", serde_json::to_string_pretty(&all).context("findings cannot be written as JSON")?);
    }
    let fine = all.iter().all(|diagnostic| diagnostic.severity == Severity::Warning);
    Ok(if fine { Outcome::Fine } else { Outcome::NotFine })
}

/// As istioctl puts it.
fn report(file: &str, found: &[Diagnostic]) {
    let lines = |severity: Severity| {
        let of_it = found.iter().filter(|d| d.severity == severity);
        of_it.map(|d| format!("\n{d}")).collect::<String>()
    };
    let (errors, warnings) = (lines(Severity::Error), lines(Severity::Warning));
    if !errors.is_empty() {
        eprintln!("Error: \"{file}\" is not valid:{errors}{warnings}");
    } else if !warnings.is_empty() {
        out!("\"{file}\" has warnings:{warnings}");
    } else if file == "<stdin>" {
        out!("validation succeed");
    } else {
        out!("\"{file}\" is valid");
    }
}

/// Everything that is wrong or doubtful in one text.
fn validate(file: &str, text: &str) -> Vec<Diagnostic> {
    let documents = match yaml::parse(file, text) {
        Ok(documents) => documents,
        Err(diagnostics) => return diagnostics,
    };
    let mut found = Vec::new();
    for document in documents.iter().filter(|document| is_known(document)) {
        match document.check() {
            Ok(_) => found.extend(document.warnings()),
            Err(diagnostics) => found.extend(diagnostics),
        }
        found.extend(missing_labels(document));
    }
    found.extend(port_names(&documents));
    found.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    found
}

/// Kinds of others are their business; a slip in the kind of one of Istio's is not.
fn is_known(document: &Document) -> bool {
    let text = |field: &str| document.value[field].as_str().unwrap_or_default();
    let (group, _) = kinds::split_api_version(text("apiVersion"));
    group.ends_with(".istio.io")
        || text("apiVersion").is_empty()
        || text("kind").is_empty()
        || kinds::KINDS.iter().any(|kind| kind.group == group && kind.kind == text("kind"))
}

/// The analyzer's findings about Service ports.
fn port_names(documents: &[Document]) -> Vec<Diagnostic> {
    let resources = overlay(documents.iter().map(|d| Resource::of_file(d.clone(), "default")));
    let analyzers = registry::select(&["service.PortNameAnalyzer".to_owned()]);
    let messages = registry::analyze(&resources, Settings::default(), &analyzers);
    let diagnostics = messages.into_iter().map(|message| {
        let place = message.reference.as_deref().and_then(|reference| reference.rsplit_once(':'));
        let (file, line) = place.unwrap_or_default();
        Diagnostic {
            code: message.code.code,
            severity: Severity::Warning,
            file: file.to_owned(),
            line: line.parse().unwrap_or(0),
            column: 1,
            object: Some(message.origin.to_string()),
            field: Some("spec.ports".to_owned()),
            message: message.text,
            help: None,
        }
    });
    diagnostics.collect()
}

/// Labels after which metrics name a workload and its version.
fn missing_labels(document: &Document) -> Option<Diagnostic> {
    if document.value["kind"] != "Deployment" {
        return None;
    }
    let labels = document.value.pointer("/spec/template/metadata/labels");
    let label = |name: &&str| labels.and_then(|labels| labels.get(name)).is_some_and(Value::is_string);
    let names = [
        ("app", ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]),
        ("version", ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]),
    ];
    let missing: Vec<&str> =
        names.iter().filter(|(_, any)| !any.iter().any(&label)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return None;
    }
    let field = "spec.template.metadata.labels";
    let (line, column) = document.position(field).unwrap_or((document.line, 1));
    Some(Diagnostic {
        code: "ML0112",
        severity: Severity::Warning,
        file: document.file.clone(),
        line,
        column,
        object: document.object_name(),
        field: Some(field.to_owned()),
        message: format!("the pods have no label {}", missing.join(" and no label ")),
        help: Some(
            "metrics and flows name workloads and versions after the labels app and version".to_owned(),
        ),
    })
}
