//! How the first bytes of an outbound connection are looked at, and how long they are waited for.

use std::time::Duration;

use maille_core::PortProtocol;

use crate::chain::Inspectors;
use crate::route::Behind;

/// How long a caller is waited for before somebody looks whether the server speaks first: a caller of an unknown address,
/// where something else than its server may be meant, and one of a port that says nothing of its
/// protocol, which would wait with its server for ever (PA-12). To look is to connect: a server whose caller speaks HTTP,
/// only later, sees a connection without a byte, and may refuse it by its policy, which nobody else takes notice of.
pub(crate) const UNKNOWN_PATIENCE: Duration = Duration::from_millis(300);

/// Ports on which servers speak first: their callers would only be held up. Istio's four (istio
/// pkg/config/kube/conversion.go), and others that are well known.
const SERVER_FIRST: [u16; 11] = [21, 22, 25, 53, 110, 143, 587, 3306, 4222, 5900, 27017];

/// Ports of HTTP and TLS, where no server speaks first: whoever seems to there wants plaintext that is not meant for it.
const CLIENT_FIRST: [u16; 4] = [80, 443, 8080, 8443];

/// How the first bytes of a connection are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) class: PortProtocol,
    pub(crate) is_declared: bool,
    pub(crate) wanted: Inspectors,
    /// When the connection counts as opaque if its bytes have not shown what they are ("continue on timeout").
    pub(crate) limit: Option<Duration>,
    /// How long a caller is waited for before the server gets a chance to speak first. A caller that speaks late is
    /// looked at all the same: what a name would have chosen must not leave in plaintext because it came late.
    pub(crate) patience: Option<Duration>,
    /// Whether the server may speak first, and is waited for beside the caller.
    pub(crate) server_first: bool,
    /// A caller that has not spoken by then speaks neither TLS nor HTTP, as far as it is reached over mutual TLS.
    pub(crate) opaque_if_late: bool,
    /// What is found counts only if it names a service of a ServiceEntry: otherwise the bytes stay opaque.
    pub(crate) only_for_entries: bool,
}

impl Plan {
    /// Pure: by what is declared of a port. Where nothing is at the address that was dialled, `looks` says what may be said
    /// by the first bytes; where they cannot say anything they are not waited for (OT-1).
    pub(crate) fn of(
        behind: &Behind<'_>,
        looks: Option<Inspectors>,
        number: u16,
        detection_timeout: Option<Duration>,
    ) -> Self {
        let class = behind.protocol();
        let originates = behind.originates().is_some();
        let plan = |tls, http, limit| Self {
            class,
            is_declared: true,
            wanted: Inspectors { tls, http },
            limit,
            patience: None,
            server_first: !CLIENT_FIRST.contains(&number),
            opaque_if_late: true,
            only_for_entries: false,
        };
        let patient = Some(UNKNOWN_PATIENCE);
        let looks = looks.or(match behind {
            Behind::Undeclared(_) => Some(Inspectors { tls: true, http: true }),
            Behind::Service(..) | Behind::Headless(..) => None,
        });
        if let Some(Inspectors { tls, http }) = looks {
            let tls = tls || (originates && class == PortProtocol::Auto);
            let patience = patient.filter(|_| tls || http);
            // However late the caller speaks, it may mean somebody else than who gets opaque bytes.
            return Self { is_declared: false, patience, opaque_if_late: false, ..plan(tls, http, None) };
        }
        match (behind, class) {
            (Behind::Service(_, port), _) if port.is_tls => {
                Self { patience: patient, ..plan(true, port.is_encrypted(), None) }
            }
            // HTTP's callers speak first.
            (_, PortProtocol::Http | PortProtocol::Http2) => plan(originates, false, None),
            (_, PortProtocol::Auto) => {
                let patience = patient.filter(|_| !CLIENT_FIRST.contains(&number));
                let patience =
                    patience.filter(|patience| detection_timeout.is_none_or(|limit| limit > *patience));
                Self {
                    patience,
                    opaque_if_late: false,
                    ..plan(originates || may_be_outside(behind), true, detection_timeout)
                }
            }
            (_, PortProtocol::Tcp) => {
                let looks = !originates && !SERVER_FIRST.contains(&number) && may_be_outside(behind);
                let patience = patient.filter(|_| looks);
                Self { only_for_entries: true, patience, ..plan(looks, looks, None) }
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
            traffic: None,
            terms: None,
        }
    }

    fn looks(meshed: bool, protocol: PortProtocol, number: u16) -> (Inspectors, Option<Duration>) {
        let (workload, port) = (Arc::new(Workload { meshed, ..Workload::default() }), headless(protocol));
        let plan = Plan::of(&Behind::Headless(&workload, &port), None, number, None);
        (plan.wanted, plan.patience)
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
    fn servers_of_undeclared_protocols_may_speak_first_but_not_where_callers_do() {
        let patience = |number, limit| {
            let (workload, port) =
                (Arc::new(Workload { meshed: true, ..Workload::default() }), headless(PortProtocol::Auto));
            let plan = Plan::of(&Behind::Headless(&workload, &port), None, number, limit);
            assert!(plan.wanted.http && !plan.opaque_if_late, "a late caller may still speak HTTP");
            plan.patience
        };
        assert_eq!(patience(9000, None), Some(UNKNOWN_PATIENCE));
        for number in CLIENT_FIRST {
            assert_eq!(patience(number, None), None, "{number}");
        }
        // Who detects for a shorter time goes on as opaque bytes after it anyway.
        assert_eq!(patience(9000, Some(Duration::from_millis(100))), None);
        assert_eq!(patience(9000, Some(Duration::from_secs(5))), Some(UNKNOWN_PATIENCE));
    }

    #[test]
    fn what_may_be_outside_is_looked_at_and_its_server_may_speak_first() {
        let both = Inspectors { tls: true, http: true };
        assert_eq!(looks(false, PortProtocol::Tcp, 9443), (both, Some(UNKNOWN_PATIENCE)));
        let (workload, port) = (Arc::new(Workload::default()), headless(PortProtocol::Tcp));
        let first = |number| Plan::of(&Behind::Headless(&workload, &port), None, number, None).server_first;
        assert!(first(9443) && !first(443), "on HTTPS's port callers speak first");
        let plan = Plan::of(&Behind::Undeclared(None), None, 25, None);
        assert_eq!((plan.wanted, plan.patience, plan.is_declared), (both, Some(UNKNOWN_PATIENCE), false));
    }

    #[test]
    fn an_address_that_says_nothing_is_looked_at_for_what_its_port_means_and_no_more() {
        let plan =
            |tls, http| Plan::of(&Behind::Undeclared(None), Some(Inspectors { tls, http }), 9000, None);
        let nothing = plan(false, false);
        assert_eq!((nothing.wanted, nothing.patience), (Inspectors { tls: false, http: false }, None));
        for (tls, http) in [(true, false), (false, true)] {
            let looked_at = plan(tls, http);
            assert_eq!(looked_at.wanted, Inspectors { tls, http });
            assert_eq!(looked_at.patience, Some(UNKNOWN_PATIENCE), "its server may speak first");
        }
    }
}
