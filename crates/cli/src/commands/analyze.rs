//! `maille analyze`: mistakes in the configuration, with Istio's codes (reference cli 1.6).

mod files;
mod live;
mod print;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use maille_analysis::registry::{ANALYZERS, Analyzer, analyze, select};
use maille_analysis::{Level, Message, Resource, Settings, Suppression, overlay};

use crate::Outcome;
use crate::client::{Api, ApiArgs};
use crate::output::out;

/// A finding at or above the threshold.
const FINDINGS: u8 = 79;
/// A file that cannot be read as YAML.
const UNREADABLE: u8 = 65;
/// A wrong argument, as sysexits count it.
const USAGE: u8 = 64;

/// Finds mistakes in the live objects of a mesh, in files, or in files laid over the live objects.
///
/// -o json prints a list of {"code","level","origin","reference","message","documentationUrl"}: origin is "KIND
/// NAMESPACE/NAME", reference is "FILE:LINE" for objects of files, documentationUrl is there for Istio's codes.
///
/// Without -n and -A the findings are those of the kubeconfig's namespace and of all objects in the files.
///
/// Exit code 79 if something at or above --failure-threshold is found, else 65 if a file cannot be read, 64 for a wrong
/// argument. Called as istioctl, 79 and 65 are given with -o log only, as Istio does.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AnalyzeArgs {
    /// Files (.yaml, .yml, .json) and folders, with all folders in them; `-` is standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Findings of this namespace only.
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Findings of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Look at the live objects too.
    #[arg(short = 'k', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", action = clap::ArgAction::Set)]
    use_kube: bool,
    /// Form of the output: log, json or yaml.
    #[arg(short = 'o', long, value_name = "FORM", default_value = "log")]
    output: String,
    /// Exit code 79 from this level on: Info, Warning or Error.
    #[arg(long, value_name = "LEVEL", default_value = "Error")]
    failure_threshold: Level,
    /// Show nothing below this level.
    #[arg(long, value_name = "LEVEL", default_value = "Info")]
    output_threshold: Level,
    /// Leave findings out: CODE="KIND NAME.NAMESPACE", where * stands for anything. May be given several times.
    #[arg(short = 'S', long, value_name = "CODE=OBJECT", value_parser = Suppression::parse)]
    suppress: Vec<Suppression>,
    /// Run this analyzer only. May be given several times; see --list-analyzers.
    #[arg(long = "analyzer", value_name = "NAME")]
    analyzers: Vec<String>,
    /// List the analyzers.
    #[arg(short = 'L', long)]
    list_analyzers: bool,
    /// A file that cannot be read does not change the exit code.
    #[arg(long)]
    ignore_unknown: bool,
    /// How long reading the live objects may take: 30s, 2m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// Say on standard error which analyzers run.
    #[arg(short = 'v', long)]
    verbose: bool,
    /// Colour levels; by default on a terminal.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    color: Option<bool>,
    /// Namespace of mesh-wide policy.
    #[arg(short = 'i', long = "istioNamespace", value_name = "NAMESPACE", default_value = maille_core::ROOT_NAMESPACE)]
    istio_namespace: String,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(mut args: AnalyzeArgs) -> Result<Outcome> {
    // As in istioctl, an empty name is none.
    args.namespace = args.namespace.filter(|namespace| !namespace.is_empty());
    if args.list_analyzers {
        let mut sorted: Vec<&Analyzer> = ANALYZERS.iter().collect();
        sorted.sort_by_key(|analyzer| analyzer.name);
        for analyzer in sorted {
            out!("* {}:\n    {}", analyzer.name, analyzer.description);
        }
        return Ok(Outcome::Fine);
    }
    let Some(form) = print::Form::parse(&args.output) else {
        eprintln!("'{}' is no form of output; write log, json or yaml", args.output);
        return Ok(Outcome::Exit(ExitCode::from(USAGE)));
    };
    for code in args.suppress.iter().filter_map(Suppression::unknown_code) {
        eprintln!("--suppress names code {code}, which nothing has");
    }
    let subject = read(&args).await?;
    let analyzers = select(&args.analyzers);
    if args.verbose {
        list_run(&analyzers);
    }
    let settings = Settings {
        root_namespace: args.istio_namespace.clone(),
        complete: args.use_kube,
        ..Settings::default()
    }
    .configured(&subject.resources);
    let mut found = analyze(&subject.resources, settings, &analyzers);
    found.retain(|message| concerns(&args, &subject, message));
    found.retain(|message| !args.suppress.iter().any(|suppression| suppression.covers(message)));

    let shown: Vec<&Message> = found.iter().filter(|m| m.level >= args.output_threshold).collect();
    print::print(&shown, form, args.color)?;
    if found.is_empty() && form == print::Form::Log {
        eprintln!("✔ No validation issues found when analyzing {}.", subject.described(&args));
    }
    let failed = found.iter().any(|message| message.level >= args.failure_threshold);
    // Istio computes the exit code for its log alone.
    let counts = form == print::Form::Log || !crate::called::as_istioctl();
    if counts && failed {
        if form == print::Form::Log {
            eprintln!("Error: Analyzers found issues when analyzing {}.", subject.described(&args));
        }
        return Ok(Outcome::Exit(ExitCode::from(FINDINGS)));
    }
    if counts && subject.unreadable > 0 && !args.ignore_unknown {
        eprintln!("Error: {} of the files could not be read.", subject.unreadable);
        return Ok(Outcome::Exit(ExitCode::from(UNREADABLE)));
    }
    Ok(Outcome::Fine)
}

/// What is analyzed.
struct Subject {
    resources: Vec<Resource>,
    /// The namespace of objects that name none, and of findings if nothing else is asked.
    namespace: String,
    /// Files that could not be read as YAML or JSON.
    unreadable: usize,
}

async fn read(args: &AnalyzeArgs) -> Result<Subject> {
    if !args.use_kube && args.files.is_empty() {
        bail!("there is nothing to analyze: name files, or leave --use-kube=false out");
    }
    let (mut layers, mut namespace) = (Vec::new(), "default".to_owned());
    if args.use_kube {
        let api = Api::connect(&args.api).await?;
        namespace = api.client().default_namespace().to_owned();
        let live = tokio::time::timeout(args.timeout, live::objects(&api, &args.istio_namespace)).await;
        layers = live.context("reading the live objects took too long; see --timeout")??;
    }
    let namespace = args.namespace.clone().unwrap_or(namespace);
    let files = files::read(&args.files)?;
    for diagnostic in &files.diagnostics {
        eprintln!("{diagnostic}");
    }
    let documents = files.documents.into_iter();
    layers.extend(documents.map(|document| Resource::of_file(document, &namespace)));
    if args.use_kube
        && let Some(wanted) = &args.namespace
    {
        let exists = layers.iter().any(|r| {
            (r.kind() == "Namespace" && r.name() == wanted) || r.namespace() == Some(wanted.as_str())
        });
        if !exists {
            bail!("there is no namespace {wanted}");
        }
    }
    Ok(Subject { resources: overlay(layers), namespace, unreadable: files.unreadable })
}

/// Whether a finding was asked for.
fn concerns(args: &AnalyzeArgs, subject: &Subject, message: &Message) -> bool {
    let Some(scope) = message.origin.scope().filter(|_| !args.all_namespaces) else { return true };
    // Who names files wants to know about them, whatever namespaces they are for.
    let of_a_file = message.reference.is_some() && args.namespace.is_none();
    of_a_file || scope == subject.namespace
}

impl Subject {
    /// What was analyzed, as istioctl says it.
    fn described(&self, args: &AnalyzeArgs) -> String {
        match args.files.as_slice() {
            _ if args.all_namespaces => "all namespaces".to_owned(),
            [] => format!("namespace: {}", self.namespace),
            [file] => file.display().to_string(),
            files => {
                let names: Vec<_> = files.iter().map(|file| format!("\n- {}", file.display())).collect();
                format!("the following:{}", names.concat())
            }
        }
    }
}

fn list_run(chosen: &[&Analyzer]) {
    let ran = |analyzer: &&Analyzer| chosen.iter().any(|c| c.name == analyzer.name);
    eprintln!("Analyzers run:");
    ANALYZERS.iter().filter(ran).for_each(|analyzer| eprintln!("  {}", analyzer.name));
    let skipped: Vec<_> = ANALYZERS.iter().filter(|analyzer| !ran(analyzer)).collect();
    if !skipped.is_empty() {
        eprintln!("Analyzers skipped:");
        skipped.iter().for_each(|analyzer| eprintln!("  {}", analyzer.name));
    }
}

/// Reads 30s, 2m, 1h or a bare number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("'{text}' is no time like 30s or 2m")),
    };
    let number: u64 = number.parse().map_err(|_| format!("'{text}' is no time like 30s or 2m"))?;
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| format!("'{text}' is too long a time"))
}
