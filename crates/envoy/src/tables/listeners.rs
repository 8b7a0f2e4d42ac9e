use std::cmp::Reverse;

use serde_json::Value;

use super::{Table, address_of, headings, list, text};

/// Which listeners are wanted; empty means all.
#[derive(Debug, Clone, Default)]
pub struct ListenerFilter {
    /// Address.
    pub address: Option<String>,
    /// Port.
    pub port: Option<u64>,
    /// `HTTP`, `TCP`, `HTTP+TCP` or `UNKNOWN`.
    pub kind: Option<String>,
}

impl ListenerFilter {
    /// Whether a listener is wanted.
    pub fn wants(&self, listener: &Value) -> bool {
        let (address, port) = address_of(&listener["address"]);
        let others = list(&listener["additionalAddresses"]).map(|other| address_of(&other["address"]).0);
        let is_address =
            |wanted: &String| std::iter::once(address).chain(others).any(|a| a.eq_ignore_ascii_case(wanted));
        self.address.as_ref().is_none_or(is_address)
            && self.port.is_none_or(|wanted| port == Some(wanted))
            && self.kind.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(kind(listener)))
    }
}

/// `ADDRESSES | PORT | MATCH | DESTINATION`, a row per filter chain.
pub fn listeners(listeners: &[Value]) -> Table {
    let mut table = vec![headings(&["ADDRESSES", "PORT", "MATCH", "DESTINATION"])];
    for listener in sorted(listeners) {
        let (addresses, port) = cells(listener);
        let default = listener.get("defaultFilterChain").filter(|chain| chain.is_object());
        let chains = list(&listener["filterChains"]).chain(default);
        let mut rows: Vec<_> =
            chains.map(|chain| (matching(&chain["filterChainMatch"]), destination(chain))).collect();
        rows.sort_by_key(|(_, destination)| Reverse(destination.clone()));
        let full = |(matching, destination)| vec![addresses.clone(), port.clone(), matching, destination];
        table.extend(rows.into_iter().map(full));
    }
    table
}

/// `ADDRESSES | PORT | TYPE`.
pub fn listeners_brief(listeners: &[Value]) -> Table {
    let mut table = vec![headings(&["ADDRESSES", "PORT", "TYPE"])];
    for listener in sorted(listeners) {
        let (addresses, port) = cells(listener);
        table.push(vec![addresses, port, kind(listener).to_owned()]);
    }
    table
}

fn sorted(listeners: &[Value]) -> Vec<&Value> {
    let mut sorted: Vec<&Value> = listeners.iter().collect();
    sorted.sort_by_key(|listener| {
        let (address, port) = address_of(&listener["address"]);
        (port, address, kind(listener))
    });
    sorted
}

fn cells(listener: &Value) -> (String, String) {
    let (address, port) = address_of(&listener["address"]);
    let others = list(&listener["additionalAddresses"]).map(|other| address_of(&other["address"]).0);
    let addresses: Vec<_> = std::iter::once(address).chain(others).collect();
    (addresses.join(","), port.map_or_else(|| "0".to_owned(), |port| port.to_string()))
}

/// What a listener's chains are; one that goes nowhere does not count.
fn kind(listener: &Value) -> &'static str {
    let (mut http, mut tcp) = (false, false);
    for filter in list(&listener["filterChains"]).flat_map(|chain| list(&chain["filters"])) {
        match text(&filter["name"]) {
            "envoy.filters.network.http_connection_manager" => http = true,
            "envoy.filters.network.tcp_proxy" => {
                tcp |= filter["typedConfig"]["cluster"] != "BlackHoleCluster"
            }
            _ => {}
        }
    }
    match (http, tcp) {
        (true, true) => "HTTP+TCP",
        (true, false) => "HTTP",
        (false, true) => "TCP",
        (false, false) => "UNKNOWN",
    }
}

/// Sets of application protocols that istioctl has a short name for.
const SHORT: [(&str, &[&str]); 4] = [
    ("HTTP TLS", &["http/1.0", "http/1.1", "h2c", "istio-http/1.0", "istio-http/1.1", "istio-h2"]),
    ("Istio HTTP Plain", &["istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"]),
    ("TCP TLS", &["istio-peer-exchange", "istio"]),
    ("HTTP", &["http/1.0", "http/1.1", "h2c"]),
];

fn matching(matched: &Value) -> String {
    let mut parts = Vec::new();
    let texts = |field: &str| list(&matched[field]).map(text).collect::<Vec<_>>();
    let names = texts("serverNames");
    if !names.is_empty() {
        parts.push(format!("SNI: {}", names.join(",")));
    }
    if let Some(transport) = matched["transportProtocol"].as_str().filter(|transport| !transport.is_empty()) {
        parts.push(format!("Trans: {transport}"));
    }
    let applications = texts("applicationProtocols");
    if !applications.is_empty() {
        let same = |set: &&[&str]| {
            set.len() == applications.len() && set.iter().all(|protocol| applications.contains(protocol))
        };
        let short = SHORT.iter().find(|(_, set)| same(set)).map(|(name, _)| (*name).to_owned());
        parts.push(format!("App: {}", short.unwrap_or_else(|| applications.join(","))));
    }
    let port = matched["destinationPort"].as_u64().map(|port| format!(":{port}"));
    let ranges: Vec<_> = list(&matched["prefixRanges"])
        .map(|range| {
            let length = range["prefixLen"].as_u64().unwrap_or(0);
            format!("{}/{length}{}", text(&range["addressPrefix"]), port.as_deref().unwrap_or_default())
        })
        .collect();
    match (ranges.is_empty(), port) {
        (false, _) => parts.push(format!("Addr: {}", ranges.join(","))),
        (true, Some(port)) => parts.push(format!("Addr: *{port}")),
        (true, None) => {}
    }
    if parts.is_empty() { "ALL".to_owned() } else { parts.join("; ") }
}

fn destination(chain: &Value) -> String {
    let of = |name: &str| list(&chain["filters"]).find(|filter| text(&filter["name"]) == name);
    if let Some(http) = of("envoy.filters.network.http_connection_manager") {
        let config = &http["typedConfig"];
        return match config["rds"]["routeConfigName"].as_str() {
            Some(name) => format!("Route: {name}"),
            None => inline_route(&config["routeConfig"]),
        };
    }
    match of("envoy.filters.network.tcp_proxy") {
        Some(tcp) => cluster(text(&tcp["typedConfig"]["cluster"])),
        None => "Non-HTTP/Non-TCP".to_owned(),
    }
}

/// Names such as PassthroughCluster say themselves what they are.
fn cluster(name: &str) -> String {
    if name.contains("Cluster") { name.to_owned() } else { format!("Cluster: {name}") }
}

fn inline_route(config: &Value) -> String {
    let hosts: Vec<_> = list(&config["virtualHosts"]).collect();
    let routes: Vec<_> = hosts.iter().flat_map(|host| list(&host["routes"])).collect();
    if let ([_], [route]) = (hosts.as_slice(), routes.as_slice())
        && route["match"]["prefix"] == "/"
        && let Some(name) = route["route"]["cluster"].as_str()
    {
        return cluster(name);
    }
    let matches: Vec<_> =
        routes.iter().map(|route| format!("{}*", text(&route["match"]["prefix"]))).collect();
    format!("Inline Route: {}", matches.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn matches_read_as_istios() {
        for (matched, expected) in [
            (json!({}), "ALL"),
            (json!({"destinationPort": 80}), "Addr: *:80"),
            (
                json!({"destinationPort": 80, "prefixRanges": [{"addressPrefix": "10.0.0.1", "prefixLen": 32}]}),
                "Addr: 10.0.0.1/32:80",
            ),
            (
                json!({"transportProtocol": "tls", "applicationProtocols": ["istio", "istio-peer-exchange"]}),
                "Trans: tls; App: TCP TLS",
            ),
            (
                json!({"transportProtocol": "raw_buffer", "applicationProtocols": ["http/1.1", "h2c"]}),
                "Trans: raw_buffer; App: http/1.1,h2c",
            ),
            (json!({"serverNames": ["a", "b"]}), "SNI: a,b"),
        ] {
            assert_eq!(matching(&matched), expected);
        }
    }

    #[test]
    fn a_chain_to_nowhere_makes_no_tcp_listener() {
        let tcp = |cluster: &str| json!({"name": "envoy.filters.network.tcp_proxy", "typedConfig": {"cluster": cluster}});
        let with = |cluster: &str| json!({"filterChains": [{"filters": [tcp(cluster)]}]});
        assert_eq!((kind(&with("BlackHoleCluster")), kind(&with("x"))), ("UNKNOWN", "TCP"));
    }
}
