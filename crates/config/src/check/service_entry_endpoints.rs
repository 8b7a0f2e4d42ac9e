//! Endpoints of a ServiceEntry, which are WorkloadEntries without names (reference mtls 4.1, "WorkloadEntry").

use super::view::View;
use super::workload_entry::{Addresses, check_workload};
use crate::field_error::FieldError;

pub(super) fn check(spec: &View<'_>, resolution: &str, errors: &mut Vec<FieldError>) {
    let list = spec.get("endpoints");
    let count = list.elements().count();
    if resolution == "NONE" && count > 0 {
        errors.push(
            list.invalid("resolution NONE goes where the application dials, and has no endpoints")
                .help("write resolution: STATIC (addresses) or DNS (host names)"),
        );
    }
    if resolution == "DYNAMIC_DNS" && count > 0 {
        errors.push(
            list.invalid("resolution DYNAMIC_DNS looks up the name of each request, and has no endpoints")
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
    let addresses = match resolution {
        "DNS" | "DNS_ROUND_ROBIN" => Addresses::Names,
        _ => Addresses::Static,
    };
    let ports: Vec<&str> = spec.get("ports").elements().filter_map(|p| p.get("name").text()).collect();
    for endpoint in list.elements().filter(View::is_object) {
        check_workload(&endpoint, addresses, Some(&ports), errors);
    }
}
