//! `maille delete`: objects by name, or those of files.

use std::path::PathBuf;

use anyhow::{Result, bail};
use maille_config::kinds::Kind;
use maille_config::yaml::Document;

use super::objects::{find_kind, locate, read_sources};
use crate::Outcome;
use crate::client::{Api, ApiArgs, NamespaceArgs, collection_path};
use crate::output::out;

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// Kind, or KIND/NAME.
    kind: Option<String>,
    /// Names.
    names: Vec<String>,
    /// Delete the objects of this file or folder; `-` is standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE_OR_DIR", conflicts_with_all = ["kind", "names"])]
    files: Vec<PathBuf>,
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// What does not exist is fine.
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: DeleteArgs) -> Result<Outcome> {
    // What is wrong with the question is told before a mesh is looked for.
    let wanted = wanted(&args)?;
    let Some(wanted) = wanted else { return Ok(Outcome::NotFine) };
    let api = Api::connect(&args.api).await?;
    let namespace = args.namespace.of(&api);
    let mut targets = Vec::new();
    match wanted {
        Wanted::Named(kind, names) => {
            let version = kind.versions.first().copied().unwrap_or("v1");
            let collection = collection_path(kind, version, Some(namespace));
            for name in names {
                targets.push((format!("{collection}/{name}"), format!("{} \"{name}\"", kind.singular)));
            }
        }
        Wanted::Written(documents) => {
            // Last to first: what was created for another goes after it.
            for document in documents.iter().rev() {
                let location = locate(&document.value, namespace)?;
                targets.push((location.object, location.label));
            }
        }
    }
    let mut outcome = Outcome::Fine;
    for (path, label) in targets {
        match api.delete(&path).await {
            Ok(_) => out!("{label} deleted"),
            Err(error) if error.is_not_found() && args.ignore_not_found => {}
            Err(error) if error.is_not_found() => {
                eprintln!("{error}");
                outcome = Outcome::NotFine;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(outcome)
}

/// What is to go.
enum Wanted {
    Named(&'static Kind, Vec<String>),
    Written(Vec<Document>),
}

/// Reads the question; nothing if the files are wrong, which is told already.
fn wanted(args: &DeleteArgs) -> Result<Option<Wanted>> {
    if let Some(kind) = &args.kind {
        let (kind, names) = match kind.split_once('/') {
            Some((kind, name)) if args.names.is_empty() => (kind, vec![name.to_owned()]),
            _ => (kind.as_str(), args.names.clone()),
        };
        if names.is_empty() {
            bail!("name what to delete: `maille delete {kind} NAME`");
        }
        return Ok(Some(Wanted::Named(find_kind(kind)?, names)));
    }
    if args.files.is_empty() {
        bail!("name what to delete: `maille delete KIND NAME` or `maille delete -f FILE`");
    }
    match super::apply::check(&read_sources(&args.files)?) {
        Ok(documents) => Ok(Some(Wanted::Written(documents))),
        Err(problem) => {
            eprint!("{problem}");
            Ok(None)
        }
    }
}
