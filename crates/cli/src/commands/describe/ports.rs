//! A Service's ports, and the rules that concern them.

use maille_config::HostPattern;
use maille_config::destination_rule::{Client, Mesh, Target, in_force};
use maille_config::istio::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, DestinationRule, LoadBalancerSettings,
    OutlierDetection, Subset,
};
use maille_config::k8s::IntOrString;
use maille_config::k8s::api::core::v1::{Pod, Service, ServicePort};
use maille_core::{CLUSTER_DOMAIN, Labels, PortProtocol};
use maille_proto::facts as wire;

use super::Report;
use super::facts::Facts;
use super::pod::{Proxy, rules_of};

/// A Service, its ports, and per port what the mesh makes of it.
pub(super) fn describe(
    facts: &Facts,
    service: &Service,
    pod: Option<&Pod>,
    proxy: Option<&Proxy>,
    report: &mut Report,
) {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    report.line(format!("Service: {name}.{}", facts.namespace));
    let ports: Vec<&ServicePort> = service
        .spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten())
        .filter(|port| port.protocol.as_deref() != Some("UDP"))
        .collect();
    for port in &ports {
        let target = target_of(port, pod);
        let protocol = protocol(port, target, proxy);
        let label = port.name.as_deref().unwrap_or_default();
        let space = if label.is_empty() { "" } else { " " };
        let target = target.map_or_else(|| target_text(port), |target| target.to_string());
        report.line(format!("   Port: {label}{space}{}/{protocol} targets pod port {target}", port.port));
    }
    let several = ports.len() > 1;
    for port in ports {
        if several {
            report.line(format!("{}:", port.port));
        }
        destination_rules(facts, name, port, pod, report);
        let target = target_of(port, pod);
        if let (Some(proxy), Some(target)) = (proxy, target) {
            let rules = rules_of(&proxy.shapes, u32::from(target));
            // The first line is istioctl's; the others it does not have.
            for (title, names) in [
                ("RBAC policies", rules.enforced),
                ("External authorization", rules.asking),
                ("Dry-run policies", rules.shadow),
            ] {
                if !names.is_empty() {
                    report.line(format!("{title}: {}", names.into_iter().collect::<Vec<_>>().join(", ")));
                }
            }
        }
    }
}

/// The workload port behind a service port.
fn target_of(port: &ServicePort, pod: Option<&Pod>) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => {
            let containers = pod.and_then(|pod| pod.spec.as_ref()).map(|spec| &spec.containers);
            let mut ports =
                containers.into_iter().flatten().flat_map(|container| container.ports.iter().flatten());
            let named = ports.find(|port| port.name.as_deref() == Some(name))?;
            u16::try_from(named.container_port).ok()
        }
    }
}

fn target_text(port: &ServicePort) -> String {
    match &port.target_port {
        Some(IntOrString::String(name)) => name.clone(),
        Some(IntOrString::Int(number)) => number.to_string(),
        None => port.port.to_string(),
    }
}

/// How the proxy understands the port; without a proxy, how the declaration reads.
fn protocol(port: &ServicePort, target: Option<u16>, proxy: Option<&Proxy>) -> &'static str {
    let inbound = proxy.and_then(|proxy| proxy.dump.facts.as_ref()).and_then(|facts| facts.inbound.as_ref());
    let own = inbound
        .into_iter()
        .flat_map(|inbound| &inbound.ports)
        .find(|own| target.is_some_and(|target| own.port == u32::from(target)));
    match own.map(wire::InboundPort::protocol) {
        Some(wire::Protocol::Auto) => "auto-detect",
        Some(wire::Protocol::Http) => "HTTP",
        Some(wire::Protocol::Http2) => "HTTP2",
        Some(wire::Protocol::Tcp) => "TCP",
        Some(wire::Protocol::Tls) => "TLS",
        None => {
            let number = u16::try_from(port.port).unwrap_or(0);
            match PortProtocol::of_port(port.app_protocol.as_deref(), port.name.as_deref(), number) {
                PortProtocol::Auto => "auto-detect",
                PortProtocol::Http => "HTTP",
                PortProtocol::Http2 => "HTTP2",
                PortProtocol::Tcp => "TCP",
            }
        }
    }
}

/// The rule that clients of the Pod's own namespace follow.
fn destination_rules(
    facts: &Facts,
    service: &str,
    port: &ServicePort,
    pod: Option<&Pod>,
    report: &mut Report,
) {
    let labels: Labels = pod.and_then(|pod| pod.metadata.labels.clone()).unwrap_or_default();
    let host = HostPattern::new(&format!("{service}.{}.svc.{CLUSTER_DOMAIN}", facts.namespace));
    let found = in_force(
        &facts.destination_rules,
        Mesh { root_namespace: &facts.root_namespace, cluster_domain: CLUSTER_DOMAIN },
        Client { namespace: &facts.namespace, labels: &labels },
        Target { host: &host, namespace: &facts.namespace },
    );
    for rule in found.iter().flat_map(|found| &found.rules) {
        describe_rule(rule, port, pod, report);
    }
}

/// istioctl's lines (printDestinationRule).
fn describe_rule(rule: &DestinationRule, port: &ServicePort, pod: Option<&Pod>, report: &mut Report) {
    let name = rule.metadata.name.as_deref().unwrap_or_default();
    let namespace = rule.metadata.namespace.as_deref().unwrap_or_default();
    report.line(format!("DestinationRule: {name}.{namespace} for \"{}\"", rule.spec.host));
    subsets(rule, pod, report);
    let Some(policy) = &rule.spec.traffic_policy else {
        report.line("   No Traffic Policy");
        return;
    };
    if let Some(tls) = &policy.tls {
        report.line(format!("   Traffic Policy TLS Mode: {}", mode(tls)));
    }
    let parts = parts(
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
    );
    if let Some(parts) = &parts {
        report.line(format!("   Policies: {parts}"));
    }
    if policy.tls.is_none() && parts.is_none() && policy.port_level_settings.is_empty() {
        report.line("   No Traffic Policy");
    }
    let own = policy.port_level_settings.iter().find(|settings| {
        settings.port.is_some_and(|selected| i64::from(selected.number) == i64::from(port.port))
    });
    if let Some(own) = own {
        report.line("   Port Level Settings:");
        report.line(format!("      {}:", port.port));
        report.line(format!("         TLS Mode: {}", own.tls.as_ref().map_or("(auto)", mode)));
        let parts = self::parts(
            own.load_balancer.as_ref(),
            own.connection_pool.as_ref(),
            own.outlier_detection.as_ref(),
        );
        if let Some(parts) = parts {
            report.line(format!("         Policies: {parts}"));
        }
    }
}

/// Which of a rule's subsets the Pod is in.
fn subsets(rule: &DestinationRule, pod: Option<&Pod>, report: &mut Report) {
    let Some(pod) = pod.filter(|_| !rule.spec.subsets.is_empty()) else { return };
    let labels: Labels = pod.metadata.labels.clone().unwrap_or_default();
    let (inside, outside) = parted(rule, &labels);
    if inside.is_empty() {
        report.warn("   ", format!("POD DOES NOT MATCH ANY SUBSETS.  (Non matching subsets {outside})"));
    }
    report.line(format!("   Matching subsets: {inside}"));
    if !outside.is_empty() {
        report.line(format!("      (Non-matching subsets {outside})"));
    }
}

/// The names of subsets that workloads with these labels are in, and of the others.
fn parted(rule: &DestinationRule, labels: &Labels) -> (String, String) {
    let (inside, outside): (Vec<_>, Vec<_>) = rule
        .spec
        .subsets
        .iter()
        .partition(|subset| subset.labels.iter().all(|(key, value)| labels.get(key) == Some(value)));
    let names = |subsets: Vec<&Subset>| {
        subsets.iter().map(|subset| subset.name.as_str()).collect::<Vec<_>>().join(",")
    };
    (names(inside), names(outside))
}

/// `load balancer/connection pool/outlier detection`, those that are set.
fn parts(
    load_balancer: Option<&LoadBalancerSettings>,
    connection_pool: Option<&ConnectionPoolSettings>,
    outlier_detection: Option<&OutlierDetection>,
) -> Option<String> {
    let set = [
        load_balancer.map(|_| "load balancer"),
        connection_pool.map(|_| "connection pool"),
        outlier_detection.map(|_| "outlier detection"),
    ];
    let names: Vec<&str> = set.into_iter().flatten().collect();
    (!names.is_empty()).then(|| names.join("/"))
}

fn mode(tls: &ClientTlsSettings) -> &'static str {
    match tls.mode {
        ClientTlsMode::Disable => "DISABLE",
        ClientTlsMode::Simple => "SIMPLE",
        ClientTlsMode::Mutual => "MUTUAL",
        ClientTlsMode::IstioMutual => "ISTIO_MUTUAL",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn policies_and_subsets_are_named_as_istioctl_does() {
        let rule: DestinationRule = serde_json::from_value(json!({"spec": {
            "host": "web",
            "trafficPolicy": {"outlierDetection": {}, "loadBalancer": {"simple": "RANDOM"}},
            "subsets": [
                {"name": "v1", "labels": {"version": "1"}}, {"name": "v2", "labels": {"version": "2"}},
                {"name": "all"}, {"name": "v3", "labels": {"version": "3"}},
            ],
        }}))
        .expect("a rule");
        let labels = [("version".to_owned(), "1".to_owned())].into();
        assert_eq!(parted(&rule, &labels), ("v1,all".to_owned(), "v2,v3".to_owned()));
        let policy = rule.spec.traffic_policy.expect("a policy");
        let of = |pool: Option<&ConnectionPoolSettings>| {
            parts(policy.load_balancer.as_ref(), pool, policy.outlier_detection.as_ref())
        };
        assert_eq!(of(None).as_deref(), Some("load balancer/outlier detection"));
        let pool = ConnectionPoolSettings::default();
        assert_eq!(of(Some(&pool)).as_deref(), Some("load balancer/connection pool/outlier detection"));
        assert_eq!(parts(None, None, None), None);
    }
}
