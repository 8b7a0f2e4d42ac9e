//! The JSON shape of a line, the same whatever is covered.
//!
//! Istio's keys (reference cli-and-telemetry 4.1), numbers as numbers, what is missing `null`. Added: `event` (`refused`,
//! `audited`, `request`, `connection`), `pod`, `direction`, `refusal` (the `reason` label of `maille_refusals_total`), `policy`
//! (`namespace/name`), `rule`, `reason` (for people), `mtls`, `tls_key_exchange`, `port`, `service`, and for `source` and `destination`:
//! `…_identity`, `…_workload`, `…_namespace`, `…_address`; `audit_policy` and `istio_dry_run_…` where there is such a policy.

use serde_json::{Map, Value, json};

use super::bounded;
use super::entry::{Entry, Event, policy_name, rule_id, shadows, shown, without_query};
use crate::labels::Peer;

impl Entry<'_> {
    pub(super) fn json(&self, pod: &str) -> String {
        let labels = self.labels;
        let (received, sent) = self.bytes();
        let way = self.way();
        let policy = self.refusal.and_then(|refusal| refusal.policy);
        let mut object = json!({
            "start_time": self.start_time(),
            "protocol": Value::Null,
            "response_code": 0,
            "response_flags": self.flags().as_str(),
            "response_code_details": self.response_code_details(),
            "connection_termination_details": self.termination_details(),
            "upstream_transport_failure_reason": self.transport_failure(),
            "bytes_received": received,
            "bytes_sent": sent,
            "duration": self.duration_ms(),
            "upstream_service_time": self.upstream_time_ms(),
            "upstream_host": text(&shown(way.upstream)),
            "upstream_cluster": self.cluster(),
            "upstream_local_address": text(&shown(way.upstream_local)),
            "downstream_local_address": text(&shown(way.downstream_local)),
            "downstream_remote_address": text(&shown(way.downstream_remote)),
            "requested_server_name": text(way.server_name),
            "route_name": self.route(),
            "event": self.word(),
            "pod": text(pod),
            "direction": self.direction(),
            "refusal": self.refusal.map(|refusal| refusal.kind.as_str()),
            "policy": policy.map(|policy| policy_name(&policy)),
            "rule": policy.map(|policy| policy.rule),
            "reason": self.refusal.map_or(Value::Null, |refusal| text(refusal.reason)),
            "mtls": labels.mtls,
            "tls_key_exchange": text(labels.key_exchange),
            "port": labels.port,
            "service": text(&labels.service.host),
        });
        let Some(map) = object.as_object_mut() else { return String::new() };
        let mut insert = |key: &str, value: Value| map.insert(key.to_owned(), value);
        for key in ["method", "path", "authority", "x_forwarded_for", "user_agent", "request_id"] {
            insert(key, Value::Null);
        }
        if let Event::Request(line, outcome) = &self.event {
            insert("method", text(line.method));
            insert("path", text(without_query(line.path)));
            insert("protocol", text(line.protocol));
            insert("response_code", outcome.code.into());
            insert("x_forwarded_for", text(line.forwarded_for));
            insert("user_agent", text(line.user_agent));
            insert("request_id", text(line.request_id));
            insert("authority", text(line.authority));
        }
        if let Some(audit) = &self.marks().audit {
            insert("audit_policy", rule_id(audit).into());
        }
        for (key, id_key, shadow) in shadows(self.marks()) {
            insert(key, shadow.result().into());
            insert(id_key, shadow.policy.as_ref().map_or_else(|| "none".to_owned(), rule_id).into());
        }
        for (end, peer) in [("source", &labels.source), ("destination", &labels.destination)] {
            insert_peer(map, end, peer);
        }
        object.to_string()
    }
}

fn text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { Value::from(bounded(text)) }
}

fn insert_peer(map: &mut Map<String, Value>, end: &str, peer: &Peer) {
    map.insert(format!("{end}_identity"), text(&peer.workload.principal));
    map.insert(format!("{end}_workload"), text(&peer.workload.name));
    map.insert(format!("{end}_namespace"), text(&peer.workload.namespace));
    map.insert(format!("{end}_address"), peer.address.map(|a| a.to_string()).into());
}
