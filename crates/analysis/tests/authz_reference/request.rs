//! Sections 6 and 8 to 10: texts, operations, headers and paths.

use serde_json::{Value, json};

use super::{all_as_expected, decided};

fn method(method: &str) -> Value {
    json!({"method": method})
}

fn path(path: &str) -> Value {
    json!({"path": path})
}

fn host(host: &str) -> Value {
    json!({"host": host})
}

#[test]
fn section_6_forms_of_a_text() {
    all_as_expected(&[
        ("to: [{operation: {methods: [\"*\"]}}]", method("PATCH"), true),
        ("to: [{operation: {methods: [\"P*\"]}}]", method("PUT"), true),
        ("to: [{operation: {methods: [\"P*\"]}}]", method("GET"), false),
        ("to: [{operation: {methods: [\"P*\"]}}]", method("P"), true),
        ("to: [{operation: {methods: [\"*T\"]}}]", method("PUT"), true),
        ("to: [{operation: {methods: [get]}}]", method("GET"), false),
        ("to: [{operation: {paths: [\"*\"]}}]", path("/"), true),
        ("to: [{operation: {paths: [\"/a*b\"]}}]", path("/axb"), false),
        ("to: [{operation: {paths: [\"/a*b\"]}}]", path("/a*b"), true),
        // What ends with `abc*`, the star taken as it is.
        (
            "when: [{key: \"request.headers[x]\", values: [\"*abc*\"]}]",
            json!({"headers": {"x": "1abc*"}}),
            true,
        ),
        (
            "when: [{key: \"request.headers[x]\", values: [\"*abc*\"]}]",
            json!({"headers": {"x": "1abc2"}}),
            false,
        ),
        ("to: [{operation: {hosts: [\"a.b\"]}}]", host("axb"), false),
        ("to: [{operation: {paths: [\"/a.c\"]}}]", path("/abc"), false),
    ]);
}

#[test]
fn section_8_operations() {
    all_as_expected(&[
        ("to: [{operation: {hosts: [\"shop.example*\"]}}]", host("shop.example"), true),
        ("to: [{operation: {hosts: [\"shop.example*\"]}}]", host("shop.example:8080"), true),
        ("to: [{operation: {hosts: [\"shop.example*\"]}}]", host("shop.example.evil"), true),
        ("to: [{operation: {hosts: [h, \"h:*\"]}}]", host("h:8443"), true),
        ("to: [{operation: {hosts: [h, \"h:*\"]}}]", host("h.evil"), false),
        ("to: [{operation: {hosts: [\"*\"]}}]", host("any"), true),
        ("to: [{operation: {hosts: [\"*\"]}}]", json!({}), false),
        ("to: [{operation: {ports: [\"8080\"]}}]", json!({"destination_port": 8080}), true),
        ("to: [{operation: {ports: [\"80\"]}}]", json!({"destination_port": 8080}), false),
        (
            "to: [{operation: {methods: [POST], paths: [\"/pkg.Service/*\"]}}]",
            json!({"method": "POST", "path": "/pkg.Service/Call"}),
            true,
        ),
        (
            "to: [{operation: {paths: [\"/pkg.Service/*\"]}}]",
            json!({"method": "POST", "path": "/pkg.Services/Call"}),
            false,
        ),
    ]);
}

#[test]
fn section_9_headers() {
    let headers = |lines: Value| json!({"headers": lines});
    let tier = |values: &str| format!("when: [{{key: \"request.headers[x-c]\", {values}}}]");
    let (exact, folded, presence) = (tier("values: [a]"), tier("values: [\"a,b\"]"), tier("values: [\"*\"]"));
    let accept = |value: &str| format!("when: [{{key: \"request.headers[accept]\", values: [\"{value}\"]}}]");
    let (accept_one, accept_both) = (accept("a"), accept("a,b"));
    all_as_expected(&[
        (&presence, headers(json!({"x-c": ""})), true),
        (&presence, headers(json!({})), false),
        (&exact, headers(json!({"X-C": "a,b"})), false),
        (&folded, headers(json!({"X-C": "a,b"})), true),
        (&exact, headers(json!({"x-c": "A"})), false),
        (&accept_one, headers(json!({"Accept": ["a", "b"]})), false),
        (&accept_both, headers(json!({"Accept": ["a", "b"]})), true),
        ("when: [{key: \"request.headers[:method]\", values: [GET]}]", method("GET"), true),
        ("when: [{key: \"request.headers[:path]\", values: [\"/a?x=1\"]}]", path("/a?x=1"), true),
        ("when: [{key: \"request.headers[host]\", values: [h]}]", host("h"), true),
        ("when: [{key: \"request.headers[host]\", values: [h]}]", host("H"), false),
        ("when: [{key: \"request.headers[:authority]\", values: [h]}]", host("h"), true),
    ]);
}

#[test]
fn section_10_paths_are_compared_without_their_query() {
    all_as_expected(&[
        ("to: [{operation: {paths: [/api]}}]", path("/api?x=/admin"), true),
        ("to: [{operation: {paths: [/api]}}]", path("/api/"), false),
        ("to: [{operation: {paths: [/api]}}]", path("/API"), false),
        ("to: [{operation: {paths: [/api]}}]", path("/api%2F"), false),
        ("to: [{operation: {paths: [\"/info*\"]}}]", path("/info"), true),
        ("to: [{operation: {paths: [\"/info*\"]}}]", path("/information"), true),
        ("to: [{operation: {paths: [\"/info*\"]}}]", path("/info/x"), true),
        // Normalized already (BASE), a path never has dots for segments.
        ("to: [{operation: {paths: [\"/a/../b\"]}}]", path("/b"), false),
    ]);
    let deny = "{action: DENY, rules: [{to: [{operation: {paths: [\"/admin*\"]}}]}]}";
    for (asked, allowed) in
        [("/admin", false), ("/administrator", false), ("//admin", true), ("/%2fadmin", true)]
    {
        assert_eq!(decided(deny, path(asked)).allowed, allowed, "{asked}");
    }
}
