//! A real Envoy, configured as Istio configures it, decides as Maille does.
//!
//! Generated policies become the filters that Istio generates of them; generated requests travel over real connections,
//! from real addresses, with real client certificates and tokens. Needs root (a network namespace with the generator's
//! addresses) and the program that `MAILLE_ENVOY` names. `MAILLE_ENVOY_SETS` and `MAILLE_SEED` say how much and what is
//! tried.

mod client;
mod decisions;
mod keys;
mod lab;
mod paths;
#[path = "../authorization/policies.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod policies;
#[path = "../authorization/random.rs"]
mod random;
#[path = "../authorization/requests.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod requests;
mod tcp;
mod themes;
mod tokens;
mod translate;
mod wire;

use std::net::IpAddr;
use std::path::PathBuf;

use maille_core::TrustDomain;
use maille_policy::TrustContext;

use random::Random;
use requests::Facts;

#[test]
fn envoy_and_engine_agree_on_generated_policies_and_requests() {
    let Some(envoy) = envoy() else { return };
    let mut random = Random::new(number("MAILLE_SEED", 1));
    let count = number("MAILLE_ENVOY_SETS", 150) as usize;
    let sets = (0..count).map(|index| themes::set(index, &mut random)).collect();
    decisions::compare(&envoy, sets);
}

#[test]
fn envoy_and_normalization_agree_on_hostile_paths() {
    let Some(envoy) = envoy() else { return };
    let mut random = Random::new(number("MAILLE_SEED", 1));
    paths::compare(&envoy, number("MAILLE_ENVOY_SETS", 150) * 20, &mut random);
}

#[test]
fn envoy_and_authentication_agree_on_tokens() {
    let Some(envoy) = envoy() else { return };
    let mut random = Random::new(number("MAILLE_SEED", 1));
    tokens::compare(&envoy, number("MAILLE_ENVOY_SETS", 150) as usize, &mut random);
}

#[test]
fn envoy_and_engine_agree_on_opaque_bytes() {
    let Some(envoy) = envoy() else { return };
    let mut random = Random::new(number("MAILLE_SEED", 1));
    let count = number("MAILLE_ENVOY_SETS", 150) as usize;
    let sets = (0..count / 3).map(|index| themes::set_for_bytes(index, &mut random)).collect();
    tcp::compare(&envoy, sets);
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// Where Envoy is; says loudly why the test cannot run, and fails in CI.
fn envoy() -> Option<PathBuf> {
    let path = std::env::var_os("MAILLE_ENVOY").map(PathBuf::from).filter(|path| path.is_file());
    let reason = match &path {
        None => "MAILLE_ENVOY names no program",
        Some(_) if !rustix::process::geteuid().is_root() => "it needs root",
        Some(_) => return path,
    };
    assert!(std::env::var_os("CI").is_none(), "the comparison with Envoy cannot run in CI: {reason}");
    eprintln!("\n*** SKIPPED: comparison with Envoy: {reason} ***\n");
    None
}

/// Without aliases, so that principals mean what they say (expansion is the control plane's part).
fn trust() -> TrustContext {
    TrustContext {
        trust_domain: TrustDomain::parse("cluster.local").expect("valid"),
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
    }
}

/// The facts as they can really occur in the lab; nothing if they cannot.
fn realizable(mut facts: Facts) -> Option<Facts> {
    if facts.identity.is_none() {
        facts.sni = None;
    }
    let is_name = |name: &String| rustls::pki_types::DnsName::try_from(name.as_str()).is_ok();
    // Host names are compared in lower case: the listener's inspector lowers them.
    facts.sni = facts.sni.map(|name| name.to_ascii_lowercase()).filter(is_name);
    facts.source_ip = facts.source_ip.to_canonical();
    facts.destination_ip = facts.destination_ip.to_canonical();
    if facts.source_ip.is_ipv4() != facts.destination_ip.is_ipv4() {
        facts.destination_ip = same_family(facts.source_ip);
    }
    facts.forwarded = facts.forwarded.map(|address| address.to_canonical());
    facts.remote_ip = facts.source_ip;
    let is_at_hand = |address: IpAddr| lab::addresses().contains(&address);
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let is_trimmed = |text: &str| text.trim() == text && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let can_be_sent = is_at_hand(facts.source_ip)
        && is_at_hand(facts.destination_ip)
        && lab::PORTS.contains(&facts.destination_port)
        && facts.path.starts_with('/')
        && is_plain(&facts.path)
        && !facts.host.is_empty()
        && is_plain(&facts.host)
        && facts.method.bytes().all(|byte| byte.is_ascii_uppercase())
        && !facts.method.is_empty()
        && facts.headers.iter().all(|(_, value)| is_trimmed(value));
    can_be_sent.then_some(facts)
}

fn same_family(like: IpAddr) -> IpAddr {
    *lab::addresses()
        .iter()
        .find(|address| address.is_ipv4() == like.is_ipv4())
        .expect("both families are there")
}
