//! `analyze` and `validate` on files: what they print, and how they end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: shop\nspec:\n  rules:\n  - from:\n    - source:\n        namespaces: [nowhere]\n";

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

/// A folder with files, and the program under the name of istioctl.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
            std::fs::write(path, text).expect("written");
        }
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_maille"), folder.path().join("istioctl"))
            .expect("linked");
        Self { folder }
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("KUBECONFIG")
            .env("HOME", "/nonexistent")
            .env("MAILLE_DATA_DIR", "/nonexistent")
            .stdin(Stdio::null())
            .output()
            .expect("starts")
    }

    fn maille(&self, arguments: &[&str]) -> Output {
        self.run(Path::new(env!("CARGO_BIN_EXE_maille")), arguments)
    }

    fn istioctl(&self, arguments: &[&str]) -> Output {
        let program: PathBuf = self.folder.path().join("istioctl");
        self.run(&program, arguments)
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const FILES: &[&str] = &["analyze", "--use-kube=false", "a.yaml"];

#[test]
fn findings_are_lines_with_code_object_and_place_and_end_with_79() {
    let place = Place::new(&[("a.yaml", POLICY)]);
    let output = place.maille(FILES);
    assert_eq!(output.status.code(), Some(79), "{}", err(&output));
    let first = "Error [IST0101] (AuthorizationPolicy shop/p a.yaml:10) ";
    assert!(out(&output).starts_with(first), "{}", out(&output));
    assert!(!out(&output).contains('\x1b'), "no colour without a terminal");
    let coloured = place.maille(&["analyze", "--use-kube=false", "--color", "a.yaml"]);
    assert!(out(&coloured).starts_with("\x1b[1;31mError\x1b[0m [IST0101]"), "{}", out(&coloured));
}

#[test]
fn json_and_yaml_are_lists_of_findings() {
    let place = Place::new(&[("a.yaml", POLICY)]);
    let output = place.maille(&[FILES, &["-o", "json"]].concat());
    assert_eq!(output.status.code(), Some(79), "{}", err(&output));
    assert!(out(&output).starts_with("[\n\t{\n\t\t\"code\": \"IST0101\""), "tabs: {}", out(&output));
    let list: Value = serde_json::from_str(&out(&output)).expect("JSON");
    assert_eq!(list[0]["level"], "Error");
    assert_eq!(list[0]["origin"], "AuthorizationPolicy shop/p");
    assert_eq!(list[0]["reference"], "a.yaml:10");
    let url = "https://istio.io/latest/docs/reference/config/analysis/ist0101/?ref=istioctl-analyze";
    assert_eq!(list[0]["documentationUrl"], url);
    let yaml = place.maille(&[FILES, &["-o", "yaml"]].concat());
    assert!(out(&yaml).contains("code: IST0101"), "{}", out(&yaml));
}

#[test]
fn exit_codes_follow_thresholds_and_the_name_of_the_program() {
    let place = Place::new(&[("a.yaml", POLICY), ("info.yaml", NAMESPACE), ("bad.yaml", "a: [\n")]);
    let one =
        |file: &'static str, more: &[&'static str]| [&["analyze", "--use-kube=false", file], more].concat();
    for (arguments, maille, istioctl) in [
        (one("a.yaml", &[]), 79, 79),
        (one("a.yaml", &["-o", "json"]), 79, 0),
        (one("a.yaml", &["-o", "yaml"]), 79, 0),
        (one("a.yaml", &["-o", "xml"]), 64, 64),
        (one("a.yaml", &["--output-threshold", "Error"]), 79, 79),
        (one("info.yaml", &[]), 0, 0),
        (one("info.yaml", &["--failure-threshold", "info"]), 79, 79),
        (one("info.yaml", &["--failure-threshold", "Warning"]), 0, 0),
        (one("bad.yaml", &[]), 65, 65),
        (one("bad.yaml", &["--ignore-unknown"]), 0, 0),
        (one("bad.yaml", &["-o", "json"]), 65, 0),
        (one("a.yaml", &["--suppress", "IST0101=AuthorizationPolicy p.shop"]), 0, 0),
        (one("a.yaml", &["--suppress", "IST0101=AuthorizationPolicy *.other"]), 79, 79),
        (one("a.yaml", &["--analyzer", "injection.Analyzer"]), 0, 0),
        (one("a.yaml", &["-n", "other"]), 0, 0),
        (one("a.yaml", &["-n", "shop"]), 79, 79),
    ] {
        let outputs = [place.maille(&arguments), place.istioctl(&arguments)];
        for (output, expected) in outputs.iter().zip([maille, istioctl]) {
            assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {}{}", out(output), err(output));
        }
    }
}

#[test]
fn folders_are_read_through_and_other_files_left_out_aloud() {
    let place = Place::new(&[("d/e/a.yaml", POLICY), ("d/n.yml", NAMESPACE), ("d/readme.txt", "x")]);
    let output = place.maille(&["analyze", "--use-kube=false", "d"]);
    assert!(out(&output).contains("d/e/a.yaml:10"), "{}", out(&output));
    assert!(out(&output).contains("IST0102] (Namespace shop d/n.yml"), "{}", out(&output));
    assert!(err(&output).contains("Skipping file d/readme.txt"), "{}", err(&output));
}

#[test]
fn nothing_found_is_said_on_standard_error() {
    let labelled = NAMESPACE.replace("{name: shop}", "{name: shop, labels: {istio-injection: enabled}}");
    let place = Place::new(&[("a.yaml", &labelled)]);
    let output = place.maille(FILES);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), ""));
    assert!(err(&output).contains("✔ No validation issues found when analyzing a.yaml."), "{}", err(&output));
    let json = place.maille(&[FILES, &["-o", "json"]].concat());
    assert_eq!(out(&json).trim(), "[]");
}

#[test]
fn analyzers_are_listed_by_name() {
    let place = Place::new(&[]);
    let listed = out(&place.maille(&["analyze", "-L"]));
    let names: Vec<&str> =
        listed.lines().filter_map(|line| line.strip_prefix("* ")?.strip_suffix(':')).collect();
    assert!(names.is_sorted() && names.len() > 15, "{names:?}");
    assert!(names.contains(&"auth.AuthorizationPoliciesAnalyzer"), "{names:?}");
}

#[test]
fn validate_names_file_line_and_field() {
    let bad = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x, namespace: shop}\nspec:\n  mtls:\n    mode: STRIKT\n";
    let doubtful = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec:\n  ports:\n  - {name: web, port: 80}\n";
    let place = Place::new(&[("bad.yaml", bad), ("good.yaml", NAMESPACE), ("doubtful.yaml", doubtful)]);
    let good = place.maille(&["validate", "-f", "good.yaml"]);
    assert_eq!((good.status.code(), out(&good).as_str()), (Some(0), "\"good.yaml\" is valid\n"));
    let doubtful = place.maille(&["validate", "-f", "doubtful.yaml"]);
    assert_eq!(doubtful.status.code(), Some(0), "{}", err(&doubtful));
    assert!(out(&doubtful).contains("has warnings:\ndoubtful.yaml:6:"), "{}", out(&doubtful));
    let bad = place.maille(&["validate", "-f", "good.yaml", "bad.yaml"]);
    assert_eq!(bad.status.code(), Some(1), "{}", err(&bad));
    assert!(err(&bad).contains("bad.yaml:6:11: error[ML0105]"), "{}", err(&bad));
    let json = place.maille(&["validate", "-f", "bad.yaml", "-o", "json"]);
    let list: Value = serde_json::from_str(&out(&json)).expect("JSON");
    assert_eq!((&list[0]["line"], &list[0]["field"]), (&Value::from(6), &Value::from("spec.mtls.mode")));
}

#[test]
fn objects_of_other_peoples_kinds_pass_validation() {
    let other = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: a}\n";
    let place = Place::new(&[("a.yaml", other)]);
    let output = place.maille(&["validate", "-f", "a.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
}

const TOKENS: &str = "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: idp, namespace: shop}
spec:
  jwtRules:
  - issuer: https://idp
    jwksUri: ftp://idp/keys
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: opa
      envoyExtAuthzGrpc:
        service: opa.auth.svc.cluster.local
        port: 0
";

#[test]
fn token_rules_and_the_meshs_configuration_are_validated_by_line() {
    let place = Place::new(&[("tokens.yaml", TOKENS)]);
    let output = place.maille(&["validate", "-f", "tokens.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    for part in ["tokens.yaml:7:", "jwksUri", "tokens.yaml:18:", "port"] {
        assert!(err(&output).contains(part), "{part}: {}", err(&output));
    }
    let right = TOKENS.replace("ftp://", "https://").replace("port: 0", "port: 9191");
    let place = Place::new(&[("tokens.yaml", &right)]);
    let output = place.maille(&["validate", "-f", "tokens.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let output = place.maille(&["analyze", "--use-kube=false", "tokens.yaml"]);
    assert_ne!(output.status.code(), Some(65), "it can be read: {}{}", out(&output), err(&output));
}
