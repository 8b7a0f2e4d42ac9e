//! What the mesh's configuration among the objects says to the analyzers.

use maille_analysis::{Resource, Settings};
use maille_config::yaml;

fn settings(mesh: &str, namespace: &str) -> Settings {
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: {namespace}}}\ndata:\n  mesh: |\n    {mesh}\n"
    );
    let documents = yaml::parse("mesh.yaml", &text).expect("YAML");
    let resources: Vec<Resource> =
        documents.into_iter().map(|document| Resource::of_file(document, "default")).collect();
    Settings::default().configured(&resources)
}

#[test]
fn root_namespace_and_trust_domain_are_the_configured_ones() {
    let found = settings("{rootNamespace: policies, trustDomain: corp.example}", "istio-system");
    assert_eq!((found.root_namespace.as_str(), found.trust_domain.as_str()), ("policies", "corp.example"));
}

#[test]
fn a_wrong_configuration_and_another_control_planes_change_nothing() {
    for (mesh, namespace) in [
        ("{rootNamespace: policies, trustDomian: corp.example}", "istio-system"),
        ("{rootNamespace: policies}", "elsewhere"),
        ("{}", "istio-system"),
    ] {
        assert_eq!(settings(mesh, namespace), Settings::default(), "{mesh} in {namespace}");
    }
}
