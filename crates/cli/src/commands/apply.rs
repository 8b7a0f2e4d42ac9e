//! `maille apply`: all documents, or none.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use maille_config::yaml::Document;
use serde_json::{Value, json};

use super::objects::{Location, locate, read_sources};
use crate::Outcome;
use crate::client::{Api, ApiArgs, ApiError, NamespaceArgs};
use crate::output::out;

/// kubectl's note of what was applied last, so that both can be used in turn.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    /// File or folder to apply; `-` is standard input. May be given several times.
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE_OR_DIR")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// Check everything, on the server too, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: ApplyArgs) -> Result<Outcome> {
    let documents = match check(&read_sources(&args.files)?) {
        Ok(documents) => documents,
        Err(problem) => {
            eprint!("{problem}");
            return Ok(Outcome::NotFine);
        }
    };
    ensure!(!documents.is_empty(), "there is no object in the files to apply");
    let api = Api::connect(&args.api).await?;
    match apply_all(&api, &documents, args.namespace.of(&api), args.dry_run).await {
        Ok(lines) => {
            for line in lines {
                out!("{line}");
            }
            Ok(Outcome::Fine)
        }
        Err(error) => bail!("{error}\nnothing was changed"),
    }
}

/// Checks every document of every source; the error is text for people that names
/// file, line, column, object, field and what would be right.
pub(crate) fn check(sources: &[(String, String)]) -> Result<Vec<Document>, String> {
    let checked = maille_config::load(sources);
    for warning in checked.iter().flatten().flat_map(Document::warnings) {
        eprintln!("{warning}");
    }
    checked.map_err(|diagnostics| {
        let mut text = String::new();
        for diagnostic in &diagnostics {
            text.push_str(&format!("{diagnostic}\n"));
        }
        let count = match diagnostics.len() {
            1 => "1 error".to_owned(),
            n => format!("{n} errors"),
        };
        text + &format!("{count}; nothing was changed\n")
    })
}

/// What was there before a document was applied, to put it back if a later one fails.
enum Before {
    Absent(Location),
    Was(Location, Value),
}

/// Applies all documents in order; if one is refused, those before it are put back.
/// Answers a line for each, as kubectl prints it.
pub(crate) async fn apply_all(
    api: &Api,
    documents: &[Document],
    default_namespace: &str,
    dry_run: bool,
) -> Result<Vec<String>, String> {
    let created_namespaces: Vec<&str> = documents
        .iter()
        .filter(|document| document.value["kind"] == "Namespace")
        .filter_map(|document| document.value["metadata"]["name"].as_str())
        .collect();
    // First everything on trial, so that what the server would refuse stops all of it.
    let mut lines = Vec::new();
    for document in documents {
        let location =
            locate(&document.value, default_namespace).map_err(|e| at(document, &e.to_string()))?;
        match apply_one(api, document, &location, default_namespace, true).await {
            Ok((line, _)) => lines.push(format!("{line} (dry run)")),
            // Its namespace is among the documents, and so not there yet.
            Err(error)
                if error.is_not_found()
                    && location.namespace.as_deref().is_some_and(|ns| created_namespaces.contains(&ns)) =>
            {
                lines.push(format!("{} created (dry run)", location.label));
            }
            Err(error) => return Err(explain(document, error)),
        }
    }
    if dry_run {
        return Ok(lines);
    }
    lines.clear();
    let mut done: Vec<Before> = Vec::new();
    for document in documents {
        let location =
            locate(&document.value, default_namespace).map_err(|e| at(document, &e.to_string()))?;
        match apply_one(api, document, &location, default_namespace, false).await {
            Ok((line, before)) => {
                lines.push(line);
                done.push(match before {
                    None => Before::Absent(location),
                    Some(object) => Before::Was(location, object),
                });
            }
            Err(error) => {
                let mut text = explain(document, error);
                for undone in roll_back(api, done).await {
                    text.push_str(&format!("\ncannot put back {undone}"));
                }
                return Err(text);
            }
        }
    }
    Ok(lines)
}

/// Creates the object, or patches the one that is there: what the document says, and without
/// what the last applied document said and this one does not.
async fn apply_one(
    api: &Api,
    document: &Document,
    location: &Location,
    default_namespace: &str,
    dry_run: bool,
) -> Result<(String, Option<Value>), ApiError> {
    let query = if dry_run { "?dryRun=All&fieldValidation=Strict" } else { "?fieldValidation=Strict" };
    let wanted =
        with_annotation(&document.value, location.namespace.as_deref().or(Some(default_namespace)), location);
    match api.get(&location.object).await {
        Err(error) if error.is_not_found() => {
            api.create(&format!("{}{query}", location.collection), &wanted).await?;
            Ok((format!("{} created", location.label), None))
        }
        Err(error) => Err(error),
        Ok(live) => {
            let last = live["metadata"]["annotations"][LAST_APPLIED].as_str();
            let last: Value = last.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
            let mut patch = merge_patch(&last, &wanted);
            keep_same_note(&mut patch, &last, &wanted);
            let after = api.merge_patch(&format!("{}{query}", location.object), &patch).await?;
            let unchanged = after["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"];
            let verb = if unchanged { "unchanged" } else { "configured" };
            Ok((format!("{} {verb}", location.label), Some(live)))
        }
    }
}

async fn roll_back(api: &Api, done: Vec<Before>) -> Vec<String> {
    let mut failed = Vec::new();
    for before in done.into_iter().rev() {
        let (label, outcome) = match before {
            Before::Absent(location) => (location.label, api.delete(&location.object).await),
            Before::Was(location, mut object) => {
                // The version it would have to have is no longer its own.
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("resourceVersion");
                }
                (location.label, api.replace(&location.object, &object).await)
            }
        };
        if let Err(error) = outcome {
            failed.push(format!("{label}: {error}"));
        }
    }
    failed
}

/// The document with its namespace and with kubectl's note of itself.
fn with_annotation(document: &Value, namespace: Option<&str>, location: &Location) -> Value {
    let mut object = document.clone();
    if location.namespace.is_some() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    match object["metadata"]["annotations"].as_object_mut() {
        Some(annotations) => drop(annotations.remove(LAST_APPLIED)),
        // kubectl's note has them always.
        None => object["metadata"]["annotations"] = json!({}),
    }
    object["metadata"]["annotations"][LAST_APPLIED] = json!(note(&object));
    object
}

/// The text that kubectl keeps of an object: as Go's encoder writes it, sorted and with HTML's signs escaped, and a
/// line's end. An object applied by both in turn does not change by that.
fn note(object: &Value) -> String {
    let text = sorted(object).to_string();
    let escaped = text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    escaped.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029") + "\n"
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> =
                members.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        plain => plain.clone(),
    }
}

/// A note that says the same in other words is left as it is.
fn keep_same_note(patch: &mut Value, last: &Value, wanted: &Value) {
    let new = wanted["metadata"]["annotations"][LAST_APPLIED].as_str();
    let new: Option<Value> = new.and_then(|text| serde_json::from_str(text).ok());
    if new.as_ref().is_some_and(|new| sorted(new) == sorted(last))
        && let Some(annotations) = patch["metadata"]["annotations"].as_object_mut()
    {
        annotations.remove(LAST_APPLIED);
    }
}

/// A merge patch (RFC 7396) that sets what `wanted` says and removes what only `last` said.
fn merge_patch(last: &Value, wanted: &Value) -> Value {
    let (Value::Object(wanted_map), Value::Object(last_map)) = (wanted, last) else {
        return wanted.clone();
    };
    let mut patch = serde_json::Map::new();
    for (key, value) in wanted_map {
        patch.insert(key.clone(), merge_patch(last_map.get(key).unwrap_or(&Value::Null), value));
    }
    for key in last_map.keys().filter(|key| !wanted_map.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

fn at(document: &Document, message: &str) -> String {
    format!("{}:{}: {message}", document.file, document.line)
}

/// A refusal of the server, at the place in the file that it is about.
fn explain(document: &Document, error: ApiError) -> String {
    match error {
        ApiError::Refused { message, causes, .. } if causes.is_empty() => at(document, &message),
        ApiError::Refused { causes, .. } => {
            let name = document.value["metadata"]["name"].as_str().unwrap_or_default();
            let kind = document.value["kind"].as_str().unwrap_or_default();
            let line = |(field, message): &(String, String)| {
                let (line, column) = document.position(field).unwrap_or((document.line, 1));
                format!("{}:{line}:{column}: error: {kind} {name}: {field}: {message}", document.file)
            };
            causes.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        other => at(document, &other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_removes_what_only_the_last_document_said() {
        let last = json!({"spec": {"a": 1, "b": {"c": 2, "d": 3}}});
        let wanted = json!({"spec": {"b": {"c": 4}, "e": [1]}});
        assert_eq!(
            merge_patch(&last, &wanted),
            json!({"spec": {"a": null, "b": {"c": 4, "d": null}, "e": [1]}})
        );
    }

    #[test]
    fn what_kubectl_applied_is_not_changed_by_applying_it_again() {
        let document = json!({"spec": {"a": "x<y"}, "kind": "K", "metadata": {"name": "n"}});
        let location = Location {
            collection: String::new(),
            object: String::new(),
            label: String::new(),
            namespace: Some("shop".to_owned()),
        };
        let wanted = with_annotation(&document, Some("shop"), &location);
        let kubectls = "{\"kind\":\"K\",\"metadata\":{\"annotations\":{},\"name\":\"n\",\"namespace\":\"shop\"},\
                        \"spec\":{\"a\":\"x\\u003cy\"}}\n";
        assert_eq!(wanted["metadata"]["annotations"][LAST_APPLIED], kubectls);
        // Another writer's spaces and order of keys.
        let other: Value = serde_json::from_str(
            "{\"spec\": {\"a\": \"x<y\"}, \"metadata\": {\"namespace\": \"shop\", \"name\": \"n\", \"annotations\": {}}, \"kind\": \"K\"}",
        )
        .expect("JSON");
        let mut patch = merge_patch(&other, &wanted);
        keep_same_note(&mut patch, &other, &wanted);
        assert_eq!(patch["metadata"]["annotations"], json!({}));
    }

    #[test]
    fn a_patch_without_a_last_document_removes_nothing() {
        assert_eq!(merge_patch(&Value::Null, &json!({"a": {"b": 1}})), json!({"a": {"b": 1}}));
    }
}
