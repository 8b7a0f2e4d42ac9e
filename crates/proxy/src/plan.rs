//! How the first bytes of an outbound connection are looked at, and how long they are waited for.

use std::time::Duration;

use maille_core::PortProtocol;

use crate::chain::Inspectors;
use crate::route::Behind;

/// How long a caller of an unknown address is given to show that it speaks HTTP. Istio does not inspect ports
/// that no service declares (OT-1), and servers there may speak first; waiting longer would only hold them up.
pub(crate) const UNKNOWN_PATIENCE: Duration = Duration::from_millis(300);

/// Ports on which servers speak first: their callers would only be held up. Istio's four (istio
/// pkg/config/kube/conversion.go), and others that are well known.
const SERVER_FIRST: [u16; 11] = [21, 22, 25, 53, 110, 143, 587, 3306, 4222, 5900, 27017];

/// How the first bytes of a connection are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) class: PortProtocol,
    pub(crate) is_declared: bool,
    pub(crate) wanted: Inspectors,
    /// How long the caller is waited for.
    pub(crate) limit: Option<Duration>,
    /// What is found counts only if it names a service of a ServiceEntry: otherwise the bytes stay opaque.
    pub(crate) only_for_entries: bool,
}

impl Plan {
    /// Pure: by what is declared of a port.
    pub(crate) fn of(behind: &Behind<'_>, number: u16, detection_timeout: Option<Duration>) -> Self {
        let class = behind.protocol();
        let originates = behind.originates().is_some();
        let plan = |tls, http, limit| Self {
            class,
            is_declared: true,
            wanted: Inspectors { tls, http },
            limit,
            only_for_entries: false,
        };
        match (behind, class) {
            (Behind::Undeclared(_), _) => {
                Self { is_declared: false, ..plan(true, true, Some(UNKNOWN_PATIENCE)) }
            }
            (Behind::Service(_, port), _) if port.is_tls => plan(true, originates, Some(UNKNOWN_PATIENCE)),
            // HTTP's callers speak first.
            (_, PortProtocol::Http | PortProtocol::Http2) => plan(originates, false, None),
            (_, PortProtocol::Auto) => plan(originates || may_be_outside(behind), true, detection_timeout),
            (_, PortProtocol::Tcp) => {
                let looks = !originates && !SERVER_FIRST.contains(&number) && may_be_outside(behind);
                Self { only_for_entries: true, ..plan(looks, looks, Some(UNKNOWN_PATIENCE)) }
            }
        }
    }
}

/// A Service or Pod without sidecar may be what a ServiceEntry's name resolves to: then the name counts.
fn may_be_outside(behind: &Behind<'_>) -> bool {
    match behind {
        Behind::Service(service, _) => service.service_entry.is_none() && !service.has_sidecar(),
        Behind::Headless(workload, _) => !workload.meshed,
        Behind::Undeclared(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use maille_core::EndpointTls;

    use super::*;
    use crate::snapshot::{HeadlessPort, ServiceName, Workload};

    fn headless(protocol: PortProtocol) -> HeadlessPort {
        HeadlessPort {
            port: 443,
            protocol,
            tls: EndpointTls::Plaintext,
            service: Arc::new(ServiceName::default()),
            service_port: 443,
            sni: "x".into(),
            subject_alt_names: Arc::new([]),
            order: None,
        }
    }

    fn looks(meshed: bool, protocol: PortProtocol, number: u16) -> (Inspectors, Option<Duration>) {
        let (workload, port) = (Arc::new(Workload { meshed, ..Workload::default() }), headless(protocol));
        let plan = Plan::of(&Behind::Headless(&workload, &port), number, None);
        (plan.wanted, plan.limit)
    }

    #[test]
    fn declared_tcp_of_the_mesh_is_never_waited_for() {
        let nothing = Inspectors { tls: false, http: false };
        assert_eq!(looks(true, PortProtocol::Tcp, 443).0, nothing);
        for number in SERVER_FIRST {
            assert_eq!(looks(false, PortProtocol::Tcp, number).0, nothing, "{number}");
        }
        assert_eq!(looks(true, PortProtocol::Http, 80).0, nothing);
    }

    #[test]
    fn what_may_be_outside_is_looked_at_with_a_bound() {
        let both = Inspectors { tls: true, http: true };
        assert_eq!(looks(false, PortProtocol::Tcp, 443), (both, Some(UNKNOWN_PATIENCE)));
        let plan = Plan::of(&Behind::Undeclared(None), 25, None);
        assert_eq!((plan.wanted, plan.limit, plan.is_declared), (both, Some(UNKNOWN_PATIENCE), false));
    }
}
