//! ServiceEntry (reference mtls 4.1; istio pkg/config/validation, ValidateServiceEntry).

use std::net::IpAddr;

use ipnet::IpNet;
use maille_core::is_dns_label;

use super::values::{any, check_port_number, check_selected_labels, check_texts, ip_block};
use super::view::View;
use super::{export, service_entry_endpoints};
use crate::field_error::{FieldError, FieldErrorKind};
use crate::hosts;
use crate::istio::{Resolution, ServiceEntry};
use crate::path::FieldPath;
use crate::service_entry::{PortClass, allocates};

/// The sizes of the schema.
const MAX_HOSTS: usize = 256;
const MAX_ADDRESSES: usize = 256;
const MAX_PORTS: usize = 256;
const MAX_ENDPOINTS: usize = 4096;

pub(super) fn check(object: View<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.get("spec");
    let resolution = spec.get("resolution");
    for (field, max) in [
        ("hosts", MAX_HOSTS),
        ("addresses", MAX_ADDRESSES),
        ("ports", MAX_PORTS),
        ("endpoints", MAX_ENDPOINTS),
    ] {
        let list = spec.get(field);
        let count = list.elements().count();
        if count > max {
            errors.push(
                list.invalid(format!("has {count} elements")).help(format!("at most {max}; split the entry")),
            );
        }
    }
    check_hosts(&spec, errors);
    check_addresses(&spec, errors);
    check_ports(&spec, errors);
    let mode = resolution.text().unwrap_or("NONE");
    if mode == "DYNAMIC_DNS" {
        check_dynamic(&spec, errors);
    }
    check_selected_labels(&spec.get("workloadSelector").get("labels"), errors);
    service_entry_endpoints::check(&spec, mode, errors);
    check_texts(&spec.get("subjectAltNames"), any, errors);
    let namespace = object.get("metadata").get("namespace");
    export::check(&spec.get("exportTo"), namespace.text(), true, errors);
}

fn check_hosts(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let list = spec.get("hosts");
    if list.is_empty() {
        errors.push(
            list.required("an entry names at least one host").help("for example hosts: [api.example.com]"),
        );
    }
    for host in list.elements() {
        let Some(text) = host.text() else { continue };
        if text == "*" {
            errors.push(host.invalid("'*' would be every host").help("for example *.example.com"));
        } else if text.strip_prefix('*').is_some_and(|rest| !rest.starts_with('.')) {
            errors.push(
                host.error(
                    FieldErrorKind::NotEnforced,
                    format!("'{text}' has its wildcard within a label, which no proxy matches"),
                )
                .help("a wildcard stands for whole labels: *.example.com"),
            );
        } else if let Some(problem) = hosts::problem(text) {
            errors.push(
                host.invalid(format!("'{text}' {problem}"))
                    .help("for example api.example.com or *.example.com"),
            );
        } else if text.parse::<IpAddr>().is_ok() {
            errors.push(
                host.invalid(format!("'{text}' is an address"))
                    .help("put it into addresses, and give the service a name here"),
            );
        }
    }
    let by_dns = matches!(spec.get("resolution").text(), Some("DNS" | "DNS_ROUND_ROBIN"));
    if by_dns && spec.get("endpoints").is_empty() {
        for host in list.elements().filter(|h| h.text().is_some_and(|text| text.starts_with('*'))) {
            errors.push(host.invalid("a wildcard cannot be looked up in DNS").help(
                "name the hosts, list endpoints to look up instead, or use resolution DYNAMIC_DNS or NONE",
            ));
        }
    }
}

/// DYNAMIC_DNS (SE-8): what each request or ClientHello names is looked up, so something must name it, and nothing else
/// may say where it is.
fn check_dynamic(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    for host in spec.get("hosts").elements().filter(|h| h.text().is_some_and(|text| !text.starts_with('*'))) {
        errors.push(
            host.invalid("resolution DYNAMIC_DNS is for wildcards")
                .help("for example *.example.com; a single host is looked up with resolution DNS"),
        );
    }
    let addresses = spec.get("addresses");
    if !addresses.is_empty() {
        errors.push(
            addresses
                .invalid("with resolution DYNAMIC_DNS hosts are recognised by name alone")
                .help("leave addresses out"),
        );
    }
    let selector = spec.get("workloadSelector");
    if !selector.is_absent() {
        errors.push(
            selector
                .invalid("resolution DYNAMIC_DNS looks up the name of each request, and selects no workloads")
                .help("write resolution: STATIC"),
        );
    }
    for port in spec.get("ports").elements() {
        let protocol = port.get("protocol");
        let named = protocol.text().unwrap_or_default().to_ascii_uppercase();
        // Other words for the same are refused by Istio too. What is no protocol at all has been reported.
        if !matches!(named.as_str(), "HTTP" | "HTTP2" | "GRPC" | "TLS") && PortClass::parse(&named).is_some()
        {
            errors.push(
                protocol
                    .invalid("resolution DYNAMIC_DNS needs a protocol that names the host in each request or connection")
                    .help("HTTP, HTTP2, GRPC or TLS"),
            );
        }
    }
}

fn check_addresses(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let by_dns = matches!(spec.get("resolution").text(), Some("DNS" | "DNS_ROUND_ROBIN"));
    let list = spec.get("addresses");
    check_texts(&list, ip_block, errors);
    for address in list.elements() {
        let block = address.text().and_then(|text| text.parse::<IpNet>().ok());
        if by_dns && block.is_some_and(|block| block.prefix_len() < block.max_prefix_len()) {
            errors.push(
                address
                    .invalid("a block of addresses goes with resolution NONE or STATIC only")
                    .help("name single addresses"),
            );
        }
    }
}

fn check_ports(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let list = spec.get("ports");
    let (mut names, mut numbers) = (Vec::new(), Vec::new());
    let mut all_name_their_host = true;
    for port in list.elements() {
        let name = port.get("name");
        match name.text().unwrap_or_default() {
            "" if port.is_object() => {
                errors.push(name.required("a port has a name").help("for example name: https"))
            }
            text if !is_dns_label(text) => {
                errors.push(name.invalid(format!("'{text}' is no name of a port")).help(
                    "1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
                ))
            }
            text if names.contains(&text) => {
                errors
                    .push(name.error(FieldErrorKind::Duplicate, format!("a port is named '{text}' already")));
            }
            text => names.push(text),
        }
        let number = port.get("number");
        match number.number() {
            None if port.is_object() && number.is_absent() => {
                errors.push(number.required("a port has a number").help("for example number: 443"));
            }
            Some(n) if numbers.contains(&n) => {
                errors.push(number.error(FieldErrorKind::Duplicate, format!("port {n} is there already")));
            }
            Some(n) => {
                numbers.push(n);
                check_port_number(&number, errors);
            }
            None => {}
        }
        // Zero is Protobuf's spelling of absent.
        let target = port.get("targetPort");
        if target.number() != Some(0) {
            check_port_number(&target, errors);
        }
        let class = check_protocol(&port.get("protocol"), errors);
        all_name_their_host &= class.is_none_or(PortClass::names_its_host);
    }
    let several = spec.get("hosts").elements().count() > 1;
    if several && !all_name_their_host && !matches!(spec.get("resolution").text(), None | Some("NONE")) {
        errors.push(
            spec.get("hosts")
                .invalid("connections to a port that is neither HTTP nor TLS do not say which of several hosts they mean")
                .help("write an entry for each host"),
        );
    }
}

fn check_protocol(protocol: &View<'_>, errors: &mut Vec<FieldError>) -> Option<PortClass> {
    if !protocol.is_absent() && protocol.text().is_none() {
        return None;
    }
    let text = protocol.text().unwrap_or_default();
    let class = PortClass::parse(text);
    if class.is_none() {
        errors.push(
            protocol
                .error(FieldErrorKind::Enum, format!("'{text}' is no protocol that proxies carry"))
                .help("HTTP, HTTP2, GRPC, HTTPS, TLS, TCP or MONGO"),
        );
    }
    class
}

/// Of a port that names no host, where the mesh gives the hosts addresses. Kubernetes cuts longer warnings.
const ALLOCATED: &str = "connections to the port name no host: where DNS is captured (ISTIO_META_DNS_CAPTURE) the mesh \
                         gives the hosts addresses, elsewhere all on the port are taken for the entry's";

pub(super) fn warnings(entry: &ServiceEntry) -> Vec<FieldError> {
    let spec = FieldPath::root().key("spec");
    let mut warnings = Vec::new();
    let mut warn = |path: FieldPath, message: &str, help: &str| {
        warnings.push(FieldError::new(path, FieldErrorKind::Invalid, message).help(help));
    };
    if entry.spec.ports.is_empty() {
        warn(
            spec.key("ports"),
            "without ports nothing is sent to the hosts",
            "for example {number: 443, name: tls, protocol: TLS}",
        );
    }
    let selector = entry.spec.workload_selector.as_ref();
    if selector.is_some_and(|selector| selector.labels.is_empty()) {
        warn(
            spec.key("workloadSelector"),
            "the selector names no label, and selects nothing: calls to the hosts fail",
            "name the labels of those that are meant",
        );
    }
    if selector.is_some() && entry.spec.resolution == Resolution::None {
        warn(
            spec.key("workloadSelector"),
            "resolution NONE goes where the application dials, and uses no workloads",
            "write resolution: STATIC",
        );
    }
    for (i, port) in entry.spec.ports.iter().enumerate() {
        let named = PortClass::parse(&port.protocol).is_none_or(PortClass::names_its_host);
        if entry.spec.addresses.is_empty() && !named {
            let message = match allocates(entry) {
                true => ALLOCATED,
                false => {
                    "connections to the port name no host: all on the port are taken for the entry's, whatever the address"
                }
            };
            warn(spec.key("ports").index(i), message, "list the hosts' addresses in spec.addresses");
        }
    }
    let without_endpoints = entry.spec.endpoints.is_empty() && selector.is_none();
    if entry.spec.resolution == Resolution::Static && without_endpoints {
        warn(
            spec.key("endpoints"),
            "resolution STATIC without endpoints reaches nobody",
            "list endpoints with their addresses",
        );
    }
    warnings
}
