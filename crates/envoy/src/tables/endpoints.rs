use serde_json::Value;

use super::{Table, address_of, headings, list, text};

/// Which endpoints are wanted; empty means all.
#[derive(Debug, Clone, Default)]
pub struct EndpointFilter {
    /// Address.
    pub address: Option<String>,
    /// Port.
    pub port: Option<u64>,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// `healthy`, `unhealthy`, …
    pub status: Option<String>,
}

impl EndpointFilter {
    fn wants(&self, cluster: &str, host: &Value) -> bool {
        let (address, port) = address_of(&host["address"]);
        self.cluster.as_ref().is_none_or(|wanted| wanted == cluster)
            && self.address.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(&address))
            && self.port.is_none_or(|wanted| port == Some(wanted))
            && self.status.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(&status(host)))
    }

    /// The cluster statuses with the wanted hosts only; those without any are left out.
    pub fn select(&self, statuses: &[Value]) -> Vec<Value> {
        let selected = statuses.iter().filter_map(|status| {
            let name = text(&status["name"]);
            let hosts: Vec<_> =
                list(&status["hostStatuses"]).filter(|host| self.wants(name, host)).cloned().collect();
            let mut status = status.clone();
            let fields = status.as_object_mut().filter(|_| !hosts.is_empty())?;
            fields.insert("hostStatuses".to_owned(), Value::Array(hosts));
            Some(status)
        });
        selected.collect()
    }
}

/// `ENDPOINT | STATUS | OUTLIER CHECK | CLUSTER`.
pub fn endpoints(statuses: &[Value]) -> Table {
    let mut rows: Vec<_> = statuses
        .iter()
        .flat_map(|cluster| list(&cluster["hostStatuses"]).map(move |host| (text(&cluster["name"]), host)))
        .map(|(cluster, host)| {
            let (address, port) = address_of(&host["address"]);
            let failed = host["healthStatus"]["failedOutlierCheck"] == true;
            let endpoint = match port {
                Some(port) if address.contains(':') => format!("[{address}]:{port}"),
                Some(port) => format!("{address}:{port}"),
                None => address,
            };
            let outlier = if failed { "FAILED" } else { "OK" };
            vec![endpoint, status(host), outlier.to_owned(), cluster.to_owned()]
        })
        .collect();
    rows.sort();
    let mut table = vec![headings(&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"])];
    table.extend(rows);
    table
}

fn status(host: &Value) -> String {
    match host["healthStatus"]["edsHealthStatus"].as_str() {
        None | Some("UNKNOWN") => "HEALTHY".to_owned(),
        Some(status) => status.to_owned(),
    }
}
