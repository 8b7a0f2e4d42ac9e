//! WorkloadEntry, alone and as an endpoint of a ServiceEntry (reference mtls 4.1; istio pkg/config/validation,
//! `validateWorkloadEntry`).

use std::net::IpAddr;

use maille_core::{is_dns_label, is_dns_subdomain};

use super::metadata::check_labels;
use super::values::check_port_number;
use super::view::View;
use crate::field_error::FieldError;
use crate::hosts;
use crate::suggest;

/// What begins the address of a socket.
const UNIX: &str = "unix://";

/// Parts of a workload that nothing enforces.
const NOT_ENFORCED: &[(&str, &str)] =
    &[("network", "several networks"), ("locality", "load balancing by locality")];

/// What an address may be besides an IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addresses {
    /// A socket (resolution STATIC).
    Static,
    /// A host name (resolution DNS).
    Names,
    /// Either: the ServiceEntries that select the workload decide.
    Any,
}

pub(super) fn check(object: View<'_>, errors: &mut Vec<FieldError>) {
    check_workload(&object.get("spec"), Addresses::Any, None, errors);
}

/// One workload; `declared` are the names of the ports that it may have ports for, if they are known.
pub(super) fn check_workload(
    workload: &View<'_>,
    addresses: Addresses,
    declared: Option<&[&str]>,
    errors: &mut Vec<FieldError>,
) {
    let address = workload.get("address");
    check_address(&address, addresses, errors);
    check_ports(&workload.get("ports"), declared, errors);
    if address.text().is_some_and(|text| text.starts_with(UNIX)) {
        let ports = workload.get("ports");
        if !ports.is_empty() {
            errors.push(ports.invalid("a socket has no ports").help("leave ports out"));
        }
        if let Some(count) = declared.map(<[_]>::len).filter(|count| *count != 1) {
            errors.push(
                address
                    .invalid(format!("a socket takes what is sent to one port, and the entry has {count}"))
                    .help("write an entry with one port"),
            );
        }
    }
    check_labels(&workload.get("labels"), errors);
    for (field, comes_with) in NOT_ENFORCED {
        let part = workload.get(field);
        if !part.is_empty() {
            errors.push(part.not_enforced(field, comes_with));
        }
    }
    let account = workload.get("serviceAccount");
    if let Some(text) = account.text().filter(|text| !text.is_empty() && !is_dns_subdomain(text)) {
        errors.push(
            account
                .invalid(format!("'{text}' is no service account"))
                .help("its name alone; its namespace is the entry's"),
        );
    }
}

fn check_address(address: &View<'_>, addresses: Addresses, errors: &mut Vec<FieldError>) {
    let Some(text) = address.text().filter(|text| !text.is_empty()) else {
        if address.is_empty() {
            errors.push(address.required("an endpoint has an address").help("for example 192.0.2.7"));
        }
        return;
    };
    if let Some(path) = text.strip_prefix(UNIX) {
        if addresses == Addresses::Names {
            errors.push(
                address
                    .invalid("a socket is looked up nowhere")
                    .help("write resolution: STATIC for sockets and addresses"),
            );
        } else if path.starts_with('@') {
            errors.push(address.not_enforced("an abstract socket", "sockets without files"));
        } else if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            errors.push(
                address
                    .invalid(format!("'{path}' is no absolute path of a socket"))
                    .help("for example unix:///var/run/app/http.sock"),
            );
        } else if path.len() > MAX_SOCKET_PATH {
            errors.push(
                address
                    .invalid(format!("a path of {} bytes is too long for a socket", path.len()))
                    .help(format!("at most {MAX_SOCKET_PATH} bytes")),
            );
        }
    } else if text.parse::<IpAddr>().is_err() {
        if addresses == Addresses::Static {
            errors.push(
                address
                    .invalid(format!("'{text}' is no IP address"))
                    .help("resolution STATIC takes addresses; write resolution: DNS for host names"),
            );
        } else if text.contains('*') || hosts::problem(text).is_some() {
            errors.push(
                address
                    .invalid(format!("'{text}' is neither an IP address nor a host name"))
                    .help("for example 192.0.2.7 or eu.api.example.com"),
            );
        }
    }
}

/// What `sockaddr_un` of Linux holds, with its end.
const MAX_SOCKET_PATH: usize = 107;

fn check_ports(ports: &View<'_>, declared: Option<&[&str]>, errors: &mut Vec<FieldError>) {
    for (name, number) in ports.members() {
        if let Some(declared) = declared.filter(|declared| !declared.contains(&name)) {
            let nearest = suggest::nearest(name, declared.iter().copied());
            errors.push(
                number
                    .invalid(format!("the entry has no port named '{name}'"))
                    .maybe_help(nearest.map(|nearest| format!("did you mean '{nearest}'?"))),
            );
        } else if declared.is_none() && !is_dns_label(name) {
            errors.push(
                number.invalid(format!("'{name}' is no name of a port")).help(
                    "the name of a port of the ServiceEntries that select the workload, for example http",
                ),
            );
        }
        check_port_number(&number, errors);
    }
}
