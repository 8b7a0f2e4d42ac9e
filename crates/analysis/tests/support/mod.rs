//! Objects as text in, findings out.

use maille_analysis::registry::{ANALYZERS, analyze};
use maille_analysis::{Message, Resource, Settings, overlay};
use maille_config::yaml;

/// Findings in a file.
pub(crate) fn analyze_files(text: &str) -> Vec<Message> {
    let documents = yaml::parse("test.yaml", text).expect("YAML");
    let resources = overlay(documents.into_iter().map(|document| Resource::of_file(document, "default")));
    analyze(&resources, Settings::default(), &ANALYZERS.iter().collect::<Vec<_>>())
}

/// Findings in a mesh that has just these objects.
pub(crate) fn analyze_live(text: &str) -> Vec<Message> {
    let documents = yaml::parse("test.yaml", text).expect("YAML");
    let resources: Vec<Resource> =
        documents.into_iter().map(|document| Resource::live(document.value)).collect();
    let settings = Settings { complete: true, ..Settings::default() };
    analyze(&resources, settings, &ANALYZERS.iter().collect::<Vec<_>>())
}

/// The codes of findings.
pub(crate) fn codes(messages: &[Message]) -> Vec<&'static str> {
    messages.iter().map(|message| message.code.code).collect()
}

/// Asserts that a code is found with this text in it, or not at all, and answers what was found.
pub(crate) fn expect(text: &str, code: &str, expected: Option<&str>) -> Vec<Message> {
    let mut found = analyze_files(text);
    found.retain(|message| message.code.code == code);
    match expected {
        None => assert!(found.is_empty(), "{code} is not expected in\n{text}\n{found:#?}"),
        Some(part) => {
            assert!(
                found.iter().any(|m| m.text.contains(part)),
                "{code} with '{part}' is expected in\n{text}\n{found:#?}"
            );
            assert!(
                found.iter().all(|m| m.reference.is_some()),
                "findings in files have a place: {found:#?}"
            );
        }
    }
    found
}
