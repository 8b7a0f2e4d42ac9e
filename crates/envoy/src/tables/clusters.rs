use serde_json::Value;

use super::{Table, headings, text};

/// Which clusters are wanted; empty means all.
#[derive(Debug, Clone, Default)]
pub struct ClusterFilter {
    /// Part of the service's name.
    pub fqdn: Option<String>,
    /// Service port.
    pub port: Option<u32>,
    /// Part of the subset's name.
    pub subset: Option<String>,
    /// `inbound` or `outbound`.
    pub direction: Option<String>,
}

/// The parts of Istio's name of a cluster.
struct Name<'a> {
    direction: &'a str,
    port: &'a str,
    subset: &'a str,
    fqdn: &'a str,
}

/// `outbound|80||cart.production.svc.cluster.local`; another name is all FQDN.
fn parse(name: &str) -> Name<'_> {
    let parts: Vec<_> = name.split('|').collect();
    match parts.as_slice() {
        [direction, port, subset, fqdn] => Name { direction, port, subset, fqdn },
        _ => Name { direction: "-", port: "-", subset: "-", fqdn: name },
    }
}

impl ClusterFilter {
    /// Whether a cluster is wanted.
    pub fn wants(&self, cluster: &Value) -> bool {
        let name = parse(text(&cluster["name"]));
        self.fqdn.as_ref().is_none_or(|part| name.fqdn.contains(part.as_str()))
            && self.port.is_none_or(|port| name.port == port.to_string())
            && self.subset.as_ref().is_none_or(|part| name.subset.contains(part.as_str()))
            && self.direction.as_ref().is_none_or(|wanted| name.direction.eq_ignore_ascii_case(wanted))
    }
}

/// `SERVICE FQDN | PORT | SUBSET | DIRECTION | TYPE | DESTINATION RULE`.
pub fn clusters(clusters: &[Value]) -> Table {
    let mut rows: Vec<(String, u32, Vec<String>)> = clusters.iter().map(row).collect();
    rows.sort();
    let mut table =
        vec![headings(&["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"])];
    table.extend(rows.into_iter().map(|(_, _, row)| row));
    table
}

fn row(cluster: &Value) -> (String, u32, Vec<String>) {
    let name = parse(text(&cluster["name"]));
    let dash = |part: &str| if part.is_empty() { "-".to_owned() } else { part.to_owned() };
    let kind = match text(&cluster["type"]) {
        // Protobuf's JSON leaves out what is 0.
        "" if cluster["clusterType"].is_null() => "STATIC".to_owned(),
        "" => text(&cluster["clusterType"]["name"]).to_owned(),
        kind => kind.to_owned(),
    };
    let cells = vec![
        name.fqdn.to_owned(),
        dash(name.port),
        dash(name.subset),
        name.direction.to_owned(),
        kind,
        destination_rule(cluster).unwrap_or_default(),
    ];
    (name.fqdn.to_owned(), name.port.parse().unwrap_or(0), cells)
}

/// `<name>.<namespace>` of the rule that the cluster's metadata names.
fn destination_rule(cluster: &Value) -> Option<String> {
    let path = cluster["metadata"]["filterMetadata"]["istio"]["config"].as_str()?;
    let mut parts = path.rsplit('/');
    let name = parts.next()?;
    (parts.next()? == "destination-rule").then_some(())?;
    Some(format!("{name}.{}", parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_come_apart_and_rules_are_named() {
        let table = clusters(&[
            json!({"name": "PassthroughCluster", "type": "ORIGINAL_DST"}),
            json!({
                "name": "outbound|443|v1|api.example.com",
                "type": "STRICT_DNS",
                "metadata": {"filterMetadata": {"istio": {
                    "config": "/apis/networking.istio.io/v1/namespaces/production/destination-rule/api"
                }}}
            }),
            json!({"name": "inbound|8080||", "type": "ORIGINAL_DST"}),
        ]);
        let lines: Vec<_> = table.iter().skip(1).map(|row| row.join(" ")).collect();
        assert_eq!(
            lines,
            [
                " 8080 - inbound ORIGINAL_DST ",
                "PassthroughCluster - - - ORIGINAL_DST ",
                "api.example.com 443 v1 outbound STRICT_DNS api.production",
            ]
        );
    }

    #[test]
    fn filters_take_parts_of_names() {
        let cluster = json!({"name": "outbound|443|v1|api.example.com"});
        let filter = |fqdn: &str, port| ClusterFilter { fqdn: Some(fqdn.into()), port, ..Default::default() };
        assert!(filter("example", Some(443)).wants(&cluster) && !filter("example", Some(80)).wants(&cluster));
        assert!(!filter("other", None).wants(&cluster));
        let inbound = ClusterFilter { direction: Some("inbound".into()), ..Default::default() };
        assert!(!inbound.wants(&cluster));
    }
}
