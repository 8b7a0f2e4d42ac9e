//! What Envoy forwards and refuses under each normalization mode, beside `maille_policy::path::normalize`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use maille_policy::path::{Normalization, PathError, normalize};
use serde_json::{Value, json};

use crate::client::Caller;
use crate::lab::{Lab, cluster, http_manager, router, tcp_address};
use crate::random::Random;
use crate::wire::serve;

const MODES: [(Normalization, u16); 4] = [
    (Normalization::None, 10_000),
    (Normalization::Base, 10_001),
    (Normalization::MergeSlashes, 10_002),
    (Normalization::DecodeAndMergeSlashes, 10_003),
];
const UPSTREAM: u16 = 7000;

/// What hostile paths are made of.
const PIECES: &[&str] = &[
    "/",
    "/",
    "/",
    "//",
    "///",
    ".",
    "..",
    "...",
    "/../",
    "/./",
    "/..;",
    "/.;",
    "/..;p=1/",
    "/.;/",
    ";",
    ";a=b",
    "%2e",
    "%2E",
    "%2e%2e",
    ".%2e",
    "%2e.",
    "%252e",
    "%2f",
    "%2F",
    "%5c",
    "%5C",
    "\\",
    "\\..\\",
    "/..\\",
    "%00",
    "%",
    "%%",
    "%2",
    "%zz",
    "%4",
    "%41",
    "%61",
    "%7e",
    "%7E",
    "%5f",
    "%2d",
    "%30",
    "%3a",
    "%3b",
    "%3f",
    "%23",
    "%25",
    "%c0%af",
    "%c0%ae",
    "%e0%80%af",
    "%c3%a9",
    "%20",
    "%0a",
    "%0d%0a",
    "%7f",
    "%ff",
    "a",
    "b",
    "A",
    "1",
    "admin",
    "ab",
    "cd",
    "f",
    "F",
    "2",
    "~",
    "-",
    "_",
    "!",
    "$",
    "&",
    "'",
    "(",
    ")",
    "*",
    "+",
    ",",
    ":",
    "@",
    "=",
    "[",
    "]",
    "{",
    "}",
    "|",
    "^",
    "`",
    "\"",
    "<",
    ">",
    "?",
    "?a=/../b",
    "#",
];

/// A path that some normalizer might get wrong.
fn hostile(random: &mut Random) -> String {
    let mut path = String::from("/");
    for _ in 0..1 + random.below(9) {
        // Fragments are refused outright, and a query is never touched: few of them.
        let piece = random.pick(PIECES);
        let ends = piece.starts_with('#') || piece.starts_with('?');
        if !ends || random.once_in(6) {
            path.push_str(piece);
        }
    }
    path
}

fn configuration() -> Value {
    let routes = json!([{ "match": { "prefix": "" }, "route": { "cluster": "upstream" } }]);
    let listeners: Vec<Value> = MODES
        .iter()
        .map(|(mode, port)| {
            let mut manager = http_manager(routes.clone(), json!([router()]), Value::Null);
            let settings = &mut manager["typed_config"];
            // Istio, pilot/pkg/networking/core/listener.go: what each mode sets.
            settings["normalize_path"] = (*mode != Normalization::None).into();
            settings["merge_slashes"] =
                matches!(mode, Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes).into();
            settings["path_with_escaped_slashes_action"] = match mode {
                Normalization::DecodeAndMergeSlashes => "UNESCAPE_AND_FORWARD".into(),
                _ => "KEEP_UNCHANGED".into(),
            };
            json!({
                "name": format!("{mode:?}"),
                "address": tcp_address("127.0.0.1", *port),
                "filter_chains": [{ "filters": [manager] }],
            })
        })
        .collect();
    json!({ "static_resources": { "listeners": listeners, "clusters": [cluster("upstream", UPSTREAM)] } })
}

/// Tries `count` paths in every mode.
pub(crate) fn compare(envoy: &Path, count: u64, random: &mut Random) {
    let [.., (_, last)] = MODES;
    let lab = Lab::start(envoy, "paths", tcp(last), &|_| configuration());
    // The upstream says what it was asked for.
    serve(&lab.namespace, UPSTREAM, |seen| {
        let target = seen.start.split(' ').nth(1).unwrap_or_default();
        (200, target.as_bytes().to_vec())
    });
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut differences = Vec::new();
    let mut callers: Vec<_> =
        MODES.iter().map(|(mode, port)| (*mode, Caller::new(&lab, tcp(*port)))).collect();
    for _ in 0..count {
        let path = hostile(random);
        for (mode, caller) in &mut callers {
            let envoy = caller.ask(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
            let ours = normalize(*mode, &path);
            let outcome = match (&ours, envoy.status) {
                (Ok(ours), 200) if ours.as_bytes() == envoy.body => {
                    if *ours == path {
                        "kept by both"
                    } else {
                        "changed alike"
                    }
                }
                (Err(_), 400) => "refused by both",
                // In the parameter of a dot segment, which Envoy strips before it looks: refusing is the safe side.
                (Err(PathError::Zero), 200) if !envoy.text().contains("%00") => "a zero that Envoy strips",
                _ => {
                    differences.push(format!(
                        "{mode:?} {path:?}: Envoy {} {:?}, ours {ours:?}",
                        envoy.status,
                        envoy.text()
                    ));
                    "different"
                }
            };
            *outcomes.entry(format!("{mode:?}: {outcome}")).or_default() += 1;
        }
    }
    println!("Envoy and normalization: {outcomes:#?}");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    for (mode, _) in MODES {
        let mut expected = vec!["kept by both", "refused by both"];
        expected.extend((mode != Normalization::None).then_some("changed alike"));
        for what in expected {
            let count = outcomes.get(&format!("{mode:?}: {what}")).copied().unwrap_or_default();
            assert!(count > 0, "nothing was {what} in mode {mode:?}: {outcomes:?}");
        }
    }
}

fn tcp(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
