use serde_json::Value;

use super::{Table, headings, list, text};

/// Domains shown of a virtual host.
const DOMAINS_SHOWN: usize = 3;

/// `NAME | VHOST NAME | DOMAINS | MATCH | VIRTUAL SERVICE`.
pub fn routes(routes: &[Value]) -> Table {
    let mut sorted: Vec<&Value> = routes.iter().collect();
    sorted.sort_by_key(|route| name(route));
    let mut table = vec![headings(&["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"])];
    for config in sorted {
        for host in list(&config["virtualHosts"]) {
            for route in list(&host["routes"]) {
                table.push(vec![
                    text(&config["name"]).to_owned(),
                    text(&host["name"]).to_owned(),
                    domains(host),
                    matching(&route["match"]),
                    virtual_service(route),
                ]);
            }
        }
    }
    table
}

/// `NAME | VIRTUAL HOSTS`.
pub fn routes_brief(routes: &[Value]) -> Table {
    let mut sorted: Vec<&Value> = routes.iter().collect();
    sorted.sort_by_key(|route| name(route));
    let mut table = vec![headings(&["NAME", "VIRTUAL HOSTS"])];
    table.extend(sorted.iter().map(|config| {
        vec![text(&config["name"]).to_owned(), list(&config["virtualHosts"]).count().to_string()]
    }));
    table
}

/// Names that are ports in the order of numbers, before all others.
fn name(route: &Value) -> (u32, String) {
    let name = text(&route["name"]);
    (name.parse().unwrap_or(u32::MAX), name.to_owned())
}

fn domains(host: &Value) -> String {
    let all: Vec<_> = list(&host["domains"]).map(text).collect();
    let shown = all.get(..DOMAINS_SHOWN).unwrap_or(&all).join(", ");
    match all.len().checked_sub(DOMAINS_SHOWN) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => shown,
    }
}

fn matching(matched: &Value) -> String {
    let path = |field: &str| matched[field].as_str().map(str::to_owned);
    let path = path("prefix")
        .map(|prefix| format!("{prefix}*"))
        .or_else(|| path("path"))
        .or_else(|| path("pathSeparatedPrefix").map(|prefix| format!("PathPrefix:{prefix}")))
        .or_else(|| matched["safeRegex"]["regex"].as_str().map(|regex| format!("regex {regex}")));
    let headers = list(&matched["headers"]).map(|header| text(&header["name"])).collect::<Vec<_>>();
    match (path, headers.is_empty()) {
        (Some(path), true) => path,
        (Some(path), false) => format!("{path} {}", headers.join(" ")),
        (None, _) => "*".to_owned(),
    }
}

fn virtual_service(route: &Value) -> String {
    if let Some(status) = route["directResponse"]["status"].as_u64() {
        return status.to_string();
    }
    let path = text(&route["metadata"]["filterMetadata"]["istio"]["config"]);
    let mut parts = path.rsplit('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some("virtual-service"), Some(namespace)) => format!("{name}.{namespace}"),
        _ => String::new(),
    }
}
