//! The order of what is said of a Pod, and of a Service.

use anyhow::{Context, Result};
use maille_config::k8s::api::core::v1::{Container, ContainerStatus, Pod, Service};
use maille_envoy::{Dump, LoadedRules, loaded_rules};
use maille_proto::facts::ConfigDump;
use serde_json::Value;

use super::facts::Facts;
use super::{Report, ports, security, sidecar, tokens};
use crate::client::Api;
use crate::commands::admin::{self, PodRef};

const SIDECAR: &str = "istio-proxy";

/// A proxy as it is, in its own words and in Envoy's shapes.
pub(super) struct Proxy {
    pub(super) dump: ConfigDump,
    pub(super) shapes: Dump,
}

impl Proxy {
    async fn ask(api: &Api, pod: &PodRef, port: u16) -> Result<Self> {
        let dump = admin::config_dump(api, pod, port).await?;
        let shapes = Dump::of_proxy(&dump);
        Ok(Self { dump, shapes })
    }
}

/// Everything of a Pod.
pub(super) async fn describe(
    api: &Api,
    facts: &Facts,
    named: &PodRef,
    admin_port: u16,
    ignore_unmeshed: bool,
    report: &mut Report,
) -> Result<()> {
    let object = api.get(&format!("/api/v1/namespaces/{}/pods/{}", named.namespace, named.name)).await?;
    let pod: Pod = serde_json::from_value(object).context("the Pod is not readable")?;
    report.line(format!("Pod: {named}"));
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    report.line(format!("   Pod Revision: {}", labels.get("istio.io/rev").map_or("default", String::as_str)));
    report.line(format!("   {}", pod_ports(&pod)));
    warn_of_users(&pod, report);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    if phase != "Running" {
        report.warn("", format!("Pod {named} is not running ({phase}); nothing more can be said of it"));
        return Ok(());
    }
    warn_of_readiness(&pod, named, report);
    if !is_meshed(&pod) {
        if !ignore_unmeshed {
            report.warn("", format!("{} is not part of mesh; no Istio sidecar", named.name));
            security::of_unmeshed(facts, &pod, report);
        }
        return Ok(());
    }
    if !["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
        .iter()
        .any(|key| labels.contains_key(*key))
    {
        report.line(
            "Suggestion: add label 'app' or 'service.istio.io/canonical-name' to the Pod for telemetry.",
        );
    }
    if !["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]
        .iter()
        .any(|key| labels.contains_key(*key))
    {
        report.line("Suggestion: add label 'version' or 'service.istio.io/canonical-revision' to the Pod for telemetry.");
    }
    let proxy = Proxy::ask(api, named, admin_port).await?;
    let services = facts.services_of(&pod);
    if services.is_empty() {
        report.warn("", format!("no Service selects Pod {named}: its ports are undeclared, and detected"));
    }
    for service in services {
        report.separate();
        ports::describe(facts, service, Some(&pod), Some(&proxy), report);
    }
    report.separate();
    security::peer_authentication(facts, &pod, &proxy, report);
    tokens::request_authentication(facts, &pod, &proxy, report);
    security::authorization(facts, &pod, &proxy, report);
    security::plaintext_callers(&proxy, report);
    sidecar::effective(facts, &pod, &proxy, report);
    for problem in admin::problems(&proxy.dump) {
        report.warn("", problem);
    }
    Ok(())
}

/// Everything of a Service; its policies as the first ready Pod has them.
pub(super) async fn describe_service(
    api: &Api,
    facts: &Facts,
    name: &str,
    namespace: &str,
    admin_port: u16,
    report: &mut Report,
) -> Result<()> {
    let of_name = |service: &&Service| service.metadata.name.as_deref() == Some(name);
    let service = facts.services.iter().find(of_name);
    let service = service.with_context(|| format!("there is no Service {name} in namespace {namespace}"))?;
    let list = api.get(&format!("/api/v1/namespaces/{namespace}/pods")).await?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let pods: Vec<Pod> = pods
        .into_iter()
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()
        .context("a Pod is not readable")?;
    let own: Vec<&Pod> = pods
        .iter()
        .filter(|pod| facts.services_of(pod).iter().any(|one| one.metadata.name == service.metadata.name))
        .collect();
    let meshed = own.iter().find(|pod| is_meshed(pod) && is_ready(pod));
    let proxy = match meshed {
        Some(pod) => {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let pod = PodRef { namespace: namespace.to_owned(), name };
            Some(Proxy::ask(api, &pod, admin_port).await?)
        }
        None => None,
    };
    ports::describe(facts, service, meshed.copied(), proxy.as_ref(), report);
    if let Some(proxy) = &proxy {
        tokens::of_service(proxy, report);
    } else {
        report.warn(
            "",
            format!("Service {name}.{namespace} has no Istio pods. ({} pods in service)", own.len()),
        );
    }
    Ok(())
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let native = init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.into_iter().flat_map(|spec| &spec.containers).chain(native)
}

fn is_meshed(pod: &Pod) -> bool {
    containers(pod).any(|container| container.name == SIDECAR)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// `Pod Ports: 8080 (app), 15090 (istio-proxy)`.
fn pod_ports(pod: &Pod) -> String {
    let ports: Vec<String> = containers(pod)
        .flat_map(|container| container.ports.iter().flatten().map(move |port| (container, port)))
        .map(|(container, port)| {
            let protocol = port.protocol.as_deref().filter(|protocol| *protocol != "TCP");
            let protocol = protocol.map(|protocol| format!("/{protocol}")).unwrap_or_default();
            format!("{}{protocol} ({})", port.container_port, container.name)
        })
        .collect();
    match ports.is_empty() {
        true => "Pod does not expose ports".to_owned(),
        false => format!("Pod Ports: {}", ports.join(", ")),
    }
}

fn warn_of_users(pod: &Pod, report: &mut Report) {
    let reserved = i64::from(maille_core::ports::PROXY_UID);
    let of_pod =
        pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()).and_then(|c| c.run_as_user);
    let of_containers = containers(pod).filter(|container| container.name != SIDECAR).any(|container| {
        container.security_context.as_ref().and_then(|context| context.run_as_user) == Some(reserved)
    });
    if of_pod == Some(reserved) || of_containers {
        report.warn("   ", format!("User ID (UID) {reserved} is reserved for the sidecar proxy."));
    }
}

fn warn_of_readiness(pod: &Pod, named: &PodRef, report: &mut Report) {
    let Some(status) = &pod.status else { return };
    let not_ready = |statuses: &Option<Vec<ContainerStatus>>, is_init: bool| -> Vec<String> {
        let done = |one: &ContainerStatus| {
            is_init
                && one
                    .state
                    .as_ref()
                    .is_some_and(|state| state.terminated.as_ref().is_some_and(|t| t.exit_code == 0))
        };
        statuses.iter().flatten().filter(|one| !one.ready && !done(one)).map(|one| one.name.clone()).collect()
    };
    for name in not_ready(&status.init_container_statuses, true) {
        report.warn("", format!("Pod {named} Init Container {name} NOT READY"));
    }
    for name in not_ready(&status.container_statuses, false) {
        report.warn("", format!("Pod {named} Container {name} NOT READY"));
    }
}

/// Rules that the filters of an inbound port hold.
pub(super) fn rules_of(shapes: &Dump, port: u32) -> LoadedRules {
    let inbound = shapes.listeners.iter().filter(|listener| listener["name"] == "virtualInbound");
    let chains = inbound.flat_map(|listener| listener["filterChains"].as_array().into_iter().flatten());
    let own: Value =
        chains.filter(|chain| chain["filterChainMatch"]["destinationPort"] == port).cloned().collect();
    loaded_rules(&own)
}
