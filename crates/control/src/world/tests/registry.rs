//! Events of what makes clients differ, and of what is selected: Sidecars, WorkloadEntries, other names, Secrets.

use serde_json::json;

use super::*;

/// Hosts that a Sidecar imports.
const IMPORTS: [&str; 6] =
    ["*/*", "./*", "shop/*", "*/*.corp", "bank/o0.bank.svc.cluster.local", "~shop/a.corp"];

fn sidecar(n: u8, app: Option<u8>, hosts: &[usize], outbound: Option<bool>, limits: bool) -> istio::Sidecar {
    let egress = match hosts {
        [] => json!([]),
        some => json!([{"hosts": some.iter().map(|i| IMPORTS[*i]).collect::<Vec<_>>()}]),
    };
    let mode = outbound.map(|only| json!({"mode": if only { "REGISTRY_ONLY" } else { "ALLOW_ANY" }}));
    let pool = limits.then(|| json!({"tcp": {"maxConnections": 9}}));
    let mut sidecar: istio::Sidecar = serde_json::from_value(json!({
        "metadata": {"namespace": name(n).namespace, "name": name(n).name},
        "spec": {"egress": egress, "outboundTrafficPolicy": mode, "inboundConnectionPool": pool},
    }))
    .expect("a Sidecar");
    sidecar.spec.workload_selector =
        app.map(|a| istio::EntrySelector { labels: [("app".to_owned(), format!("a{a}"))].into() });
    sidecar
}

fn workload_entry(n: u8, address: u8, app: u8, account: bool) -> istio::WorkloadEntry {
    serde_json::from_value(json!({
        "metadata": {"namespace": name(n).namespace, "name": format!("w{n}")},
        "spec": {
            "address": format!("192.0.2.{address}"),
            "labels": {"app": format!("a{app}")},
            "serviceAccount": if account { "vm" } else { "" },
            "weight": u32::from(address),
        },
    }))
    .expect("a WorkloadEntry")
}

/// An entry that selects workloads, and may have addresses in its status.
fn selecting_entry(n: u8, host: &str, app: u8, allocated: Option<u8>) -> istio::ServiceEntry {
    let status =
        allocated.map(|a| json!({"addresses": [{"host": host, "value": format!("240.240.0.{}", 1 + a)}]}));
    serde_json::from_value(json!({
        "metadata": {"namespace": name(n).namespace, "name": name(n).name},
        "spec": {
            "hosts": [host], "resolution": "STATIC", "location": "MESH_INTERNAL",
            "workloadSelector": {"labels": {"app": format!("a{app}")}},
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}],
        },
        "status": status,
    }))
    .expect("an entry")
}

/// A rule with all that is told beside TLS.
fn traffic_rule(n: u8, host: &str, app: Option<u8>, block: u8, secret: u8) -> istio::DestinationRule {
    let policy = match block {
        0 => json!({"connectionPool": {"tcp": {"maxConnections": 1 + n}}}),
        1 => json!({"loadBalancer": {"simple": "PASSTHROUGH"}}),
        2 => json!({"tls": {"mode": "MUTUAL", "credentialName": format!("s{secret}")}}),
        _ => json!({"outlierDetection": {}, "tls": {"mode": "SIMPLE", "credentialName": "configmap://c"}}),
    };
    let selector = app.map(|a| json!({"matchLabels": {"app": format!("a{a}")}}));
    serde_json::from_value(json!({
        "metadata": {"namespace": name(n).namespace, "name": name(n).name},
        "spec": {
            "host": host, "trafficPolicy": policy, "workloadSelector": selector,
            "subsets": [{"name": "v1", "labels": {"app": "a1"}}],
        },
    }))
    .expect("a rule")
}

fn alias(n: u8, target: &str) -> Service {
    Service { external_name: Some(target.to_owned()), headless: false, ..service(n, None, None) }
}

/// What services of type ExternalName are other names of.
const TARGETS: [&str; 5] = [
    "o0.shop.svc.cluster.local",
    "o1.shop.svc.cluster.local",
    "o0.bank.svc.cluster.local",
    "a.corp",
    "www.example.com",
];

pub(super) fn sources() -> Vec<CredentialSource> {
    let all = ["shop/s0", "shop/s1", "bank/s0", "istio-system/s0", "configmap://shop/c"];
    all.iter().map(|text| CredentialSource::parse(text).expect("a name")).collect()
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let n = 0..6u8;
    let app = || prop::option::of(0..3u8);
    let hosts = prop::collection::vec(0..IMPORTS.len(), 0..3);
    prop_oneof![
        (n.clone(), app(), hosts, prop::option::of(any::<bool>()), any::<bool>())
            .prop_map(|(n, app, h, o, l)| Event::Sidecar(Change::Put(sidecar(n, app, &h, o, l)))),
        n.clone().prop_map(|n| Event::Sidecar(Change::Delete(name(n)))),
        (n.clone(), 0..3u8, 0..3u8, any::<bool>())
            .prop_map(|(n, a, app, s)| Event::WorkloadEntry(Change::Put(workload_entry(n, a, app, s)))),
        n.clone().prop_map(|n| {
            Event::WorkloadEntry(Change::Delete(NamespacedName::new(name(n).namespace, format!("w{n}"))))
        }),
        (n.clone(), 0..HOSTS.len(), 0..3u8, prop::option::of(0..3u8)).prop_map(|(n, h, app, a)| {
            Event::ServiceEntry(Change::Put(selecting_entry(n, HOSTS[h], app, a)))
        }),
        (n.clone(), 0..HOSTS.len(), app(), 0..4u8, 0..2u8).prop_map(|(n, h, app, b, s)| {
            Event::DestinationRule(Change::Put(traffic_rule(n, HOSTS[h], app, b, s)))
        }),
        (n.clone(), 0..4u8, 0..3u8, any::<bool>()).prop_map(|(n, a, app, ready)| {
            Event::Pod(Change::Put(Pod { ready, ..pod(n, a, app, false) }))
        }),
        (n.clone(), 0..TARGETS.len()).prop_map(|(n, t)| Event::Service(Change::Put(alias(n, TARGETS[t])))),
        (n.clone(), 0..3u8, app(), 0..3u8).prop_map(|(n, a, app, e)| {
            Event::Service(Change::Put(Service { export_to: exports(e), ..service(n, Some(a), app) }))
        }),
        (0..3u8, n, 0..4u8, 0..6u8).prop_map(|(s, of, a, p)| {
            let mut slice = slice(s, of, a, Some(p), true);
            slice.endpoints[0].hostname = Some("p".to_owned());
            Event::Slice(Change::Put(slice))
        }),
        (0..sources().len(), 0..3u8).prop_map(|(source, v)| {
            let data = match v {
                0 => CredentialData::Failed("missing".to_owned()),
                v => {
                    CredentialData::Known(Arc::new(Material { private_key: vec![v], ..Material::default() }))
                }
            };
            Event::Credential(sources()[source].clone(), data)
        }),
    ]
}
