//! Paths: their normal form, and the templates that match them.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

use maille_config::istio::{AuthorizationPolicySpec, Operation, Rule, To};
use maille_policy::path::{Normalization, normalize as normal_form};
use maille_policy::{Authorization, ConnectionAttributes, NoHeaders, RequestAttributes};

use crate::bytes::line_and_rest;
use crate::decide::{compare, trust};

/// The input is a request target. A normal form holds nothing that an application could still resolve.
pub(crate) fn normalize(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for mode in [
        Normalization::None,
        Normalization::Base,
        Normalization::MergeSlashes,
        Normalization::DecodeAndMergeSlashes,
    ] {
        let Ok(normal) = normal_form(mode, text) else { continue };
        assert!(
            !normal.bytes().any(|b| b <= b' ' || b == b'#' || b == 0x7f),
            "{mode:?} {text:?}: {normal:?}"
        );
        if mode == Normalization::None {
            assert!(matches!(normal, Cow::Borrowed(same) if same == text), "{text:?}: {normal:?}");
            continue;
        }
        if text.is_empty() || text == "*" {
            continue;
        }
        let (path, query) =
            normal.split_once('?').map_or((&*normal, None), |(path, query)| (path, Some(query)));
        assert_eq!(query, text.split_once('?').map(|(_, query)| query), "{mode:?} {text:?}: {normal:?}");
        assert!(path.starts_with('/'), "{mode:?} {text:?}: {normal:?}");
        assert!(path.is_ascii() && !path.contains('\\'), "{mode:?} {text:?}: {normal:?}");
        assert!(!path.contains("%00"), "{mode:?} {text:?}: {normal:?}");
        assert!(path.split('/').all(|s| !matches!(s, "." | "..")), "{mode:?} {text:?}: {normal:?}");
        if mode != Normalization::Base {
            assert!(path == "//" || !path.contains("//"), "{mode:?} {text:?}: {normal:?}");
        }
    }
}

/// The first line is a value of `paths`, the rest a path.
pub(crate) fn template(input: &[u8]) {
    let (value, path) = line_and_rest(input);
    let operation = Operation { paths: vec![value], ..Operation::default() };
    let spec = AuthorizationPolicySpec {
        rules: vec![Rule { to: vec![To { operation: Some(operation) }], ..Rule::default() }],
        ..AuthorizationPolicySpec::default()
    };
    let policy = Authorization { namespace: "a".to_owned(), name: "p".to_owned(), dry_run: false, spec };
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let connection = ConnectionAttributes {
        identity: None,
        source_ip: address,
        remote_ip: address,
        destination_ip: address,
        destination_port: 80,
        sni: None,
    };
    let request = RequestAttributes {
        method: "GET",
        host: "h",
        path: &path,
        remote_ip: None,
        headers: &NoHeaders,
        claims: None,
    };
    compare(&[policy], &trust(), &connection, &request);
}
