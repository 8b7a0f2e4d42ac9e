//! Names of all findings: Istio's codes with Istio's levels (reference cli 2), and Maille's own.

use std::fmt;

/// How much a finding matters; the worst is greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Probably not what was meant.
    Warning,
    /// Does not work.
    Error,
}

impl Level {
    /// Istio's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// In any case (`--failure-threshold warning`).
impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Info, Self::Warning, Self::Error]
            .into_iter()
            .find(|level| level.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("'{text}' is no level; write Info, Warning or Error"))
    }
}

/// The stable name of a sort of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `IST0101`, `ML0201`.
    pub code: &'static str,
    /// `ReferencedResourceNotFound`.
    pub name: &'static str,
    /// What it is reported with.
    pub level: Level,
}

impl Code {
    /// Where Istio explains the finding; Maille's own codes have no page there.
    pub fn documentation_url(&self) -> Option<String> {
        self.code.starts_with("IST").then(|| {
            format!(
                "https://istio.io/latest/docs/reference/config/analysis/{}/?ref=istioctl-analyze",
                self.code.to_ascii_lowercase()
            )
        })
    }
}

/// The code with this name, in any case.
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|known| known.code.eq_ignore_ascii_case(code)).copied()
}

macro_rules! codes {
    ($($(#[$doc:meta])* $constant:ident = $code:literal $name:ident $level:ident;)*) => {
        $($(#[$doc])* pub static $constant: Code =
            Code { code: $code, name: stringify!($name), level: Level::$level };)*

        /// All of them, by code.
        pub static CODES: &[&Code] = &[$(&$constant),*];
    };
}

codes! {
    /// A policy names a namespace that does not exist.
    REFERENCED_RESOURCE_NOT_FOUND = "IST0101" ReferencedResourceNotFound Error;
    /// A namespace neither asks for sidecars nor says that it wants none.
    NAMESPACE_NOT_INJECTED = "IST0102" NamespaceNotInjected Info;
    /// A Pod that should have a sidecar has none.
    POD_MISSING_PROXY = "IST0103" PodMissingProxy Warning;
    /// An Istio object that is not valid.
    SCHEMA_VALIDATION_ERROR = "IST0106" SchemaValidationError Error;
    /// An annotation on a kind that it says nothing about.
    MISPLACED_ANNOTATION = "IST0107" MisplacedAnnotation Warning;
    /// An annotation of Istio's domain that Istio does not have.
    UNKNOWN_ANNOTATION = "IST0108" UnknownAnnotation Warning;
    /// Sidecars of which only one counts for a workload.
    CONFLICTING_SIDECAR_WORKLOAD_SELECTORS = "IST0110" ConflictingSidecarWorkloadSelectors Error;
    /// Sidecars of which only one counts for a namespace.
    MULTIPLE_SIDECARS_WITHOUT_WORKLOAD_SELECTORS = "IST0111" MultipleSidecarsWithoutWorkloadSelectors Error;
    /// One Deployment behind Services that read one port differently.
    DEPLOYMENT_ASSOCIATED_TO_MULTIPLE_SERVICES = "IST0116" DeploymentAssociatedToMultipleServices Warning;
    /// A port whose name does not say its protocol.
    PORT_NAME_IS_NOT_UNDER_NAMING_CONVENTION = "IST0118" PortNameIsNotUnderNamingConvention Info;
    /// Contradicting labels for injection.
    NAMESPACE_MULTIPLE_INJECTION_LABELS = "IST0123" NamespaceMultipleInjectionLabels Warning;
    /// An annotation with a value that it cannot have.
    INVALID_ANNOTATION = "IST0125" InvalidAnnotation Warning;
    /// A policy that selects nothing.
    NO_MATCHING_WORKLOADS_FOUND = "IST0127" NoMatchingWorkloadsFound Warning;
    /// TLS to a server whose certificate is held against the operating system's roots only.
    NO_SERVER_CERTIFICATE_VERIFICATION_DESTINATION_LEVEL = "IST0128" NoServerCertificateVerificationDestinationLevel Warning;
    /// The same for one port.
    NO_SERVER_CERTIFICATE_VERIFICATION_PORT_LEVEL = "IST0129" NoServerCertificateVerificationPortLevel Warning;
    /// Accepted, but seldom meant.
    SCHEMA_WARNING = "IST0133" SchemaWarning Warning;
    /// A TCP ServiceEntry that cannot be told from others.
    SERVICE_ENTRY_ADDRESSES_REQUIRED = "IST0134" ServiceEntryAddressesRequired Warning;
    /// An annotation that something else has replaced.
    DEPRECATED_ANNOTATION = "IST0135" DeprecatedAnnotation Info;
    /// One target port behind Services with different ports.
    DEPLOYMENT_CONFLICTING_PORTS = "IST0137" DeploymentConflictingPorts Warning;
    /// An application that runs as the sidecar's user.
    INVALID_APPLICATION_UID = "IST0144" InvalidApplicationUID Warning;
    /// The status of an object says that something of it is not so.
    NEGATIVE_CONDITION_STATUS = "IST0171" NegativeConditionStatus Warning;
    /// A subset that selects no Pod.
    DESTINATION_RULE_SUBSET_NOT_SELECT_PODS = "IST0173" DestinationRuleSubsetNotSelectPods Error;
    /// A rule for a host that nothing declares.
    UNKNOWN_DESTINATION_RULE_HOST = "IST0174" UnknownDestinationRuleHost Warning;
    /// ServiceEntries that declare one port differently.
    CONFLICTING_SERVICE_ENTRY_PROTOCOL = "IST0177" ConflictingServiceEntryProtocol Warning;
    /// Valid, but nothing enforces it (config's code for the same).
    NOT_ENFORCED = "ML0108" NotEnforced Error;
    /// Several PeerAuthentications for one scope: all but one are ignored.
    CONFLICTING_PEER_AUTHENTICATIONS = "ML0201" ConflictingPeerAuthentications Warning;
    /// A mode for a port that the workload does not have.
    PORT_LEVEL_MTLS_WITHOUT_PORT = "ML0202" PortLevelMtlsWithoutPort Warning;
    /// Clients told to speak what the server refuses.
    DESTINATION_RULE_AGAINST_SERVER = "ML0203" DestinationRuleAgainstServer Error;
    /// Clients told to speak mutual TLS to workloads without sidecar.
    ISTIO_MUTUAL_WITHOUT_SIDECAR = "ML0204" IstioMutualWithoutSidecar Error;
    /// A principal that no ServiceAccount has.
    UNKNOWN_PRINCIPAL = "ML0205" UnknownPrincipal Warning;
    /// A rule about identities on a port where callers may have none.
    IDENTITY_RULE_WITHOUT_MTLS = "ML0206" IdentityRuleWithoutMtls Warning;
    /// A rule about requests on a port without requests.
    HTTP_RULE_ON_TCP_PORT = "ML0207" HttpRuleOnTcpPort Warning;
    /// Workloads that anyone may call.
    NO_AUTHORIZATION_POLICY = "ML0208" NoAuthorizationPolicy Info;
    /// Plaintext only, where mutual TLS is the rule.
    PLAINTEXT_IN_STRICT_MESH = "ML0209" PlaintextInStrictMesh Warning;
    /// An https:// call would be encrypted twice.
    ENCRYPTED_TWICE = "ML0210" EncryptedTwice Info;
    /// An annotation that Istio has and Maille does not act upon.
    ANNOTATION_WITHOUT_EFFECT = "ML0211" AnnotationWithoutEffect Info;
    /// An ALLOW policy that a DENY rule makes pointless.
    SHADOWED_POLICY = "ML0212" ShadowedPolicy Warning;
    /// A CUSTOM policy asks somebody whom the mesh configuration does not have: what it matches is refused.
    UNKNOWN_PROVIDER = "ML0213" UnknownProvider Error;
    /// Policies of one workload ask several: what they match is refused.
    SEVERAL_PROVIDERS = "ML0214" SeveralProviders Error;
    /// A rule about tokens that nothing looks at.
    TOKEN_RULE_WITHOUT_AUTHENTICATION = "ML0215" TokenRuleWithoutAuthentication Warning;
    /// Keys that anyone on the way can replace.
    KEYS_OVER_PLAINTEXT = "ML0216" KeysOverPlaintext Warning;
    /// A method that no request has.
    UNKNOWN_METHOD = "ML0217" UnknownMethod Warning;
    /// The port of a Service where the workload's is meant.
    SERVICE_PORT_IN_POLICY = "ML0218" ServicePortInPolicy Warning;
    /// An object in a namespace that does not exist.
    NAMESPACE_NOT_FOUND = "ML0219" NamespaceNotFound Warning;
    /// Tokens are verified, and requests without one pass.
    TOKENS_NOT_REQUIRED = "ML0220" TokensNotRequired Info;
    /// A provider that speaks HTTP is not asked about TCP.
    TCP_PASSES_UNASKED = "ML0221" TcpPassesUnasked Warning;
    /// A ServiceEntry without endpoints.
    SERVICE_ENTRY_SELECTS_NOTHING = "ML0222" ServiceEntrySelectsNothing Warning;
    /// A workload that nothing leads to.
    WORKLOAD_ENTRY_NOT_SELECTED = "ML0223" WorkloadEntryNotSelected Info;
    /// A Sidecar shows a host that nothing declares.
    UNKNOWN_EGRESS_HOST = "ML0224" UnknownEgressHost Warning;
    /// Settings for a port that the host does not have.
    PORT_SETTINGS_WITHOUT_PORT = "ML0225" PortSettingsWithoutPort Warning;
    /// Settings about requests on a port without requests.
    HTTP_SETTINGS_ON_TCP_PORT = "ML0226" HttpSettingsOnTcpPort Warning;
    /// A revocation that cannot be read, and so revokes nobody.
    REVOCATION_NOT_IN_FORCE = "ML0227" RevocationNotInForce Error;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_found_in_any_case() {
        for (index, code) in CODES.iter().enumerate() {
            assert_eq!(find(&code.code.to_lowercase()), Some(*code));
            assert!(
                CODES.iter().skip(index + 1).all(|other| other.code != code.code && other.name != code.name)
            );
        }
        assert_eq!(find("IST9999"), None);
    }

    #[test]
    fn only_istios_codes_have_a_page_of_istio() {
        let url = REFERENCED_RESOURCE_NOT_FOUND.documentation_url();
        let expected = "https://istio.io/latest/docs/reference/config/analysis/ist0101/?ref=istioctl-analyze";
        assert_eq!(url.as_deref(), Some(expected));
        assert_eq!(NOT_ENFORCED.documentation_url(), None);
    }
}
