//! Services and EndpointSlices: addresses, defaults, validation.
//!
//! Source: kubernetes `pkg/registry/core/service`, `pkg/apis/core/validation`.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use maille_core::is_dns_subdomain;
use serde_json::{Value, json};

use super::pod_validation::{is_port_name, number, port_or_name};
use crate::api::Api;
use crate::json;
use crate::request::Target;
use crate::status::{ApiError, ApiResult, Cause};
use crate::store::State;

mod cluster_ips;

const NO_NODE_PORTS: &str = "a mesh on one machine serves ClusterIP and ExternalName Services: nothing outside of it reaches node ports or load balancers";

/// Admits a new Service and gives it its addresses.
pub(crate) fn create(api: &Api, state: &State, target: &Target, service: &mut Value) -> ApiResult<()> {
    defaults(service);
    let mut causes = check(service);
    allocate(api, state, service, &mut causes);
    json::map_of(service).insert("status".into(), json!({ "loadBalancer": {} }));
    finish(target, service, causes)
}

/// Admits a change; the addresses stay.
pub(crate) fn update(
    api: &Api,
    state: &State,
    target: &Target,
    old: &Value,
    service: &mut Value,
) -> ApiResult<()> {
    defaults(service);
    let was_external = json::text(old, &["spec", "type"]) == "ExternalName";
    let is_external = json::text(service, &["spec", "type"]) == "ExternalName";
    let spec = json::object_mut(json::map_of(service), "spec");
    if is_external {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            spec.shift_remove(key);
        }
    } else if !was_external {
        // Back to one family: the second goes, unless the change says otherwise itself.
        let is_single = spec.get("ipFamilyPolicy").and_then(Value::as_str) == Some("SingleStack");
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let Some(value) = json::at(old, &["spec", key]) else { continue };
            json::default_to(spec, key, value.clone());
            if let Some(Value::Array(list)) = spec.get_mut(key).filter(|now| is_single && *now == value) {
                list.truncate(1);
            }
        }
    }
    let mut causes = check(service);
    let (was, is) = (json::text(old, &["spec", "clusterIP"]), json::text(service, &["spec", "clusterIP"]));
    if !was_external && !is_external && was != is {
        causes.push(Cause::invalid("spec.clusterIPs[0]", &json!([is]), "may not change once set"));
    }
    if causes.is_empty() && !is_external {
        // A change of its policy may give it a second address.
        allocate(api, state, service, &mut causes);
    }
    let first = |service: &Value| json::items(service, &["spec", "ipFamilies"]).first().cloned();
    if !was_external && !is_external && causes.is_empty() && first(old) != first(service) {
        let family = first(service).unwrap_or_default();
        causes.push(Cause::invalid("spec.ipFamilies[0]", &family, "may not change once set"));
    }
    finish(target, service, causes)
}

fn finish(target: &Target, service: &Value, causes: Vec<Cause>) -> ApiResult<()> {
    if causes.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(target.resource, json::name(service), causes))
    }
}

fn defaults(service: &mut Value) {
    let spec = json::object_mut(json::map_of(service), "spec");
    json::default_to(spec, "sessionAffinity", "None");
    json::default_to(spec, "type", "ClusterIP");
    if spec.get("type").and_then(Value::as_str) == Some("ClusterIP") {
        json::default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(port) = port {
            json::default_to(port, "protocol", "TCP");
            let number = port.get("port").cloned().unwrap_or_default();
            let unset =
                port.get("targetPort").is_none_or(|t| t.is_null() || t == &json!("") || t == &json!(0));
            if unset && number.is_number() {
                port.insert("targetPort".into(), number);
            }
        }
    }
}

fn check(service: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let kind = json::text(service, &["spec", "type"]);
    match kind {
        "ClusterIP" => {}
        "ExternalName" => {
            let name = json::text(service, &["spec", "externalName"]).trim_end_matches('.');
            if !is_dns_subdomain(name) {
                causes.push(Cause::invalid("spec.externalName", &name.into(), "must be a DNS name"));
            }
        }
        "NodePort" | "LoadBalancer" => causes.push(Cause::forbidden("spec.type", NO_NODE_PORTS)),
        other => causes.push(Cause::unsupported(
            "spec.type",
            other,
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        )),
    }
    if json::text(service, &["spec", "sessionAffinity"]) != "None" {
        causes.push(Cause::forbidden(
            "spec.sessionAffinity",
            "the mesh balances without affinity: only None is in force",
        ));
    }
    for unused in ["externalIPs", "loadBalancerIP", "loadBalancerSourceRanges", "loadBalancerClass"] {
        if json::at(service, &["spec", unused]).is_some() {
            causes.push(Cause::forbidden(format!("spec.{unused}"), NO_NODE_PORTS));
        }
    }
    let headless = json::text(service, &["spec", "clusterIP"]) == "None";
    let ports = json::items(service, &["spec", "ports"]);
    if ports.is_empty() && kind == "ClusterIP" && !headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = json::text(port, &["name"]);
        if name.is_empty() && ports.len() > 1 {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else if !name.is_empty() && !maille_core::is_dns_label(name) {
            let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
            causes.push(Cause::invalid(format!("{path}.name"), &name.into(), why));
        } else if !name.is_empty() && !names.insert(name) {
            causes.push(Cause::duplicate(format!("{path}.name"), name));
        }
        let Some(value) = port.get("port") else {
            causes.push(Cause::required(format!("{path}.port"), ""));
            continue;
        };
        number(value, &format!("{path}.port"), &mut causes);
        let protocol = json::text(port, &["protocol"]);
        if !["SCTP", "TCP", "UDP"].contains(&protocol) {
            causes.push(Cause::unsupported(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
        if !numbers.insert((value.as_i64(), protocol)) {
            causes.push(Cause::duplicate(&path, &format!("{value}/{protocol}")));
        }
        port_or_name(port.get("targetPort"), &format!("{path}.targetPort"), &mut causes);
        if port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0 {
            causes.push(Cause::forbidden(format!("{path}.nodePort"), NO_NODE_PORTS));
        }
    }
    causes
}

/// Gives a Service addresses of the service networks, or checks those it asks for and those it has.
fn allocate(api: &Api, state: &State, service: &mut Value, causes: &mut Vec<Cause>) {
    if json::text(service, &["spec", "type"]) == "ExternalName" {
        return;
    }
    let networks: Vec<IpNet> = std::iter::once(IpNet::from(api.settings.service_cidr))
        .chain(api.settings.service_cidr_v6.map(IpNet::from))
        .collect();
    let is_same = |other: &Value| {
        json::name(other) == json::name(service) && json::namespace(other) == json::namespace(service)
    };
    let others = state.list("services", None).filter(|other| !is_same(other));
    let mut used: HashSet<IpAddr> = others
        .flat_map(|other| json::items(other, &["spec", "clusterIPs"]))
        .filter_map(|address| address.as_str()?.parse().ok())
        .collect();
    if !(json::name(service) == "kubernetes" && json::namespace(service) == "default") {
        used.extend(networks.iter().filter_map(|network| network.hosts().next()));
    }
    cluster_ips::allocate(&cluster_ips::Pool { networks: &networks, used }, service, causes);
}

/// Why an endpoint may not have an address: it would mean the caller's own machine to each caller, so that a sidecar
/// would connect to its own admin port on an application's behalf.
///
/// Source: kubernetes `ValidateNonSpecialIP`.
fn special(address: IpAddr) -> Option<&'static str> {
    let link_local = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.segments().first() == Some(&0xff02),
    };
    match address.to_canonical() {
        ip if ip.is_unspecified() => Some("may not be unspecified (0.0.0.0 or ::)"),
        ip if ip.is_loopback() => Some("may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        ip if link_local(ip) => {
            Some("may not be in the link-local ranges (169.254.0.0/16, 224.0.0.0/24, fe80::/10, ff02::/16)")
        }
        _ => None,
    }
}

/// Admits an EndpointSlice; `old` when it changes.
pub(crate) fn endpoint_slice(target: &Target, slice: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    let mut causes = Vec::new();
    let kind = json::text(slice, &["addressType"]).to_owned();
    match kind.as_str() {
        "" => causes.push(Cause::required("addressType", "must be set")),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => causes.push(Cause::unsupported("addressType", other, &["FQDN", "IPv4", "IPv6"])),
    }
    if old.is_some_and(|o| json::text(o, &["addressType"]) != kind) {
        causes.push(Cause::invalid("addressType", &kind.as_str().into(), "field is immutable"));
    }
    for (i, endpoint) in json::items(slice, &["endpoints"]).iter().enumerate() {
        let addresses = json::items(endpoint, &["addresses"]);
        if addresses.is_empty() {
            let why = "must contain at least 1 address";
            causes.push(Cause::required(format!("endpoints[{i}].addresses"), why));
        }
        for (k, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let valid = match kind.as_str() {
                "IPv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => is_dns_subdomain(text),
            };
            if !valid {
                let field = format!("endpoints[{i}].addresses[{k}]");
                causes.push(Cause::invalid(field, address, &format!("must be a valid {kind} address")));
            } else if let Some(why) = text.parse().ok().and_then(special) {
                causes.push(Cause::invalid(format!("endpoints[{i}].addresses[{k}]"), address, why));
            }
        }
    }
    for port in json::items_mut(slice, &["ports"]) {
        if let Value::Object(port) = port {
            json::default_to(port, "name", "");
            json::default_to(port, "protocol", "TCP");
        }
    }
    for (i, port) in json::items(slice, &["ports"]).iter().enumerate() {
        let name = json::text(port, &["name"]);
        if !name.is_empty() && !maille_core::is_dns_label(name) && !is_port_name(name) {
            causes.push(Cause::invalid(format!("ports[{i}].name"), &name.into(), "must be a DNS label"));
        }
        if let Some(value) = port.get("port").filter(|v| !v.is_null()) {
            number(value, &format!("ports[{i}].port"), &mut causes);
        }
    }
    let map = json::map_of(slice);
    for key in ["endpoints", "ports"] {
        json::default_to(map, key, json!([]));
    }
    finish(target, slice, causes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_never_the_callers_own_machine() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fe80::1",
        ] {
            assert!(special(address.parse().unwrap()).is_some(), "{address}");
        }
        for address in ["10.244.1.2", "192.0.2.1", "2001:db8::1"] {
            assert!(special(address.parse().unwrap()).is_none(), "{address}");
        }
    }
}
