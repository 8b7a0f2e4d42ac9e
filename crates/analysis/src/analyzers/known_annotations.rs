//! Istio's annotations (istio.io/api annotation): on what they mean something, and which are outlived.

/// One annotation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) name: &'static str,
    /// Kinds on which it means something.
    pub(super) kinds: &'static [&'static str],
    /// What has replaced it.
    pub(super) deprecated: Option<&'static str>,
}

const ANY: &[&str] = &[];
const POD: &[&str] = &["Pod"];
const SERVICE: &[&str] = &["Service"];
const NAMESPACE: &[&str] = &["Namespace"];
const POLICY: &[&str] = &["AuthorizationPolicy"];
const GATEWAY: &[&str] = &["Gateway", "GatewayClass"];

macro_rules! known {
    ($($name:literal $kinds:ident $(-> $deprecated:literal)?;)*) => {
        static KNOWN: &[Known] = &[$(Known {
            name: $name,
            kinds: $kinds,
            deprecated: known!(@ $($deprecated)?),
        }),*];
    };
    (@ $deprecated:literal) => { Some($deprecated) };
    (@) => { None };
}

known! {
    "alpha.istio.io/canonical-serviceaccounts" SERVICE -> "subjectAltNames of a DestinationRule";
    "alpha.istio.io/kubernetes-serviceaccounts" SERVICE -> "subjectAltNames of a DestinationRule";
    "ambient.istio.io/bypass-inbound-capture" POD;
    "ambient.istio.io/dns-capture" POD;
    "ambient.istio.io/redirection" POD;
    "ambient.istio.io/waypoint-inbound-binding" GATEWAY;
    "galley.istio.io/analyze-suppress" ANY;
    "gateway.istio.io/controller-version" GATEWAY;
    "gateway.istio.io/name-override" GATEWAY;
    "gateway.istio.io/service-account" GATEWAY;
    "inject.istio.io/templates" POD;
    "internal.istio.io/parents" ANY;
    "istio.io/connect-strategy" POD;
    "istio.io/dry-run" POLICY;
    "istio.io/reroute-virtual-interfaces" POD;
    "istio.io/rev" POD;
    "istio.io/workloadController" ANY;
    "networking.istio.io/address-type" GATEWAY;
    "networking.istio.io/exportTo" SERVICE;
    "networking.istio.io/service-type" GATEWAY;
    "networking.istio.io/traffic-distribution" SERVICE;
    "prometheus.istio.io/merge-metrics" POD;
    "proxy.istio.io/config" POD;
    "proxy.istio.io/overrides" POD;
    "readiness.status.sidecar.istio.io/applicationPorts" POD;
    "readiness.status.sidecar.istio.io/failureThreshold" POD;
    "readiness.status.sidecar.istio.io/initialDelaySeconds" POD;
    "readiness.status.sidecar.istio.io/periodSeconds" POD;
    "sidecar.istio.io/agentLogLevel" POD;
    "sidecar.istio.io/bootstrapOverride" POD;
    "sidecar.istio.io/componentLogLevel" POD;
    "sidecar.istio.io/controlPlaneAuthPolicy" POD -> "mutual TLS to the control plane, which is always on";
    "sidecar.istio.io/discoveryAddress" POD -> "proxy.istio.io/config with discoveryAddress";
    "sidecar.istio.io/enableCoreDump" POD;
    "sidecar.istio.io/extraStatTags" POD;
    "sidecar.istio.io/inject" POD -> "the label of the same name";
    "sidecar.istio.io/interceptionMode" POD;
    "sidecar.istio.io/logLevel" POD;
    "sidecar.istio.io/nativeSidecar" POD;
    "sidecar.istio.io/proxyCPU" POD;
    "sidecar.istio.io/proxyCPULimit" POD;
    "sidecar.istio.io/proxyImage" POD;
    "sidecar.istio.io/proxyImageType" POD;
    "sidecar.istio.io/proxyMemory" POD;
    "sidecar.istio.io/proxyMemoryLimit" POD;
    "sidecar.istio.io/rewriteAppHTTPProbers" POD;
    "sidecar.istio.io/statsCompression" POD;
    "sidecar.istio.io/statsHistogramBuckets" POD;
    "sidecar.istio.io/statsInclusionPrefixes" POD -> "proxyStatsMatcher in proxy.istio.io/config";
    "sidecar.istio.io/statsInclusionRegexps" POD -> "proxyStatsMatcher in proxy.istio.io/config";
    "sidecar.istio.io/statsInclusionSuffixes" POD -> "proxyStatsMatcher in proxy.istio.io/config";
    "sidecar.istio.io/status" POD;
    "sidecar.istio.io/userVolume" POD;
    "sidecar.istio.io/userVolumeMount" POD;
    "status.sidecar.istio.io/port" POD;
    "topology.istio.io/controlPlaneClusters" NAMESPACE;
    "traffic.istio.io/nodeSelector" SERVICE;
    "traffic.sidecar.istio.io/excludeInboundPorts" POD;
    "traffic.sidecar.istio.io/excludeInterfaces" POD;
    "traffic.sidecar.istio.io/excludeOutboundIPRanges" POD;
    "traffic.sidecar.istio.io/excludeOutboundPorts" POD;
    "traffic.sidecar.istio.io/includeInboundPorts" POD;
    "traffic.sidecar.istio.io/includeOutboundIPRanges" POD;
    "traffic.sidecar.istio.io/includeOutboundPorts" POD;
    "traffic.sidecar.istio.io/kubevirtInterfaces" POD -> "istio.io/reroute-virtual-interfaces";
}

/// The annotation of this name.
pub(super) fn find(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// All names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.name)
}

/// Whether Istio claims the name for itself.
pub(super) fn is_istios(name: &str) -> bool {
    let domain = name.split_once('/').map_or("", |(domain, _)| domain);
    domain == "istio.io" || domain.ends_with(".istio.io")
}
