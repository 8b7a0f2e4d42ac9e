//! Kubernetes' own kinds beyond their schema: the part of its validation on which the mesh relies
//! (kubernetes pkg/apis/{core,apps,discovery}/validation).

use std::collections::BTreeSet;
use std::net::IpAddr;

use maille_core::is_dns_label;

use super::metadata::check_labels;
use super::pod;
use super::values::{check_choice, check_port_number};
use super::view::View;
use super::workloads;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::kinds::Kind;

const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
/// Of ConfigMap and Secret together with their keys (`MaxSecretSize`).
const MAX_DATA: usize = 1024 * 1024;

pub(super) fn check(kind: &Kind, object: &View<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.get("spec");
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::check(&spec, errors),
        ("", "Service") => check_service(&spec, errors),
        ("apps" | "batch", _) | ("", "PersistentVolumeClaim") => workloads::check(kind, object, errors),
        ("discovery.k8s.io", "EndpointSlice") => check_endpoints(object, errors),
        ("", "ConfigMap") => {
            check_data(object, errors);
            crate::mesh::check_object(object, errors);
        }
        ("", "Secret") => check_data(object, errors),
        _ => {}
    }
}

fn check_service(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let kind = spec.get("type");
    check_choice(&kind, &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"], errors);
    check_choice(&spec.get("sessionAffinity"), &["None", "ClientIP"], errors);
    let address = spec.get("clusterIP");
    if address.text().is_some_and(|text| !matches!(text, "" | "None") && text.parse::<IpAddr>().is_err()) {
        errors.push(
            address.invalid("is no IP address").help("leave it out, or write None for a headless service"),
        );
    }
    let external = kind.text() == Some("ExternalName");
    if external && spec.get("externalName").is_empty() {
        errors
            .push(spec.get("externalName").required("is required with type ExternalName").help("a DNS name"));
    }
    check_labels(&spec.get("selector"), errors);

    let ports = spec.get("ports");
    if ports.is_empty() && !external && address.text() != Some("None") {
        errors.push(ports.required("a service has at least one port").help("for example - port: 80"));
    }
    let several = ports.elements().count() > 1;
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for port in ports.elements() {
        let (name, number, target) = (port.get("name"), port.get("port"), port.get("targetPort"));
        if number.is_absent() {
            errors.push(number.required("is required").help("a number from 1 to 65535"));
        }
        check_port_number(&number, errors);
        check_port_number(&target, errors);
        if let Some(text) = target.text() {
            pod::check_port_name(&target, text, errors);
        }
        let protocol = port.get("protocol");
        check_choice(&protocol, PROTOCOLS, errors);
        if number.number().is_some_and(|n| !numbers.insert((n, protocol.text().unwrap_or("TCP")))) {
            errors
                .push(number.error(FieldErrorKind::Duplicate, "another port of the service has this number"));
        }
        match name.text() {
            Some(text) if !is_dns_label(text) => errors.push(
                name.invalid(format!("'{text}' is no name of a service port"))
                    .help("1 to 63 lower-case letters, digits and '-', for example http-web"),
            ),
            Some(text) if !names.insert(text) => {
                errors.push(name.error(FieldErrorKind::Duplicate, format!("another port is named '{text}'")));
            }
            None if several && name.is_absent() => {
                errors.push(
                    name.required("is required where a service has several ports").help("for example http"),
                );
            }
            _ => {}
        }
    }
}

fn check_endpoints(object: &View<'_>, errors: &mut Vec<FieldError>) {
    let address_type = object.get("addressType");
    if address_type.is_empty() {
        errors.push(address_type.required("is required").help("IPv4, IPv6 or FQDN"));
    }
    check_choice(&address_type, &["IPv4", "IPv6", "FQDN"], errors);
    for endpoint in object.get("endpoints").elements() {
        for address in endpoint.get("addresses").elements() {
            let fits = match (address_type.text(), address.text()) {
                (Some("IPv4"), Some(text)) => text.parse::<std::net::Ipv4Addr>().is_ok(),
                (Some("IPv6"), Some(text)) => text.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => true,
            };
            if !fits {
                errors.push(address.invalid("is no address of the slice's addressType"));
            }
        }
    }
    for port in object.get("ports").elements() {
        check_port_number(&port.get("port"), errors);
        check_choice(&port.get("protocol"), PROTOCOLS, errors);
    }
}

fn check_data(object: &View<'_>, errors: &mut Vec<FieldError>) {
    let mut size = 0;
    let plain = object.get("data");
    for field in ["data", "stringData", "binaryData"] {
        for (key, value) in object.get(field).members() {
            let valid = (1..=253).contains(&key.len())
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
                && !matches!(key, "." | "..")
                && !key.starts_with("..");
            if !valid {
                errors.push(
                    value
                        .invalid(format!("'{key}' is no key"))
                        .help("1 to 253 letters, digits, '-', '_' and '.', as a file name"),
                );
            }
            if field == "binaryData" && !plain.get_exactly(key).is_absent() {
                errors.push(value.error(FieldErrorKind::Duplicate, format!("'{key}' is in data too")));
            }
            size += key.len() + value.text().map_or(0, str::len);
        }
    }
    if size > MAX_DATA {
        errors.push(plain.invalid(format!("takes {size} bytes")).help("at most 1 MiB"));
    }
}

#[cfg(test)]
mod tests;
