//! Bytes in, bytes out: one query answered from the zone.

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record as DnsRecord, RecordType};
use maille_core::CLUSTER_DOMAIN;
use std::net::IpAddr;

use super::zone::{Record, Zone};

/// How long answers may be kept: names follow their objects soon.
const TTL_S: u32 = 5;

/// A datagram without EDNS carries this much (RFC 1035 section 4.2.1).
const SMALLEST_DATAGRAM: usize = 512;

/// What becomes of a query.
#[derive(Debug)]
pub(super) enum Reply {
    /// These bytes go back.
    Answer(Vec<u8>),
    /// Not a name of the cluster: to be asked elsewhere.
    Elsewhere,
    /// Nothing goes back: it was no query.
    Nothing,
}

/// Answers `query` from `zone`. Never fails: what cannot be understood gets FORMERR or nothing.
pub(super) fn answer(query: &[u8], zone: &Zone, over_tcp: bool) -> Reply {
    let message = match Message::from_vec(query) {
        Ok(message) if message.metadata.message_type == MessageType::Query => message,
        Ok(_) => return Reply::Nothing,
        Err(_) => return malformed(query),
    };
    let mut response = Message::response(message.metadata.id, message.metadata.op_code);
    response.metadata.recursion_desired = message.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    let [question] = message.queries.as_slice() else {
        response.metadata.response_code = ResponseCode::FormErr;
        return to_bytes(&response, over_tcp, &message);
    };
    response.add_query(question.clone());
    if message.metadata.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
        return to_bytes(&response, over_tcp, &message);
    }
    let name = question.name().to_string().trim_end_matches('.').to_lowercase();
    let (found, ttl_s, apex) = if Zone::is_own(&name) {
        (zone.lookup(&name), TTL_S, CLUSTER_DOMAIN)
    } else if let Some(external) = zone.external(&name) {
        (Some(external.records.clone()), external.ttl_s.unwrap_or(TTL_S), name.as_str())
    } else if let Some(named) = zone.reverse(&name) {
        (Some(named), TTL_S, name.as_str())
    } else {
        return Reply::Elsewhere;
    };
    response.metadata.authoritative = true;
    match found {
        _ if question.query_class() != DNSClass::IN => {
            response.metadata.response_code = ResponseCode::Refused
        }
        None => response.metadata.response_code = ResponseCode::NXDomain,
        Some(records) => {
            add_records(&mut response, question.name(), question.query_type(), ttl_s, records, zone)
        }
    }
    if response.answers.is_empty()
        && let Some(authority) = authority(apex)
    {
        response.add_authority(authority);
    }
    to_bytes(&response, over_tcp, &message)
}

fn add_records(
    response: &mut Message,
    name: &Name,
    wanted: RecordType,
    ttl_s: u32,
    mut records: Vec<Record>,
    zone: &Zone,
) {
    // Clients that take the first answer should not all take the same.
    if !records.is_empty() {
        let turn = usize::from(response.metadata.id) % records.len();
        records.rotate_left(turn);
    }
    for record in records {
        let data = match (record, wanted) {
            (Record::Address(IpAddr::V4(address)), RecordType::A | RecordType::ANY) => RData::A(A(address)),
            (Record::Address(IpAddr::V6(address)), RecordType::AAAA | RecordType::ANY) => {
                RData::AAAA(AAAA(address))
            }
            (Record::Alias(target), _) => match Name::from_ascii(format!("{target}.")) {
                Ok(target) => RData::CNAME(CNAME(target)),
                Err(_) => continue,
            },
            (Record::Port(port, target), RecordType::SRV | RecordType::ANY) => {
                let Ok(target_name) = Name::from_ascii(format!("{target}.")) else { continue };
                for address in zone.lookup(&target).into_iter().flatten() {
                    if let Record::Address(address) = address {
                        let data = match address {
                            IpAddr::V4(address) => RData::A(A(address)),
                            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
                        };
                        response.add_additional(DnsRecord::from_rdata(target_name.clone(), TTL_S, data));
                    }
                }
                RData::SRV(SRV::new(0, 100, port, target_name))
            }
            (Record::Name(target), RecordType::PTR | RecordType::ANY) => {
                match Name::from_ascii(format!("{target}.")) {
                    Ok(target) => RData::PTR(PTR(target)),
                    Err(_) => continue,
                }
            }
            _ => continue,
        };
        response.add_answer(DnsRecord::from_rdata(name.clone(), ttl_s, data));
    }
}

/// Says how long a "no" may be kept (RFC 2308).
fn authority(apex: &str) -> Option<DnsRecord> {
    let zone = Name::from_ascii(format!("{apex}.")).ok()?;
    let server = Name::from_ascii(format!("ns.dns.{CLUSTER_DOMAIN}.")).ok()?;
    let soa = SOA::new(server.clone(), server, 1, 7200, 1800, 86400, TTL_S);
    Some(DnsRecord::from_rdata(zone, TTL_S, RData::SOA(soa)))
}

/// FORMERR with the query's id, if it has one.
fn malformed(query: &[u8]) -> Reply {
    let is_query = query.get(2).is_some_and(|flags| flags & 0x80 == 0);
    match query {
        [high, low, ..] if is_query => {
            let id = u16::from_be_bytes([*high, *low]);
            let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            message.to_vec().map_or(Reply::Nothing, Reply::Answer)
        }
        _ => Reply::Nothing,
    }
}

/// The answer's bytes; over UDP one that does not fit is marked as cut, so that it is asked again over TCP.
fn to_bytes(response: &Message, over_tcp: bool, query: &Message) -> Reply {
    let limit = match query.edns {
        Some(_) => usize::from(query.max_payload()).max(SMALLEST_DATAGRAM),
        None => SMALLEST_DATAGRAM,
    };
    match response.to_vec() {
        Ok(bytes) if over_tcp || bytes.len() <= limit => Reply::Answer(bytes),
        Ok(_) => response.truncate().to_vec().map_or(Reply::Nothing, Reply::Answer),
        Err(_) => Reply::Nothing,
    }
}

/// SERVFAIL for a query that nobody answered.
pub(super) fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(query).ok()?;
    let mut response = Message::response(message.metadata.id, message.metadata.op_code);
    response.metadata.response_code = ResponseCode::ServFail;
    response.metadata.recursion_desired = message.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_queries(message.queries);
    response.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use maille_config::k8s::api::core::v1::Service;
    use serde_json::json;

    fn zone() -> Zone {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": {
                "external-dns.alpha.kubernetes.io/hostname": "web.example.com",
                "external-dns.alpha.kubernetes.io/ttl": "30"}},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}
        }))
        .expect("a Service");
        Zone::build([&service].into_iter(), std::iter::empty())
    }

    fn ask(name: &str, kind: RecordType) -> Option<Message> {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        match answer(&query.to_vec().expect("bytes"), &zone(), false) {
            Reply::Answer(bytes) => Some(Message::from_vec(&bytes).expect("an answer")),
            _ => None,
        }
    }

    #[test]
    fn a_service_is_answered_in_any_case() {
        let response = ask("Web.Shop.svc.cluster.local.", RecordType::A).expect("answered");
        assert_eq!(response.metadata.response_code, ResponseCode::NoError);
        assert_eq!(response.answers.len(), 1);
    }

    #[test]
    fn a_name_without_such_a_record_is_no_error_and_an_absent_one_is() {
        let aaaa = ask("web.shop.svc.cluster.local.", RecordType::AAAA).expect("answered");
        assert_eq!((aaaa.metadata.response_code, aaaa.answers.len()), (ResponseCode::NoError, 0));
        let absent = ask("web.shop.svc.cluster.local.svc.cluster.local.", RecordType::A).expect("answered");
        assert_eq!((absent.metadata.response_code, absent.authorities.len()), (ResponseCode::NXDomain, 1));
    }

    #[test]
    fn a_name_that_a_service_asked_for_is_answered_with_its_ttl() {
        let response = ask("Web.Example.com.", RecordType::A).expect("answered");
        let answers: Vec<(u32, &RData)> = response.answers.iter().map(|a| (a.ttl, &a.data)).collect();
        assert_eq!(answers, [(30, &RData::A(A("10.96.0.7".parse().expect("an address"))))]);
        let aaaa = ask("web.example.com.", RecordType::AAAA).expect("answered");
        assert_eq!((aaaa.metadata.response_code, aaaa.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(aaaa.authorities.len(), 1);
        assert!(
            ask("example.com.", RecordType::A).is_none()
                && ask("x.web.example.com.", RecordType::A).is_none()
        );
    }

    #[test]
    fn other_names_are_asked_elsewhere() {
        assert!(ask("example.org.", RecordType::A).is_none());
    }

    #[test]
    fn a_port_is_found_by_name() {
        let response = ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV).expect("answered");
        assert_eq!((response.answers.len(), response.additionals.len()), (1, 1));
    }

    #[test]
    fn an_address_of_the_cluster_has_a_name_and_others_are_asked_elsewhere() {
        let response = ask("7.0.96.10.in-addr.arpa.", RecordType::PTR).expect("answered");
        let name = Name::from_ascii("web.shop.svc.cluster.local.").expect("a name");
        assert_eq!(response.answers[0].data, RData::PTR(PTR(name)));
        assert!(ask("1.1.1.1.in-addr.arpa.", RecordType::PTR).is_none());
    }

    #[test]
    fn damaged_packets_never_panic() {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(
            Name::from_ascii("web.shop.svc.cluster.local.").expect("n"),
            RecordType::A,
        ));
        let good = query.to_vec().expect("bytes");
        let zone = zone();
        for cut in 0..good.len() {
            let _ = answer(&good[..cut], &zone, false);
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x3f, 0x7f, 0x80, 0xc0, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = answer(&bad, &zone, true);
                let _ = failure(&bad);
            }
        }
    }
}
