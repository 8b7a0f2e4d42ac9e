//! Files as people write them: bad YAML of ten kinds is refused with kind, name, line, column, field and what would be
//! right, and nothing of the set is loaded; the examples are loaded whole.

use maille_config::{Diagnostic, load};

/// A good document, a bad one, and another good one.
fn refused(bad: &str) -> Vec<Diagnostic> {
    let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let sources =
        [("good.yaml".to_owned(), good.to_owned()), ("bad.yaml".to_owned(), format!("{good}---\n{bad}"))];
    load(&sources).expect_err("one bad document refuses the set")
}

/// The only finding, printed as people see it.
fn the_finding(bad: &str) -> String {
    let found = refused(bad);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.iter().map(ToString::to_string).collect()
}

/// Lines of the bad document begin at 5.
fn policy(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata:\n  name: rules\n  namespace: shop\nspec:\n{spec}"
    )
}

#[test]
fn unknown_field() {
    assert_eq!(
        the_finding(&policy("PeerAuthentication", "  mtl:\n    mode: STRICT\n")),
        "bad.yaml:11:3: error[ML0103]: PeerAuthentication shop/rules: spec.mtl: unknown field 'mtl'\n  \
         help: did you mean 'mtls'?"
    );
}

#[test]
fn wrong_type() {
    assert_eq!(
        the_finding(&policy(
            "AuthorizationPolicy",
            "  rules:\n  - to:\n    - operation:\n        ports: [8080]\n"
        )),
        "bad.yaml:14:17: error[ML0104]: AuthorizationPolicy shop/rules: spec.rules[0].to[0].operation.ports[0]: \
         expected a string, found the number 8080\n  help: put it in quotes: \"8080\""
    );
}

#[test]
fn bad_enum() {
    assert_eq!(
        the_finding(&policy("PeerAuthentication", "  mtls: {mode: strict}\n")),
        "bad.yaml:11:16: error[ML0105]: PeerAuthentication shop/rules: spec.mtls.mode: the string \"strict\" is none \
         of UNSET, DISABLE, PERMISSIVE, STRICT\n  help: did you mean STRICT?"
    );
}

#[test]
fn deny_without_rules() {
    assert_eq!(
        the_finding(&policy("AuthorizationPolicy", "  action: DENY\n")),
        "bad.yaml:10:1: error[ML0107]: AuthorizationPolicy shop/rules: spec.rules: a DENY policy without rules never \
         matches\n  help: to deny everything write 'rules: [{}]'"
    );
}

#[test]
fn port_level_mtls_without_selector() {
    assert_eq!(
        the_finding(&policy("PeerAuthentication", "  portLevelMtls:\n    8080: {mode: DISABLE}\n")),
        "bad.yaml:11:3: error[ML0106]: PeerAuthentication shop/rules: spec.portLevelMtls: ports can have modes of \
         their own only in a policy with a selector\n  help: add spec.selector.matchLabels with the labels of the \
         workload"
    );
}

#[test]
fn bad_cidr() {
    let spec = "  rules:\n  - from:\n    - source:\n        ipBlocks:\n        - 10.0.0.0/8\n        - 10.0.0.0/33\n";
    assert_eq!(
        the_finding(&policy("AuthorizationPolicy", spec)),
        "bad.yaml:16:11: error[ML0106]: AuthorizationPolicy shop/rules: spec.rules[0].from[0].source.ipBlocks[1]: \
         '10.0.0.0/33' is no CIDR block: the prefix length '33' is not 0 to 32 without leading zeros\n  \
         help: for example 10.0.0.0/8 or 2001:db8::/32"
    );
}

#[test]
fn bad_port() {
    assert_eq!(
        the_finding(&policy("AuthorizationPolicy", "  rules:\n  - to:\n    - operation: {ports: [http]}\n")),
        "bad.yaml:13:27: error[ML0106]: AuthorizationPolicy shop/rules: spec.rules[0].to[0].operation.ports[0]: \
         'http' is no port\n  help: the number of a workload port (the container's, not the Service's) from 0 to \
         65535, for example \"8080\""
    );
}

#[test]
fn what_nothing_enforces() {
    let rule = "apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {name: r, namespace: shop}\n\
                spec:\n  host: cart\n  trafficPolicy:\n    tls: {mode: SIMPLE, credentialName: cart-certs}\n";
    assert_eq!(
        the_finding(rule),
        "bad.yaml:11:41: error[ML0108]: DestinationRule shop/r: spec.trafficPolicy.tls.credentialName: a Secret goes \
         only to workloads that the rule selects; without workloadSelector Istio silently sends plaintext\n  help: add \
         workloadSelector: {matchLabels: …} with the labels of the calling workloads, or name files"
    );
}

#[test]
fn duplicate_key() {
    assert_eq!(
        the_finding(&policy("PeerAuthentication", "  mtls: {mode: STRICT}\n  mtls: {mode: DISABLE}\n")),
        "bad.yaml:12:3: error[ML0102]: PeerAuthentication shop/rules: spec.mtls: is given twice, first in line 11\n  \
         help: remove one of the two; kubectl would silently take the last"
    );
}

#[test]
fn not_yaml() {
    assert_eq!(
        the_finding("kind: [Pod\nmetadata: x\n"),
        "bad.yaml:6:9: error[ML0101]: illegal placement of ':' indicator\n  \
         help: check brackets, quotes and indentation here and just before"
    );
    assert_eq!(
        the_finding("apiVersion: v1\n\tkind: Pod\n"),
        "bad.yaml:6:1: error[ML0101]: a tab cannot indent\n  help: indent with blanks"
    );
    assert_eq!(
        the_finding("Dear mesh, please be strict\n"),
        "bad.yaml:5:1: error[ML0109]: the document is a text, not an object\n  \
         help: begin with apiVersion:, kind: and metadata:"
    );
}

#[test]
fn two_documents_one_bad() {
    let good = policy("PeerAuthentication", "  mtls: {mode: STRICT}\n");
    let bad = policy("AuthorizationPolicy", "  action: ALOW\n");
    let found = the_finding(&format!("{good}---\n{bad}"));
    assert!(
        found.starts_with("bad.yaml:19:11: error[ML0105]: AuthorizationPolicy shop/rules: spec.action: "),
        "{found}"
    );
    assert!(load(&[("good.yaml".to_owned(), good)]).is_ok());
}

#[test]
fn every_mistake_of_every_file_is_listed_in_the_order_of_the_text() {
    let first = policy("PeerAuthentication", "  mtls: {mode: on}\n  oops: 1\n") + "---\na: [\n";
    let second = policy("AuthorizationPolicy", "  action: DENY\n");
    let found = load(&[("z.yaml".to_owned(), first), ("a.yaml".to_owned(), second)]).expect_err("refused");
    let places: Vec<_> = found.iter().map(|d| (d.file.as_str(), d.line, d.code)).collect();
    assert_eq!(
        places,
        [("z.yaml", 7, "ML0105"), ("z.yaml", 8, "ML0103"), ("z.yaml", 10, "ML0101"), ("a.yaml", 6, "ML0107")]
    );
}

#[test]
fn machines_get_every_part_by_name() {
    let found = refused(&policy("PeerAuthentication", "  mtls: {mode: strict}\n"));
    let json = serde_json::to_value(&found).expect("JSON");
    assert_eq!(
        json,
        serde_json::json!([{
            "code": "ML0105",
            "severity": "error",
            "file": "bad.yaml",
            "line": 11,
            "column": 16,
            "object": "PeerAuthentication shop/rules",
            "field": "spec.mtls.mode",
            "message": "the string \"strict\" is none of UNSET, DISABLE, PERMISSIVE, STRICT",
            "help": "did you mean STRICT?",
        }])
    );
}

/// The YAML that people are shown first.
#[test]
fn the_shop_is_all_right() {
    let shop = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop");
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(shop).expect("the shop") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            sources.push((path.display().to_string(), std::fs::read_to_string(&path).expect("text")));
        }
    }
    match load(&sources) {
        Ok(documents) => {
            assert!(documents.len() > 10);
            let warnings: Vec<_> =
                documents.iter().flat_map(|d| d.warnings()).map(|d| d.to_string()).collect();
            assert!(warnings.is_empty(), "{warnings:#?}");
        }
        Err(found) => panic!("{:#?}", found.iter().map(ToString::to_string).collect::<Vec<_>>()),
    }
}
