//! No text makes loading panic: files that are right, with lines left out, repeated, moved and spoilt.

use std::path::Path;

use maille_config::{load, yaml};
use proptest::prelude::*;

/// Everything that a policy, an issuer or the mesh can be told.
const EVERYTHING: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: p
  namespace: shop
  annotations: {istio.io/dry-run: "true"}
spec:
  selector: &app
    matchLabels: {app: web}
  action: DENY
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/a/sa/*"]
        requestPrincipals: ["https://idp/*"]
        notIpBlocks: [10.0.0.0/8, "2001:db8::/32"]
        trustDomains: ["*.eu"]
    - source: {serviceAccounts: [a, b/c]}
    to:
    - operation: {hosts: ["a.b"], methods: [GET], paths: ["/v1/{*}/x/{**}", "/a*"], ports: ["8080"]}
    when:
    - key: request.auth.claims[realm][roles]
      values: [a]
      notValues: ["*b"]
    - {key: "request.headers[x-tier]", values: [gold]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: q}
spec:
  targetRefs:
  - {group: gateway.networking.k8s.io, kind: Gateway, name: edge}
  action: CUSTOM
  provider: {name: doorman}
  rules: [{}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: r, namespace: shop}
spec:
  selector: *app
  jwtRules:
  - issuer: https://idp
    audiences: [shop]
    jwks: |
      {"keys": [{"kty": "RSA", "n": "AAAA", "e": "AQAB", "d": "AAAA"}]}
    fromHeaders: [{name: x-token, prefix: "Token "}]
    fromParams: [token]
    fromCookies: [session]
    forwardOriginalToken: true
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{header: x-user, claim: sub}]
    timeout: 1m30.5s
    spaceDelimitedClaims: [roles]
  - jwksUri: https://[::1]:8443/keys
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    rootNamespace: istio-system
    trustDomainAliases: [td-old]
    defaultConfig:
      discoveryAddress: istiod.istio-system.svc:15012
    extensionProviders:
    - name: doorman
      envoyExtAuthzHttp:
        service: auth/doorman.auth.svc.cluster.local
        port: 8000
        includeRequestBodyInCheck: {maxRequestBytes: 1024}
        headersToUpstreamOnAllow: [x-*]
  meshNetworks: "networks: {}"
"#;

/// What lines are spoilt with.
const SPOILERS: &[&str] = &[
    ":", ": ", "- ", "  ", "\t", "[", "]", "{", "}", "\"", "'", "|", ">", "&a ", "*a", "<<: *app", "null",
    "~", "0", "-1", "1e999", "yes", "é", "\u{0}", "\u{feff}", "---", "...", "# ", "!!int ", "*", "{*}",
    "{**}", "/", "%", "[a]", "[]", ",",
];

#[derive(Debug, Clone)]
enum Edit {
    Remove(usize),
    Repeat(usize, usize),
    Insert(usize, usize, &'static str),
    Cut(usize, usize),
    Indent(usize, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = 0usize..400;
    let edit = prop_oneof![
        at.clone().prop_map(Edit::Remove),
        (at.clone(), at.clone()).prop_map(|(from, to)| Edit::Repeat(from, to)),
        (at.clone(), 0usize..80, prop::sample::select(SPOILERS)).prop_map(|(l, c, s)| Edit::Insert(l, c, s)),
        (at.clone(), 0usize..80).prop_map(|(line, column)| Edit::Cut(line, column)),
        (at, 0usize..12).prop_map(|(line, blanks)| Edit::Indent(line, blanks)),
    ];
    prop::collection::vec(edit, 1..6)
}

/// The byte of a line at which the character after `column` others begins.
fn byte_at(line: &str, column: usize) -> usize {
    let column = column % (line.chars().count() + 1);
    line.char_indices().nth(column).map_or(line.len(), |(at, _)| at)
}

fn edited(text: &str, edits: &[Edit]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for edit in edits {
        let count = lines.len().max(1);
        match *edit {
            Edit::Remove(line) => {
                if line % count < lines.len() {
                    lines.remove(line % count);
                }
            }
            Edit::Repeat(from, to) => {
                if let Some(line) = lines.get(from % count).cloned() {
                    lines.insert(to % count, line);
                }
            }
            Edit::Insert(line, column, what) => {
                if let Some(line) = lines.get_mut(line % count) {
                    line.insert_str(byte_at(line, column), what);
                }
            }
            Edit::Cut(line, column) => {
                if let Some(line) = lines.get_mut(line % count) {
                    line.truncate(byte_at(line, column));
                }
            }
            Edit::Indent(line, blanks) => {
                if let Some(line) = lines.get_mut(line % count) {
                    *line = " ".repeat(blanks) + line.trim_start();
                }
            }
        }
    }
    lines.join("\n")
}

/// The text above, and the files that people are shown.
fn originals() -> Vec<String> {
    let mut all = vec![EVERYTHING.to_owned()];
    for folder in ["shop", "policy"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(folder);
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        let yaml = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "yaml"));
        all.extend(yaml.filter_map(|path| std::fs::read_to_string(path).ok()));
    }
    assert!(all.len() > 3, "the examples are part of it");
    all
}

#[test]
fn what_is_spoilt_here_is_right_as_it_stands() {
    for text in originals() {
        // An anchor belongs to one document.
        let text = text.replace("selector: *app", "selector: {matchLabels: {app: web}}");
        load(&[("a.yaml".to_owned(), text)]).unwrap_or_else(|found| panic!("{found:#?}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_spoilt_file_panics(which in 0usize..64, edits in edits()) {
        let originals = originals();
        let text = edited(&originals[which % originals.len()], &edits);
        let lines = u32::try_from(text.lines().count()).unwrap_or(u32::MAX);
        if let Err(found) = load(&[("a.yaml".to_owned(), text.clone())]) {
            prop_assert!(!found.is_empty());
            for finding in found {
                prop_assert!(finding.line <= lines + 1, "{finding} in {lines} lines");
                prop_assert!(!finding.to_string().is_empty());
            }
        }
        for document in yaml::parse("a.yaml", &text).unwrap_or_default() {
            let _ = (document.warnings(), document.object_name());
        }
        let _ = maille_config::mesh::check(&text);
    }
}
