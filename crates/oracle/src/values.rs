//! Values about peers, addresses and ports (reference authorization 12 and 13).

use std::net::IpAddr;

use maille_core::Identity;
use maille_policy::TrustContext;

use crate::glob::{Token, anything, literal, matches, something};

/// 12.1, with the expansion of 12.5.
pub(crate) fn fits_principal(value: &str, peer: Option<&Identity>, trust: &TrustContext) -> bool {
    let Some(san) = peer.map(Identity::uri) else { return false };
    expansions(value, trust).iter().any(|value| {
        if value == "*" {
            true
        } else if let Some(end) = value.strip_prefix('*') {
            san.starts_with("spiffe://") && san.ends_with(end)
        } else if let Some(start) = value.strip_suffix('*') {
            san.starts_with(&format!("spiffe://{start}"))
        } else {
            san == format!("spiffe://{value}")
        }
    })
}

fn own_domains(trust: &TrustContext) -> Vec<String> {
    std::iter::once(&trust.trust_domain).chain(&trust.aliases).map(ToString::to_string).collect()
}

fn expansions(value: &str, trust: &TrustContext) -> Vec<String> {
    let unchanged = vec![value.to_owned()];
    let parts: Vec<&str> = value.split('/').collect();
    let [domain, a, b, c, d] = parts.as_slice() else { return unchanged };
    if *domain == "*" {
        return unchanged;
    }
    let fits_start =
        |text: &str, pattern: &str| pattern.ends_with('*') && text.starts_with(&pattern[..pattern.len() - 1]);
    let fits_end = |text: &str, pattern: &str| pattern.starts_with('*') && text.ends_with(&pattern[1..]);
    let overlaps = |own: &String| {
        own == domain
            || fits_start(own, domain)
            || fits_start(domain, own)
            || fits_end(own, domain)
            || fits_end(domain, own)
    };
    if *domain != "cluster.local" && !own_domains(trust).iter().any(overlaps) {
        return unchanged;
    }
    own_domains(trust)
        .iter()
        .map(|own| if fits_end(own, domain) { value.to_owned() } else { format!("{own}/{a}/{b}/{c}/{d}") })
        .collect()
}

/// 12.2
pub(crate) fn fits_namespace(value: &str, peer: Option<&Identity>) -> bool {
    let Some(san) = peer.map(Identity::uri) else { return false };
    let mut tokens = vec![anything(), literal("/ns/")];
    for (index, text) in value.split('*').enumerate() {
        if index > 0 {
            tokens.push(anything());
        }
        tokens.push(literal(text));
    }
    tokens.extend([literal("/"), anything()]);
    matches(&tokens, &san)
}

/// 12.3; the value is valid.
pub(crate) fn fits_account(value: &str, policy_namespace: &str, peer: Option<&Identity>) -> bool {
    let Some(san) = peer.map(Identity::uri) else { return false };
    let (namespace, account) = value.split_once('/').unwrap_or((policy_namespace, value));
    let tails: [Vec<Token>; 2] = [vec![], vec![literal("/"), something()]];
    let middles: [Vec<Token>; 2] = [vec![], vec![something(), literal("/")]];
    middles.iter().any(|middle| {
        tails.iter().any(|tail| {
            let mut tokens = vec![literal("spiffe://"), something(), literal(format!("/ns/{namespace}/"))];
            tokens.extend(middle.clone());
            tokens.push(literal(format!("sa/{account}")));
            tokens.extend(tail.clone());
            matches(&tokens, &san)
        })
    })
}

/// Section 18, row on serviceAccounts.
pub(crate) fn is_account(value: &str) -> bool {
    let parts: Vec<&str> = value.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|p| !p.is_empty()) && !value.contains('*') && value.len() <= 320
}

/// 12.4 and the last paragraph but two of 12.5; the value is valid.
pub(crate) fn fits_trust_domain(value: &str, peer: Option<&Identity>, trust: &TrustContext) -> bool {
    let Some(san) = peer.map(Identity::uri) else { return false };
    let own = own_domains(trust);
    let values = if own.iter().any(|d| d == value) { own } else { vec![value.to_owned()] };
    values.iter().any(|value| {
        let mut tokens = vec![literal("spiffe://")];
        for (index, text) in value.split('*').enumerate() {
            if index > 0 {
                tokens.push(Token::Run { min: 0, of: |c| c != '/' });
            }
            tokens.push(literal(text));
        }
        tokens.extend([literal("/"), anything()]);
        matches(&tokens, &san)
    })
}

/// Section 18, row on trustDomains, but for a `*` in the middle, which 12.4 gives a meaning.
pub(crate) fn is_trust_domain(value: &str) -> bool {
    !value.contains('/') && value.matches('*').count() <= 1
}

/// Section 13: the bits of an address, most significant first.
fn bits(address: IpAddr) -> Vec<bool> {
    let octets = match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1)).collect()
}

/// An address or CIDR as the bits that must agree; `None`: not valid.
pub(crate) fn block(value: &str) -> Option<(bool, Vec<bool>)> {
    let (address, length) = match value.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (value, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let mut bits = bits(address);
    if let Some(length) = length {
        let number: usize = length.parse().ok()?;
        if number > bits.len() || number.to_string() != length {
            return None;
        }
        bits.truncate(number);
    }
    Some((address.is_ipv4(), bits))
}

/// Whether an address lies in a valid block.
pub(crate) fn fits_block(value: &str, address: IpAddr) -> bool {
    block(value).is_some_and(|(v4, wanted)| v4 == address.is_ipv4() && bits(address).starts_with(&wanted))
}

/// An integer from 0 to 65535; `None`: not valid.
pub(crate) fn port(value: &str) -> Option<u32> {
    let digits = !value.is_empty() && value.chars().all(|c| c.is_ascii_digit());
    value.parse().ok().filter(|n| digits && *n <= 65535)
}
