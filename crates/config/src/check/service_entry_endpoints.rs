//! Endpoints of a ServiceEntry (reference mtls 4.1, "WorkloadEntry").

use std::net::IpAddr;

use maille_core::is_dns_subdomain;

use super::metadata::check_labels;
use super::values::check_port_number;
use super::view::View;
use crate::field_error::FieldError;
use crate::hosts;
use crate::suggest;

/// Parts of an endpoint that nothing enforces.
const NOT_ENFORCED: &[(&str, &str)] = &[
    ("network", "several networks"),
    ("locality", "load balancing by locality"),
    ("weight", "load balancing by weight"),
];

pub(super) fn check(spec: &View<'_>, resolution: &str, errors: &mut Vec<FieldError>) {
    let list = spec.get("endpoints");
    let count = list.elements().count();
    if resolution == "NONE" && count > 0 {
        errors.push(
            list.invalid("resolution NONE goes where the application dials, and has no endpoints")
                .help("write resolution: STATIC (addresses) or DNS (host names)"),
        );
    }
    if resolution == "DNS_ROUND_ROBIN" && count > 1 {
        errors.push(
            list.invalid(format!("resolution DNS_ROUND_ROBIN has one endpoint at most, this has {count}"))
                .help("write resolution: DNS"),
        );
    }
    if count > 0 && !spec.get("workloadSelector").is_absent() {
        errors.push(list.invalid("only one of endpoints and workloadSelector may be set"));
    }
    let by_name = matches!(resolution, "DNS" | "DNS_ROUND_ROBIN");
    let ports: Vec<&str> = spec.get("ports").elements().filter_map(|p| p.get("name").text()).collect();
    for endpoint in list.elements().filter(View::is_object) {
        check_address(&endpoint.get("address"), by_name, errors);
        check_ports(&endpoint, &ports, errors);
        check_labels(&endpoint.get("labels"), errors);
        for (field, comes_with) in NOT_ENFORCED {
            let part = endpoint.get(field);
            // Zero is Protobuf's spelling of absent.
            if !part.is_empty() && part.number() != Some(0) {
                errors.push(part.not_enforced(field, comes_with));
            }
        }
        let account = endpoint.get("serviceAccount");
        if let Some(text) = account.text().filter(|text| !text.is_empty() && !is_dns_subdomain(text)) {
            errors.push(
                account
                    .invalid(format!("'{text}' is no service account"))
                    .help("its name alone; its namespace is the entry's"),
            );
        }
    }
}

fn check_address(address: &View<'_>, by_name: bool, errors: &mut Vec<FieldError>) {
    let Some(text) = address.text().filter(|text| !text.is_empty()) else {
        if address.is_empty() {
            errors.push(address.required("an endpoint has an address").help("for example 192.0.2.7"));
        }
        return;
    };
    if text.starts_with("unix:") {
        errors.push(address.not_enforced("a Unix domain socket", "endpoints beside the application"));
    } else if text.parse::<IpAddr>().is_err() {
        if !by_name {
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

fn check_ports(endpoint: &View<'_>, declared: &[&str], errors: &mut Vec<FieldError>) {
    for (name, number) in endpoint.get("ports").members() {
        if !declared.contains(&name) {
            let nearest = suggest::nearest(name, declared.iter().copied());
            errors.push(
                number
                    .invalid(format!("the entry has no port named '{name}'"))
                    .maybe_help(nearest.map(|nearest| format!("did you mean '{nearest}'?"))),
            );
        }
        check_port_number(&number, errors);
    }
}
