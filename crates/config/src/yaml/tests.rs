use serde_json::json;

use super::*;

fn one(text: &str) -> Document {
    let mut documents = parse("a.yaml", text).expect("valid YAML");
    assert_eq!(documents.len(), 1);
    documents.remove(0)
}

/// The first finding of a text: `(line, column, code, message)`.
fn first(text: &str) -> (u32, u32, &'static str, String) {
    let found = parse("a.yaml", text).expect_err("invalid").remove(0);
    (found.line, found.column, found.code, found.message)
}

const POLICY: &str = "\
# comment
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: größe-ok   # über
  annotations: {a.b/c: \"x\"}
spec:
  rules:
  - from:
    - source: {principals: [\"a\", \"b\"]}
    to:
    - operation:
        ports:
        - \"80\"
        - \"x\"
";

#[test]
fn every_field_has_its_place() {
    let document = one(POLICY);
    assert_eq!(document.line, 2);
    let place = |path| (document.key_position(path), document.position(path));
    assert_eq!(place("kind"), (Some((3, 1)), Some((3, 7))));
    assert_eq!(place("metadata.annotations[a.b/c]"), (Some((6, 17)), Some((6, 24))));
    assert_eq!(place("spec.rules[0].from[0].source.principals[1]"), (Some((10, 34)), Some((10, 34))));
    assert_eq!(place("spec.rules[0].to[0].operation.ports[1]"), (Some((15, 11)), Some((15, 11))));
    // What is not there is placed at what is around it.
    assert_eq!(document.position("spec.rules[0].to[0].operation.paths[2]"), Some((12, 7)));
    assert_eq!(document.position("status.x"), None);
    assert_eq!(document.object_name().as_deref(), Some("AuthorizationPolicy größe-ok"));
}

#[test]
fn columns_count_characters() {
    let document = one("{ä: 1, kind: x}");
    assert_eq!(document.key_position("kind"), Some((1, 8)));
}

#[test]
fn documents_are_separated_and_empty_ones_left_out() {
    let text = "---\n# nothing\n---\na: 1\n...\n---\nb: 2\n---\n";
    let documents = parse("a.yaml", text).expect("valid");
    let lines: Vec<_> = documents.iter().map(|d| (d.line, d.value.clone())).collect();
    assert_eq!(lines, [(4, json!({"a": 1})), (7, json!({"b": 2}))]);
    assert_eq!(parse("a.yaml", "").map(|d| d.len()), Ok(0));
    assert_eq!(parse("a.yaml", "# only a comment\n").map(|d| d.len()), Ok(0));
}

#[test]
fn lists_are_flattened() {
    let text = "kind: List\nitems:\n- {kind: A}\n- kind: B\n";
    let documents = parse("a.yaml", text).expect("valid");
    let kinds: Vec<_> = documents.iter().map(|d| (d.line, d.object_name())).collect();
    assert_eq!(kinds, [(3, Some("A".to_owned())), (4, Some("B".to_owned()))]);
    assert_eq!(documents[1].position("kind"), Some((4, 9)));
}

#[test]
fn json_is_yaml() {
    let document = one("{\n  \"a\": [1, \"b\\u00e4\\/\", null],\n\t\"c\": true}\n");
    assert_eq!(document.value, json!({"a": [1, "bä/", null], "c": true}));
}

#[test]
fn anchors_aliases_and_merge_keys() {
    let text = "base: &b {x: 1, w: 2}\nuse: *b\nmerged: {<<: *b, w: 3}\nlist: {<<: [*b, {x: 9, z: 4}]}\n";
    assert_eq!(
        one(text).value,
        json!({
            "base": {"x": 1, "w": 2},
            "use": {"x": 1, "w": 2},
            "merged": {"w": 3, "x": 1},
            "list": {"x": 1, "w": 2, "z": 4},
        })
    );
}

#[test]
fn keys_are_text() {
    assert_eq!(
        one("{8080: a, 1.5: b, true: c, 0x10: d}").value,
        json!({"8080": "a", "1.5": "b", "true": "c", "16": "d"})
    );
    assert_eq!(first("a: 1\non: 2\n").0, 2);
    assert!(first("on: 2\n").3.contains("boolean"));
    assert!(first("{a: 1, null: 2}").3.contains("null"));
    assert!(first("[1]: 2\n").3.contains("text"));
}

#[test]
fn duplicate_keys_name_both_places() {
    let (line, column, code, message) = first("a:\n  b: 1\n  c: 2\n  b: 3\n");
    assert_eq!((line, column, code), (4, 3, "ML0102"));
    assert!(message.contains("line 2"), "{message}");
}

#[test]
fn what_is_no_yaml_is_placed() {
    for (text, line) in [
        ("a: 1\nb: [1, 2\n", 2),
        ("a: 1\n\tb: 2\n", 2),
        ("a: b: c\n", 1),
        ("a: 1\n  b: 2\n", 2),
        ("a: \"x\n", 1),
        ("a: *nowhere\n", 1),
        ("a: &x [*x]\n", 1),
        ("a: .inf\n", 1),
        ("a: !!int x\n", 1),
        ("a: b\n  c # ends it\n  d\n", 2),
    ] {
        let found = first(text);
        assert_eq!((found.0, found.2), (line, "ML0101"), "{text:?}: {found:?}");
    }
    let found = first("just some text\n");
    assert_eq!((found.0, found.2), (1, "ML0109"), "{found:?}");
}

#[test]
fn a_broken_document_does_not_hide_the_next() {
    let found = parse("a.yaml", "a: [\n---\nb: {c: 1, c: 2}\n---\n- x\n").expect_err("invalid");
    let all: Vec<_> = found.iter().map(|d| d.code).collect();
    assert_eq!(all, ["ML0101", "ML0102", "ML0109"], "{found:#?}");
}

#[test]
fn bombs_are_stopped() {
    let (mut laughs, mut merges, mut deep) = (
        "a0: &a0 [lol]\n".to_owned(),
        "m0: &m0 {a: 1, b: 2, c: 3, d: 4}\n".to_owned(),
        "d0: &d0 [x]\n".to_owned(),
    );
    for i in 1..200 {
        let below = i - 1;
        if i < 10 {
            laughs += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{below}"); 9].join(", "));
        }
        merges += &format!("m{i}: &m{i} {{<<: [{}], k{i}: 1}}\n", vec![format!("*m{below}"); 9].join(", "));
        deep += &format!("d{i}: &d{i} [*d{below}]\n");
    }
    for (text, part) in
        [(laughs, "too large"), (merges, "too large"), (deep, "deeper"), ("[".repeat(100_000), "")]
    {
        let found = parse("a.yaml", &text).expect_err("refused");
        assert!(found.iter().any(|d| d.message.contains(part)), "{found:?}");
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,200}") {
        let _ = parse("a", &text);
    }

    #[test]
    fn yaml_like_text_never_panics(text in "([-:\\[\\]{}&*!|>'\"%@,#? \\n\\ta-c0-9.<]|<<: |- |a: |\\*a|&a |---\\n){0,60}") {
        let _ = load(&[("a".to_owned(), text)]);
    }

    #[test]
    fn what_json_prints_reads_back(value in crate::check::arbitrary_json()) {
        let object = json!({"v": value});
        let read = one(&object.to_string());
        proptest::prop_assert_eq!(read.value, object);
    }
}

/// Shapes of YAML that parsers disagree about.
const TRICKY: &str = "\
apiVersion: a.b/v1
kind: C
metadata: {name: d, labels: {x: z}}
literal: |
  a
   b

  c
kept: |+
  a

stripped: |-
  a
indented: |2
    a
folded: >
  a
  b

  c
   d
plain: a b
  c
  d # comment
quoted: \"a\\tb \\
  c\\u00e4\\x41\"
single: 'it''s # no comment'
colon: a:b
url: http://a.b/c#d
flow: {a: [1, 2, {b: c}], d: , \"e\": f}
list:
- a
-   - b
    - c
- d: e
  f: g
-
base: &b {p: 1, q: [x]}
copy: *b
merged: {<<: *b, p: 2}
empty:
tilde: ~
? complex
: value
";

#[test]
fn kubectl_reads_the_same() {
    let file = std::env::temp_dir().join(format!("maille-tricky-{}.yaml", std::process::id()));
    std::fs::write(&file, TRICKY).expect("a file");
    let ran = std::process::Command::new("kubectl")
        .args(["label", "--local", "--overwrite", "-o", "json", "x=z", "-f"])
        .arg(&file)
        .output();
    let _ = std::fs::remove_file(&file);
    let Ok(output) = ran else {
        eprintln!("SKIPPED (needs kubectl): comparison of YAML with kubectl");
        return;
    };
    let theirs: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        panic!("kubectl: {e}: {}", String::from_utf8_lossy(&output.stderr));
    });
    let ours = one(TRICKY).value;
    for (key, value) in theirs.as_object().expect("an object") {
        assert_eq!(ours.get(key), Some(value), "{key}");
    }
    assert_eq!(ours.as_object().map(Map::len), theirs.as_object().map(Map::len));
}
