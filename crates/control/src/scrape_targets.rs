//! Where metrics are to be read, for Prometheus' `http_sd_configs`: a Prometheus that cannot watch Kubernetes by
//! itself (Debian's is built without that) asks here.
//!
//! The answer is `[{"targets": ["10.244.0.5:15020"], "labels": {…}}, …]`, one group per Pod, from the annotations
//! `prometheus.io/scrape`, `port`, `path` and `scheme`. An injected Pod says `15020` and `/stats/prometheus`,
//! where the proxy's metrics and the application's own are together.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use crate::world::World;

/// One group as `http_sd_configs` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TargetGroup {
    targets: Vec<String>,
    labels: BTreeMap<&'static str, String>,
}

/// All Pods that want to be read, in the order of their names.
pub(crate) fn of(world: &World) -> Vec<TargetGroup> {
    let wanted = world.pods().filter_map(|pod| Some((pod, pod.scrape.as_ref()?, pod.addresses.first()?)));
    let groups = wanted.map(|(pod, scrape, address)| {
        let label = |key: &str| pod.labels.get(key).cloned();
        let app = label("app").or_else(|| label("app.kubernetes.io/name"));
        let labels = [
            ("__metrics_path__", scrape.path.clone()),
            ("__scheme__", scrape.scheme.clone()),
            ("namespace", pod.name.namespace.clone()),
            ("pod", pod.name.name.clone()),
            ("workload", pod.workload_name.clone()),
        ];
        TargetGroup {
            targets: vec![SocketAddr::new(*address, scrape.port).to_string()],
            labels: labels.into_iter().chain(app.map(|app| ("app", app))).collect(),
        }
    });
    groups.collect()
}
