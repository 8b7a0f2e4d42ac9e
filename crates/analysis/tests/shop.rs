//! The demo shop, and the guide's manifests over it, are found to be right.

use std::path::Path;

use maille_analysis::registry::{ANALYZERS, analyze};
use maille_analysis::{Level, Message, Resource, Settings, overlay};
use maille_config::yaml::{self, Document};

fn folder(name: &str) -> Vec<Document> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&path).expect("examples").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let yaml = files.iter().filter(|file| file.extension().is_some_and(|e| e == "yaml"));
    yaml.flat_map(|file| {
        let text = std::fs::read_to_string(file).expect("readable");
        yaml::parse(&file.display().to_string(), &text).expect("YAML")
    })
    .collect()
}

fn findings(documents: Vec<Document>) -> Vec<Message> {
    let resources = overlay(documents.into_iter().map(|d| Resource::of_file(d, "default")));
    analyze(&resources, Settings::default(), &ANALYZERS.iter().collect::<Vec<_>>())
}

#[test]
fn the_shop_has_no_mistake_and_few_remarks() {
    let found = findings(folder("shop"));
    let bad: Vec<_> = found.iter().filter(|message| message.level >= Level::Warning).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(found.len() <= 8, "few: {found:#?}");
    assert!(found.iter().any(|m| m.code.code == "ML0210"), "how the outside is called: {found:#?}");
}

#[test]
fn a_slip_in_the_shop_is_found() {
    let slip = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: allow-frontend-to-catalog, namespace: production}\nspec:\n  selector: {matchLabels: {app: product-catalogue}}\n  rules:\n  - from: [{source: {principals: [cluster.local/ns/production/sa/fronted], namespaces: [prodution]}}]\n";
    let mut documents = folder("shop");
    documents.extend(yaml::parse("slip.yaml", slip).expect("YAML"));
    let found = findings(documents);
    let codes: Vec<_> = found
        .iter()
        .filter(|m| m.reference.as_deref().is_some_and(|r| r.starts_with("slip.yaml:")))
        .map(|m| m.code.code)
        .collect();
    assert_eq!(codes, ["IST0101", "IST0127", "ML0205"], "{found:#?}");
}
