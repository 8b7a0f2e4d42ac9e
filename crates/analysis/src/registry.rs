//! The analyzers by name, and running them.

use crate::analyzers::{
    annotations, application_uid, authentications, authorization_namespaces, authorization_workloads,
    ca_certificates, conditions, destination_hosts, destination_ports, destination_subsets, destination_tls,
    entry_workloads, http_rules, identity_rules, injection, methods, multiple_services, namespaces,
    no_policy, originated_tls, peer_authentications, plaintext, port_level_mtls, port_names, principals,
    providers, revocations, schema, service_entries, service_ports, shadowed, sidecar_defaults,
    sidecar_selectors, token_rules,
};
use crate::mesh::{Mesh, Settings};
use crate::message::{self, Message};
use crate::report::Report;
use crate::resource::Resource;

/// One analyzer.
#[derive(Debug, Clone, Copy)]
pub struct Analyzer {
    /// As `--analyzer` takes it and `-L` lists it.
    pub name: &'static str,
    /// What it looks for.
    pub description: &'static str,
    run: fn(&Mesh<'_>, &mut Report),
}

macro_rules! analyzers {
    ($($name:literal $module:ident $description:literal;)*) => {
        /// All of them. Where Istio has the analyzer, it is Istio's name.
        pub static ANALYZERS: &[Analyzer] =
            &[$(Analyzer { name: $name, description: $description, run: $module::analyze }),*];
    };
}

analyzers! {
    "annotations.K8sAnalyzer" annotations
        "Checks Istio's annotations on namespaces, services and pods for misplaced, unknown, deprecated and invalid ones";
    "applicationUID.Analyzer" application_uid
        "Checks that no application runs as the sidecar's user 1337";
    "auth.AuthorizationPoliciesAnalyzer" authorization_workloads
        "Checks that authorization policies select workloads of the mesh";
    "auth.AuthorizationPoliciesNamespaceAnalyzer" authorization_namespaces
        "Checks that namespaces named in authorization policies exist";
    "auth.PrincipalAnalyzer" principals
        "Checks that principals and service accounts named in authorization policies exist";
    "auth.ProviderAnalyzer" providers
        "Checks that the providers of CUSTOM policies exist, that no workload has several, and that they are asked";
    "auth.TokenRuleAnalyzer" token_rules
        "Checks that tokens named in authorization policies are looked at for their workloads";
    "auth.UnknownMethodAnalyzer" methods
        "Checks that methods named in authorization policies are methods of HTTP";
    "auth.ServicePortAnalyzer" service_ports
        "Checks for ports of services in authorization policies, which see ports of workloads";
    "auth.IdentityWithoutMtlsAnalyzer" identity_rules
        "Checks for rules about callers' identities on ports that accept plaintext";
    "auth.HttpRuleOnTcpPortAnalyzer" http_rules
        "Checks for rules about HTTP requests on ports that carry TCP";
    "auth.ShadowedPolicyAnalyzer" shadowed
        "Checks for ALLOW policies that a DENY rule makes pointless";
    "auth.WorkloadWithoutPolicyAnalyzer" no_policy
        "Checks for workloads that no authorization policy selects, so that anyone may call them";
    "authn.RequestAuthenticationAnalyzer" authentications
        "Checks whom request authentications select, where they take keys from, and whether a token is asked for";
    "authn.PeerAuthenticationConflictAnalyzer" peer_authentications
        "Checks for peer authentications of one scope, of which only the oldest counts";
    "authn.PortLevelMtlsAnalyzer" port_level_mtls
        "Checks that ports with an mTLS mode of their own are ports of the workload";
    "authn.PlaintextAnalyzer" plaintext
        "Checks for ports that accept plaintext only where mutual TLS is the rule";
    "conditions.ConditionAnalyzer" conditions
        "Checks for conditions in the status of objects that are False";
    "deployment.MultiServiceAnalyzer" multiple_services
        "Checks that services in front of one deployment agree on its ports";
    "destinationrule.CaCertificateAnalyzer" ca_certificates
        "Checks that TLS to a destination verifies the server's certificate against a CA of its own";
    "destinationrule.HostAnalyzer" destination_hosts
        "Checks that hosts of destination rules exist";
    "destinationrule.OriginatedTlsAnalyzer" originated_tls
        "Checks for ports where TLS of the application would be encrypted once more";
    "destinationrule.PortAnalyzer" destination_ports
        "Checks that settings of destination rules for ports fit the ports of the host";
    "destinationrule.PodNotSelectedAnalyzer" destination_subsets
        "Checks that subsets of destination rules select pods";
    "destinationrule.TlsAgainstServerAnalyzer" destination_tls
        "Checks TLS settings of destination rules against what the servers accept";
    "injection.Analyzer" injection
        "Checks that namespaces and pods take part in the injection of sidecars";
    "namespace.MissingAnalyzer" namespaces
        "Checks that the namespaces of objects exist";
    "revocation.Analyzer" revocations
        "Checks that every revocation can be read and so is in force";
    "schema.ValidationAnalyzer" schema
        "Checks every Istio object against its schema and rules";
    "service.PortNameAnalyzer" port_names
        "Checks that the names of service ports tell their protocol";
    "serviceentry.Analyzer" service_entries
        "Checks service entries for ports that cannot be told apart and that contradict each other";
    "serviceentry.WorkloadAnalyzer" entry_workloads
        "Checks that service entries select workloads, and that workload entries are selected";
    "sidecar.DefaultSelectorAnalyzer" sidecar_defaults
        "Checks that a namespace has one sidecar without selector at most";
    "sidecar.SelectorAnalyzer" sidecar_selectors
        "Checks that sidecars select workloads, no two the same, and that hosts they name exist";
}

/// The analyzers with these names; all if none of the names is known, as with istioctl.
pub fn select(names: &[String]) -> Vec<&'static Analyzer> {
    let chosen: Vec<_> =
        ANALYZERS.iter().filter(|analyzer| names.iter().any(|name| name == analyzer.name)).collect();
    if chosen.is_empty() { ANALYZERS.iter().collect() } else { chosen }
}

/// What the analyzers find in the objects, in order and each once.
pub fn analyze(resources: &[Resource], settings: Settings, analyzers: &[&Analyzer]) -> Vec<Message> {
    let mesh = Mesh::new(resources, settings);
    let mut report = Report::default();
    for analyzer in analyzers {
        (analyzer.run)(&mesh, &mut report);
    }
    let mut messages = report.into_messages();
    message::sort(&mut messages);
    messages
}
