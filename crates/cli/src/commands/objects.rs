//! Objects in files, and the names people give to kinds.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use maille_config::kinds::{KINDS, Kind};
use serde_json::Value;

use crate::client::collection_path;

/// Reads every file named, every `.yaml`, `.yml` and `.json` file of every folder named (in
/// the order of their names), and standard input for `-`. Answers (file, text).
pub(crate) fn read_sources(names: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let mut sources = Vec::new();
    for name in names {
        if name == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            sources.push(("<stdin>".to_owned(), text));
        } else if name.is_dir() {
            for file in manifest_files(name)? {
                sources.push(read_source(&file)?);
            }
        } else {
            sources.push(read_source(name)?);
        }
    }
    if sources.is_empty() {
        bail!("there is no .yaml, .yml or .json file to read");
    }
    Ok(sources)
}

fn manifest_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        let is_manifest = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if is_manifest && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_source(path: &Path) -> Result<(String, String)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((path.display().to_string(), text))
}

/// The kind that people mean by `name`: plural, singular, kind or short name, in any case.
pub(crate) fn find_kind(name: &str) -> Result<&'static Kind> {
    let wanted = name.to_ascii_lowercase();
    let wanted = wanted.split('.').next().unwrap_or_default();
    KINDS
        .iter()
        .find(|kind| {
            kind.plural == wanted
                || kind.singular == wanted
                || kind.kind.to_ascii_lowercase() == wanted
                || kind.short_names.contains(&wanted)
        })
        .with_context(|| {
            format!(
                "the mesh has no kind '{name}'; try `maille get pods` or `maille get peerauthentications`"
            )
        })
}

/// Where an object lives in the API.
pub(crate) struct Location {
    /// The collection, to create it in.
    pub(crate) collection: String,
    /// The object itself.
    pub(crate) object: String,
    /// `kind/name` in lower case, with the group where kubectl shows it.
    pub(crate) label: String,
    /// The namespace, for namespaced kinds.
    pub(crate) namespace: Option<String>,
}

/// Where `object` lives; an object without a namespace goes to `default_namespace`.
pub(crate) fn locate(object: &Value, default_namespace: &str) -> Result<Location> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let kind_name = object["kind"].as_str().unwrap_or_default();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let kind = maille_config::kinds::find(api_version, kind_name)
        .with_context(|| format!("the mesh knows no {kind_name} of {api_version}"))?;
    let version = api_version.rsplit('/').next().unwrap_or(api_version);
    let namespace = kind
        .namespaced
        .then(|| object["metadata"]["namespace"].as_str().unwrap_or(default_namespace).to_owned());
    let collection = collection_path(kind, version, namespace.as_deref());
    let singular = match kind.group {
        "" => kind.singular.to_owned(),
        group => format!("{}.{group}", kind.singular),
    };
    Ok(Location {
        object: format!("{collection}/{name}"),
        collection,
        label: format!("{singular}/{name}"),
        namespace,
    })
}
