//! Certificates that are not the mesh's own: credentials of DestinationRules, files mounted into sidecars, webhooks.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::finding::{Finding, Level, Rule, life};
use crate::client::{Api, ApiError};
use crate::commands::ca::asking::Asked;
use crate::commands::ca::described::{described, short};

/// A Secret or a ConfigMap: its plural, namespace and name.
type Object = (&'static str, String, String);

const CONFIG_MAP: &str = "configmap://";

pub(super) async fn findings(asked: &Asked, rule: &Rule) -> Vec<Finding> {
    let api = &asked.api;
    let mut findings = Vec::new();
    // By object, who uses it.
    let mut used: BTreeMap<Object, BTreeSet<String>> = BTreeMap::new();
    match api.get("/apis/networking.istio.io/v1/destinationrules").await {
        Ok(list) => named_by_rules(&list, &mut used),
        Err(error) => not_looked_at("DestinationRules", &error, &mut findings),
    }
    match api.get("/api/v1/pods").await {
        Ok(list) => mounted_by_sidecars(&list, &mut used),
        Err(error) => not_looked_at("Pods", &error, &mut findings),
    }
    for (object, users) in used {
        let (plural, namespace, name) = &object;
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        match api.get(&format!("/api/v1/namespaces/{namespace}/{plural}/{name}")).await {
            Ok(found) => findings.extend(of_object(&found, &object, &users, rule)),
            // Authorities may be in a second Secret, and mostly are not.
            Err(error) if error.is_not_found() && name.ends_with("-cacert") => {}
            Err(error) if error.is_not_found() => findings.push(
                Finding::new(Level::Warning, title(&object), "is not there")
                    .doing(format!("create it, or correct its name in {}", users.join(", "))),
            ),
            Err(error) => not_looked_at(&title(&object), &error, &mut findings),
        }
    }
    findings.extend(webhooks(api, rule).await);
    findings
}

fn not_looked_at(what: &str, error: &ApiError, findings: &mut Vec<Finding>) {
    // A kind that this API does not have has no objects.
    if !error.is_not_found() {
        findings.push(Finding::new(Level::Note, what, format!("not looked at: {error}")));
    }
}

fn title((plural, namespace, name): &Object) -> String {
    let kind = if *plural == "secrets" { "Secret" } else { "ConfigMap" };
    format!("{kind} {namespace}/{name}")
}

/// `credentialName` wherever a rule may have one.
fn named_by_rules(rules: &Value, used: &mut BTreeMap<Object, BTreeSet<String>>) {
    for rule in rules["items"].as_array().into_iter().flatten() {
        let text = |field: &str| rule["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (namespace, own) = (text("namespace"), text("name"));
        let by = format!("DestinationRule {namespace}/{own}");
        let spec = &rule["spec"];
        let subsets = spec["subsets"].as_array().into_iter().flatten().map(|subset| &subset["trafficPolicy"]);
        for policy in subsets.chain([&spec["trafficPolicy"]]) {
            let ports = policy["portLevelSettings"].as_array().into_iter().flatten();
            for settings in ports.chain([policy]) {
                let Some(name) = settings["tls"]["credentialName"].as_str().filter(|name| !name.is_empty())
                else {
                    continue;
                };
                let mut add = |plural: &'static str, name: String| {
                    if maille_core::is_dns_subdomain(&name) {
                        used.entry((plural, namespace.clone(), name)).or_default().insert(by.clone());
                    }
                };
                match name.strip_prefix(CONFIG_MAP) {
                    Some(name) => add("configmaps", name.to_owned()),
                    None => {
                        add("secrets", name.to_owned());
                        add("secrets", format!("{name}-cacert"));
                    }
                }
            }
        }
    }
}

/// Secrets and ConfigMaps that Pods mount into their sidecars (annotation `sidecar.istio.io/userVolume`).
fn mounted_by_sidecars(pods: &Value, used: &mut BTreeMap<Object, BTreeSet<String>>) {
    for pod in pods["items"].as_array().into_iter().flatten() {
        let metadata = &pod["metadata"];
        let Some(text) = metadata["annotations"]["sidecar.istio.io/userVolume"].as_str() else { continue };
        let Ok(volumes) = serde_json::from_str::<Value>(text) else { continue };
        // A map of volumes by name, or a list of them.
        let volumes: Vec<&Value> = match &volumes {
            Value::Object(by_name) => by_name.values().collect(),
            Value::Array(list) => list.iter().collect(),
            _ => continue,
        };
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
        for volume in volumes {
            let named = [
                ("secrets", volume["secret"]["secretName"].as_str()),
                ("configmaps", volume["configMap"]["name"].as_str()),
            ];
            for (plural, name) in named {
                if let Some(name) = name.filter(|name| maille_core::is_dns_subdomain(name)) {
                    let by = format!("sidecars of ServiceAccount {namespace}/{account}");
                    used.entry((plural, namespace.to_owned(), name.to_owned())).or_default().insert(by);
                }
            }
        }
    }
}

/// Every certificate in it. Keys are not looked at.
fn of_object(found: &Value, object: &Object, users: &[&str], rule: &Rule) -> Vec<Finding> {
    let is_secret = object.0 == "secrets";
    let mut findings = Vec::new();
    for (key, value) in found["data"].as_object().into_iter().flatten() {
        let text = match (value.as_str(), is_secret) {
            (Some(text), true) => STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok()),
            (Some(text), false) => Some(text.to_owned()),
            (None, _) => None,
        };
        let Some(text) = text.filter(|text| text.contains("-----BEGIN CERTIFICATE-----")) else { continue };
        let what = format!("{} {key}", title(object));
        match described("certificate", &text) {
            Ok(certificates) => findings.extend(certificates.iter().map(|(_, shown)| {
                let what = format!("{what} {}", short(&shown.fingerprint));
                let action = format!("renew it; it is used by {}", users.join(", "));
                rule.by_people(what, life(shown), action)
            })),
            Err(error) => findings.push(Finding::new(Level::Error, what, error.to_string())),
        }
    }
    findings
}

/// What the API server verifies the mesh's webhooks by.
async fn webhooks(api: &Api, rule: &Rule) -> Vec<Finding> {
    let mut findings = Vec::new();
    for kind in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        match api.get(&format!("/apis/admissionregistration.k8s.io/v1/{kind}")).await {
            Ok(list) => findings.extend(of_webhooks(&list, rule)),
            Err(error) => not_looked_at(kind, &error, &mut findings),
        }
    }
    findings
}

fn of_webhooks(list: &Value, rule: &Rule) -> Vec<Finding> {
    let mut findings = Vec::new();
    for configuration in list["items"].as_array().into_iter().flatten() {
        let name = configuration["metadata"]["name"].as_str().unwrap_or_default();
        for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
            let service = &webhook["clientConfig"]["service"];
            let is_ours = service["name"].as_str().is_some_and(|service| service.starts_with("istiod"));
            let bundle =
                webhook["clientConfig"]["caBundle"].as_str().and_then(|text| STANDARD.decode(text).ok());
            let bundle =
                bundle.and_then(|bytes| String::from_utf8(bytes).ok()).filter(|pem| !pem.trim().is_empty());
            let what = format!("webhook {name} {}", webhook["name"].as_str().unwrap_or_default());
            let Some(pem) = bundle.filter(|_| is_ours) else { continue };
            match described("caBundle", &pem) {
                Ok(found) => findings.extend(found.iter().map(|(_, shown)| {
                    rule.by_people(
                        what.clone(),
                        life(shown),
                        "the control plane writes it: its log says why it does not",
                    )
                })),
                Err(error) => findings.push(Finding::new(Level::Error, what, error.to_string())),
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use maille_core::TrustDomain;
    use maille_pki::Authority;
    use serde_json::json;

    use super::*;

    fn ending_in(days: u64) -> String {
        let domain = TrustDomain::parse("other.example").expect("a domain");
        let life = Duration::from_secs(days * 86_400);
        Authority::self_signed(&domain, SystemTime::now(), life).expect("made").cert_pem()
    }

    #[test]
    fn everything_that_rules_and_sidecars_name_is_found() {
        let rules = json!({"items": [{"metadata": {"namespace": "shop", "name": "api"}, "spec": {
            "trafficPolicy": {
                "tls": {"credentialName": "client"},
                "portLevelSettings": [{"tls": {"credentialName": "configmap://roots"}}]
            },
            "subsets": [{"trafficPolicy": {"tls": {"credentialName": "sub"}}}, {"name": "plain"}]
        }}]});
        let pods = json!({"items": [{
            "metadata": {"namespace": "shop", "annotations": {
                "sidecar.istio.io/userVolume": r#"{"certs":{"secret":{"secretName":"files"}}}"#
            }},
            "spec": {"serviceAccountName": "pay"}
        }]});
        let mut used = BTreeMap::new();
        named_by_rules(&rules, &mut used);
        mounted_by_sidecars(&pods, &mut used);
        let named: Vec<String> = used.keys().map(title).collect();
        assert_eq!(
            named,
            [
                "ConfigMap shop/roots",
                "Secret shop/client",
                "Secret shop/client-cacert",
                "Secret shop/files",
                "Secret shop/sub",
                "Secret shop/sub-cacert"
            ]
        );
    }

    #[test]
    fn certificates_in_a_secret_are_judged_and_its_keys_left_alone() {
        let object: Object = ("secrets", "shop".to_owned(), "client".to_owned());
        let secret = json!({"data": {
            "tls.crt": STANDARD.encode(ending_in(10) + &ending_in(100)),
            "tls.key": STANDARD.encode("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        }});
        let found =
            of_object(&secret, &object, &["DestinationRule shop/api"], &Rule::new(SystemTime::now(), 30));
        assert_eq!(found.iter().map(|f| f.level).collect::<Vec<_>>(), [Level::Warning, Level::Ok]);
        assert!(found[0].what.starts_with("Secret shop/client tls.crt "), "{found:?}");
        assert!(found[0].action.as_deref().is_some_and(|action| action.contains("shop/api")), "{found:?}");
    }

    #[test]
    fn only_the_meshs_own_webhooks_are_judged() {
        let webhook = |service: &str| json!({"name": "x", "clientConfig": {"service": {"name": service}, "caBundle": STANDARD.encode(ending_in(5))}});
        let list = json!({"items": [{"metadata": {"name": "w"}, "webhooks": [webhook("istiod"), webhook("other")]}]});
        let found = of_webhooks(&list, &Rule::new(SystemTime::now(), 30));
        assert_eq!(found.iter().map(|f| f.level).collect::<Vec<_>>(), [Level::Warning]);
    }
}
