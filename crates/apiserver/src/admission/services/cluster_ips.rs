//! Address families and virtual addresses of Services.
//!
//! Source: kubernetes `pkg/registry/core/service/storage/alloc.go` and `docs/concepts/services-networking/dual-stack`.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::json;
use crate::status::Cause;

/// The first sixteen addresses of a network are only given when asked for: well-known ones (DNS) are low.
const RESERVED: u32 = 16;

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn other(self) -> Self {
        if self == Self::V4 { Self::V6 } else { Self::V4 }
    }
}

/// What addresses are chosen from.
pub(super) struct Pool<'a> {
    /// IPv4, and IPv6 where the cluster has both.
    pub(super) networks: &'a [IpNet],
    /// Those of other Services.
    pub(super) used: HashSet<IpAddr>,
}

/// Gives a Service the families and addresses that its policy and its wishes say; what it holds already stays.
pub(super) fn allocate(pool: &Pool<'_>, service: &mut Value, causes: &mut Vec<Cause>) {
    if json::text(service, &["spec", "type"]) == "ExternalName" {
        return;
    }
    let wishes = wishes(service);
    let is_headless = wishes.first().is_some_and(|wish| wish == "None");
    let Some((policy, families)) = families(pool, service, &wishes, causes) else { return };
    let addresses: Vec<String> = if is_headless {
        vec!["None".to_owned()]
    } else {
        let wishes = wishes.iter().map(String::as_str).chain(std::iter::repeat(""));
        let mut given = Vec::new();
        for (i, (family, wish)) in families.iter().zip(wishes).enumerate() {
            match address(pool, *family, wish, i) {
                Ok(address) => given.push(address.to_string()),
                Err(cause) => {
                    causes.push(cause);
                    return;
                }
            }
        }
        given
    };
    let spec = json::object_mut(json::map_of(service), "spec");
    spec.insert("clusterIP".into(), addresses.first().cloned().unwrap_or_default().into());
    spec.insert("clusterIPs".into(), json!(addresses));
    spec.insert("ipFamilies".into(), families.iter().map(|family| family.name()).collect());
    spec.insert("ipFamilyPolicy".into(), policy.into());
}

/// The addresses asked for, `clusterIP` being the first.
fn wishes(service: &Value) -> Vec<String> {
    let mut wishes: Vec<String> = json::items(service, &["spec", "clusterIPs"])
        .iter()
        .map(|wish| wish.as_str().unwrap_or_default().to_owned())
        .collect();
    let first = json::text(service, &["spec", "clusterIP"]);
    match wishes.first_mut() {
        Some(wish) if wish.is_empty() => first.clone_into(wish),
        None if !first.is_empty() => wishes.push(first.to_owned()),
        _ => {}
    }
    wishes
}

/// The policy and the families in force; nothing, and a cause, if they contradict each other or the cluster.
fn families(
    pool: &Pool<'_>,
    service: &Value,
    wishes: &[String],
    causes: &mut Vec<Cause>,
) -> Option<(String, Vec<Family>)> {
    const POLICIES: [&str; 3] = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    let field = "spec.ipFamilyPolicy";
    let mut families = Vec::new();
    for (i, name) in json::items(service, &["spec", "ipFamilies"]).iter().enumerate() {
        let family = match name.as_str() {
            Some("IPv4") => Family::V4,
            Some("IPv6") => Family::V6,
            _ => {
                let name = name.as_str().unwrap_or_default();
                causes.push(Cause::unsupported(format!("spec.ipFamilies[{i}]"), name, &["IPv4", "IPv6"]));
                return None;
            }
        };
        if families.contains(&family) {
            causes.push(Cause::duplicate(format!("spec.ipFamilies[{i}]"), family.name()));
            return None;
        }
        families.push(family);
    }
    let is_headless = wishes.first().is_some_and(|wish| wish == "None");
    for (i, wish) in wishes.iter().enumerate().filter(|(_, wish)| !wish.is_empty() && !is_headless) {
        let Ok(wanted) = wish.parse::<IpAddr>().map(Family::of) else { continue };
        match families.get(i) {
            Some(family) if *family != wanted => {
                let why = format!("expected an {} value as indicated by `ipFamilies[{i}]`", family.name());
                causes.push(Cause::invalid(format!("spec.clusterIPs[{i}]"), &json!(wish), &why));
                return None;
            }
            Some(_) => {}
            None => families.push(wanted),
        }
    }
    // Its endpoints are written by hand, of whatever family.
    let selector = json::at(service, &["spec", "selector"]).and_then(Value::as_object);
    let is_bare = is_headless && selector.is_none_or(serde_json::Map::is_empty);
    let policy = match json::text(service, &["spec", "ipFamilyPolicy"]) {
        "" if is_bare || families.len() > 1 => "RequireDualStack",
        "" => "SingleStack",
        known if POLICIES.contains(&known) => known,
        other => {
            causes.push(Cause::unsupported(field, other, &POLICIES));
            return None;
        }
    };
    if policy == "SingleStack" && families.len() > 1 {
        let why = "must be RequireDualStack or PreferDualStack when multiple 'ipFamilies' are specified";
        causes.push(Cause::invalid(field, &json!(policy), why));
        return None;
    }
    let has = |family| pool.networks.iter().any(|network| Family::of(network.addr()) == family);
    let first = families.first().copied().unwrap_or(Family::V4);
    if families.is_empty() {
        families.push(first);
    }
    if is_bare {
        if policy != "SingleStack" && families.len() == 1 {
            families.push(first.other());
        }
        return Some((policy.to_owned(), families));
    }
    if let Some((i, family)) = families.iter().enumerate().find(|(_, family)| !has(**family)) {
        let field = format!("spec.ipFamilies[{i}]");
        causes.push(Cause::invalid(field, &json!(family.name()), "not configured on this cluster"));
        return None;
    }
    if families.len() == 1 && policy != "SingleStack" {
        match (has(first.other()), policy) {
            (true, _) => families.push(first.other()),
            (false, "RequireDualStack") => {
                let why = "this cluster is not configured for dual-stack services";
                causes.push(Cause::invalid(field, &json!(policy), why));
                return None;
            }
            (false, _) => {}
        }
    }
    Some((policy.to_owned(), families))
}

/// A free address of a family, or the one that is wished for.
fn address(pool: &Pool<'_>, family: Family, wish: &str, index: usize) -> Result<IpAddr, Cause> {
    let refused = |why: &str| {
        let value = if wish.is_empty() { json!([]) } else { json!([wish]) };
        Cause::invalid(format!("spec.clusterIPs[{index}]"), &value, why)
    };
    let network = pool.networks.iter().find(|network| Family::of(network.addr()) == family);
    let network = network.ok_or_else(|| refused("not configured on this cluster"))?;
    if !wish.is_empty() {
        return match wish.parse::<IpAddr>() {
            Ok(asked) if network.contains(&asked) && !pool.used.contains(&asked) => Ok(asked),
            Ok(asked) if network.contains(&asked) => {
                Err(refused("failed to allocate IP: provided IP is already allocated"))
            }
            _ => Err(refused(&format!(
                "failed to allocate IP: the provided IP is not in the valid range. The range of valid IPs is {network}"
            ))),
        };
    }
    // The last one is broadcast in IPv4.
    let bits = u32::from(network.max_prefix_len() - network.prefix_len()).min(16);
    let size = (1_u32 << bits).saturating_sub(1).max(RESERVED + 1);
    let skip = rand::random_range(RESERVED + 1..=size.max(RESERVED + 1));
    (skip..size)
        .chain(RESERVED + 1..skip)
        .map(|offset| nth(network, offset))
        .find(|address| !pool.used.contains(address))
        .ok_or_else(|| refused(&format!("no address of {network} is free")))
}

fn nth(network: &IpNet, offset: u32) -> IpAddr {
    match network {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits() | offset).into(),
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() | u128::from(offset)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocated(networks: &[&str], spec: Value) -> Result<(String, Vec<String>, Vec<String>), String> {
        let networks: Vec<IpNet> = networks.iter().map(|net| net.parse().expect("a network")).collect();
        let pool =
            Pool { networks: &networks, used: HashSet::from(["fd00:10:96::99".parse().expect("valid")]) };
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        let mut causes = Vec::new();
        allocate(&pool, &mut service, &mut causes);
        if let Some(cause) = causes.first() {
            return Err(format!("{}: {}", cause.field, cause.message));
        }
        let list = |key: &str| -> Vec<String> {
            json::items(&service, &["spec", key])
                .iter()
                .map(|v| v.as_str().unwrap_or_default().to_owned())
                .collect()
        };
        assert_eq!(list("clusterIPs").first().map(String::as_str), service["spec"]["clusterIP"].as_str());
        Ok((
            json::text(&service, &["spec", "ipFamilyPolicy"]).to_owned(),
            list("ipFamilies"),
            list("clusterIPs"),
        ))
    }

    const BOTH: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

    #[test]
    fn families_follow_policy_wishes_and_cluster() {
        let selector = json!({"app": "x"});
        for (networks, spec, policy, families) in [
            (&BOTH[..], json!({}), "SingleStack", &["IPv4"][..]),
            (&BOTH, json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack", &["IPv4", "IPv6"]),
            (&BOTH[..1], json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack", &["IPv4"]),
            (
                &BOTH,
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
                "RequireDualStack",
                &["IPv6", "IPv4"],
            ),
            (&BOTH, json!({"ipFamilies": ["IPv6"]}), "SingleStack", &["IPv6"]),
            (&BOTH, json!({"ipFamilies": ["IPv6", "IPv4"]}), "RequireDualStack", &["IPv6", "IPv4"]),
            (&BOTH, json!({"clusterIPs": ["fd00:10:96::77"]}), "SingleStack", &["IPv6"]),
            (&BOTH, json!({"clusterIP": "None", "selector": selector}), "SingleStack", &["IPv4"]),
            (
                &BOTH,
                json!({"clusterIP": "None", "selector": selector, "ipFamilyPolicy": "PreferDualStack"}),
                "PreferDualStack",
                &["IPv4", "IPv6"],
            ),
            (&BOTH[..1], json!({"clusterIP": "None"}), "RequireDualStack", &["IPv4", "IPv6"]),
        ] {
            let told = allocated(networks, spec.clone()).expect("allocated");
            assert_eq!(
                (told.0.as_str(), told.1.clone()),
                (policy, families.iter().map(|f| (*f).to_owned()).collect()),
                "{spec}"
            );
            if spec["clusterIP"] == "None" {
                assert_eq!(told.2, ["None"]);
                continue;
            }
            let given: Vec<&str> =
                told.2.iter().map(|a| Family::of(a.parse().expect("an address")).name()).collect();
            assert_eq!(given, families, "{spec}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for (networks, spec, expected) in [
            (
                &BOTH[..1],
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "not configured for dual-stack services",
            ),
            (
                &BOTH[..1],
                json!({"ipFamilies": ["IPv6"]}),
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured",
            ),
            (
                &BOTH,
                json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}),
                "must be RequireDualStack",
            ),
            (&BOTH, json!({"ipFamilies": ["IPv4", "IPv4"]}), "spec.ipFamilies[1]"),
            (&BOTH, json!({"ipFamilies": ["IPv5"]}), "Unsupported value"),
            (&BOTH, json!({"ipFamilyPolicy": "Both"}), "Unsupported value"),
            (&BOTH, json!({"ipFamilies": ["IPv6"], "clusterIP": "10.96.0.77"}), "expected an IPv6 value"),
            (&BOTH, json!({"clusterIP": "fd00:10:96::99"}), "already allocated"),
            (&BOTH, json!({"clusterIP": "fd00::1"}), "not in the valid range"),
            (&BOTH, json!({"clusterIP": "nonsense"}), "not in the valid range"),
        ] {
            let error = allocated(networks, spec.clone()).expect_err("refused");
            assert!(error.contains(expected), "{spec}: {error}");
        }
    }
}
