//! Sections 10.2 and 10.3: templates, and paths as policy sees them.

use maille_config::istio::Action;
use maille_policy::path::Normalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
use maille_policy::path::{Normalization, PathError, normalize};

use crate::support::{check, decide, with_rule};

#[test]
fn section_10_2_templates() {
    for (template, path, expected) in [
        ("/v1/{*}/items", "/v1/a/items", true),
        ("/v1/{*}/items", "/v1/a/b/items", false),
        ("/v1/{*}/items", "/v1//items", false),
        ("/v1/{*}", "/v1/", false),
        ("/v1/{*}", "/v1/a/", false),
        ("/v1/{**}", "/v1/", true),
        ("/v1/{**}", "/v1/a/b/c", true),
        ("/v1/{**}", "/v1", false),
        ("/v1/{**}/end", "/v1/a/b/end", true),
        ("/v1/{**}/end", "/v1//end", true),
        ("/v1/{**}/end", "/v1/end", false),
        ("/v1/{*}/x/{**}", "/v1/q/x/", true),
        ("/v1/{*}", "/v1/a*b", true),
        ("/v1/{*}", "/v1/a[b", false),
        ("/v1/{*}", "/v1/a%20b?x=/y", true),
    ] {
        let rule = format!("to: [{{operation: {{paths: ['{template}']}}}}]");
        let call = format!("{{path: '{path}'}}");
        check(&[(&rule, &call, expected)]);
    }
    for character in "-._~%!$&()*+,;:@=aZ9".chars() {
        let call = format!("{{path: '/v1/{character}'}}");
        check(&[("to: [{operation: {paths: ['/v1/{*}']}}]", &call, true)]);
    }
    for character in "\"<>[\\]^`{|}".chars() {
        let call = format!("{{path: '/v1/{character}'}}");
        check(&[
            ("to: [{operation: {paths: ['/v1/{*}']}}]", &call, false),
            ("to: [{operation: {paths: ['/v1/{**}']}}]", &call, false),
        ]);
    }
}

fn normal(mode: Normalization, path: &str) -> String {
    normalize(mode, path).expect(path).into_owned()
}

#[test]
fn section_10_3_modes() {
    let inputs = ["/a/../b", "/a//b", "/a%2fb", "/a\\b", "/%61"];
    for (mode, expected) in [
        (None, inputs),
        (Base, ["/b", "/a//b", "/a%2fb", "/a/b", "/a"]),
        (MergeSlashes, ["/b", "/a/b", "/a%2fb", "/a/b", "/a"]),
        (DecodeAndMergeSlashes, ["/b", "/a/b", "/a/b", "/a/b", "/a"]),
    ] {
        for (input, expected) in inputs.iter().zip(expected) {
            assert_eq!(normal(mode, input), expected, "{mode:?} {input}");
        }
    }
    for (input, merged) in [("//a/", "/a/"), ("///", "//"), ("//", "//"), ("/a//", "/a/"), ("/", "/")] {
        assert_eq!(normal(MergeSlashes, input), merged, "{input}");
    }
    assert_eq!(normal(DecodeAndMergeSlashes, "/a%2F%5cb%5C"), "/a/b/");
}

/// Step and what it does to which path, under BASE.
#[test]
fn section_10_3_steps() {
    for (step, input, expected) in [
        (1, "/x/..;p=1/y", "/y"),
        (1, "/x/.;p/y", "/x/y"),
        (1, "/x/%2e%2e;p/y", "/x/..;p/y"),
        (1, "/a;x=1", "/a;x=1"),
        (2, "/%7Ea", "/~a"),
        (2, "/x/%2e%2e/y", "/y"),
        (2, "/a%3ab", "/a%3ab"),
        (2, "/%zz", "/%zz"),
        (2, "/a%", "/a%"),
        (3, "/a\\b", "/a/b"),
        (4, "/../x", "/x"),
        (4, "/..", "/"),
        (4, "/a/..", "/"),
        (4, "/a/.", "/a/"),
        (4, "/a//../b", "/a/b"),
        (5, "/a|b", "/a%7Cb"),
        (5, "/\"<>^`{}", "/%22%3C%3E%5E%60%7B%7D"),
    ] {
        assert_eq!(normal(Base, input), expected, "step {step}: {input}");
    }
    assert_eq!(normalize(Base, "/a%00"), Err(PathError::Zero), "step 6");
    for mode in [None, Base, MergeSlashes, DecodeAndMergeSlashes] {
        for bad in ["/a b", "/a#b"] {
            assert_eq!(normalize(mode, bad), Err(PathError::Character), "step 6: {mode:?} {bad}");
        }
    }
    assert_eq!(normal(Base, "/a/../b?x=/../%61|"), "/b?x=/../%61|", "queries are never touched");
}

/// The last paragraph: what is judged is what was normalized.
#[test]
fn section_10_3_what_a_deny_of_admin_sees() {
    let deny = [with_rule(Action::Deny, "to: [{operation: {paths: ['/admin*']}}]")];
    for (mode, path, denied) in [
        (None, "/x/../admin", false),
        (Base, "/x/../admin", true),
        (Base, "//admin", false),
        (MergeSlashes, "//admin", true),
        (Base, "/%2fadmin", false),
        (MergeSlashes, "/%2fadmin", false),
        (DecodeAndMergeSlashes, "/%2fadmin", true),
    ] {
        let call = format!("{{path: '{}'}}", normal(mode, path));
        assert_eq!(!decide(&deny, &call).allowed, denied, "{mode:?} {path}");
    }
    let never = [with_rule(Action::Deny, "to: [{operation: {paths: ['/a/../b']}}]")];
    for path in ["/a/../b", "/b"] {
        let call = format!("{{path: '{}'}}", normal(Base, path));
        assert!(decide(&never, &call).allowed, "a policy's value is never normalized: {path}");
    }
}
