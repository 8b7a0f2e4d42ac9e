//! DNS messages: questions understood, answers made.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::seq::SliceRandom as _;

/// How long answers may be kept (SE-16).
const TTL_S: u32 = 30;

/// A datagram without EDNS carries this much (RFC 1035 section 4.2.1), and one with it no more than we like to
/// send over the loopback.
const DATAGRAM: std::ops::RangeInclusive<u16> = 512..=4096;

const HEADER: usize = 12;

/// What to do about the bytes of a client.
#[derive(Debug)]
pub(super) enum Received {
    /// The registry may know the answer.
    Address(Box<Question>),
    /// A question that is none for addresses: to be asked elsewhere.
    Other,
    /// This goes back at once.
    Refused(Vec<u8>),
    /// No question at all.
    Nothing,
}

/// A question for addresses.
#[derive(Debug)]
pub(super) struct Question {
    message: Message,
    /// In lower case, without its final dot.
    pub(super) name: String,
    name_asked: Name,
    wants_v4: bool,
    limit: usize,
}

/// Reads what a client sent; `limit` is how much may go back, if that is not up to the client.
pub(super) fn read(bytes: &[u8], limit: Option<usize>) -> Received {
    let message = match Message::from_vec(bytes) {
        Ok(message) if message.metadata.message_type == MessageType::Query => message,
        Ok(_) => return Received::Nothing,
        Err(_) => return error(bytes, ResponseCode::FormErr).map_or(Received::Nothing, Received::Refused),
    };
    let refused = |code| error(bytes, code).map_or(Received::Nothing, Received::Refused);
    let [query] = message.queries.as_slice() else { return refused(ResponseCode::FormErr) };
    if message.metadata.op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    let wants_v4 = match (query.query_class(), query.query_type()) {
        (DNSClass::IN, RecordType::A) => true,
        (DNSClass::IN, RecordType::AAAA) => false,
        _ => return Received::Other,
    };
    let name_asked = query.name().clone();
    let name = name_asked.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let limit = limit.unwrap_or_else(|| match message.edns {
        Some(_) => message.max_payload().clamp(*DATAGRAM.start(), *DATAGRAM.end()).into(),
        None => (*DATAGRAM.start()).into(),
    });
    Received::Address(Box::new(Question { message, name, name_asked, wants_v4, limit }))
}

impl Question {
    /// The answer: the addresses of the family asked for, maybe none, in random order; under `alias` if the name that was
    /// asked for is only another way to write that.
    pub(super) fn answer(&self, alias: Option<&str>, mut addresses: Vec<IpAddr>) -> Option<Vec<u8>> {
        let mut response = self.response();
        response.metadata.authoritative = true;
        let mut owner = self.name_asked.clone();
        if let Some(alias) = alias {
            let target = Name::from_ascii(format!("{alias}.")).ok()?;
            let alias = RData::CNAME(CNAME(target.clone()));
            response.add_answer(Record::from_rdata(owner, TTL_S, alias));
            owner = target;
        }
        addresses.retain(|address| self.wants(address));
        addresses.shuffle(&mut rand::rng());
        for address in addresses {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(address)),
            };
            response.add_answer(Record::from_rdata(owner.clone(), TTL_S, data));
        }
        let bytes = response.to_vec().ok()?;
        // What does not fit is marked as cut, so that it is asked again over TCP.
        if bytes.len() <= self.limit { Some(bytes) } else { response.truncate().to_vec().ok() }
    }

    /// Whether it asks for addresses of this family.
    pub(super) fn wants(&self, address: &IpAddr) -> bool {
        address.is_ipv4() == self.wants_v4
    }

    fn response(&self) -> Message {
        let asked = &self.message;
        let mut response = Message::response(asked.metadata.id, OpCode::Query);
        response.metadata.recursion_desired = asked.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(asked.queries.iter().cloned());
        if asked.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(*DATAGRAM.end());
            response.edns = Some(edns);
        }
        response
    }
}

/// SERVFAIL for a query that nobody answered.
pub(super) fn failure(query: &[u8]) -> Option<Vec<u8>> {
    error(query, ResponseCode::ServFail)
}

/// A refusal with the query's id and, if it can be read, its question.
fn error(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let [high, low, flags, ..] = query else { return None };
    if flags & 0x80 != 0 {
        // An answer gets none: two servers could go on for ever.
        return None;
    }
    let mut response = Message::error_msg(u16::from_be_bytes([*high, *low]), OpCode::Query, code);
    response.metadata.recursion_available = true;
    if let Ok(asked) = Message::from_vec(query) {
        response.metadata.op_code = asked.metadata.op_code;
        response.metadata.recursion_desired = asked.metadata.recursion_desired;
        if asked.queries.len() == 1 {
            response.add_queries(asked.queries);
        }
    }
    response.to_vec().ok()
}

/// How much a client is ready to receive in one datagram.
pub(super) fn advertised(query: &[u8]) -> usize {
    Message::from_vec(query).map_or(*DATAGRAM.start(), |m| m.max_payload().max(*DATAGRAM.start())).into()
}

/// Whether `answer` is one to `query`: same id, same question. A refusal may leave the question out.
pub(super) fn answers(answer: &[u8], query: &[u8]) -> bool {
    let is_response = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    if !is_response || answer.get(..2) != query.get(..2) {
        return false;
    }
    match (question(answer), question(query)) {
        (Some(told), Some(asked)) => told.eq_ignore_ascii_case(asked),
        (None, _) => answer.get(4..6) == Some(&[0, 0]) && response_code(answer) != 0,
        (Some(_), None) => false,
    }
}

/// The low four bits of the answer's code: all of it, but for EDNS' extensions.
pub(super) fn response_code(answer: &[u8]) -> u8 {
    answer.get(3).map_or(0, |flags| flags & 0x0f)
}

/// The bytes of the first question: its name, without compression as nothing comes before it, type and class.
fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? == [0, 0] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return message.get(HEADER..at + 5),
            1..=63 => at += 1 + length,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        query.to_vec().expect("bytes")
    }

    fn question_of(bytes: &[u8]) -> Box<Question> {
        match read(bytes, None) {
            Received::Address(question) => question,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_has_the_family_asked_for_and_says_so_with_authority() {
        let addresses: Vec<IpAddr> = ["240.240.0.1", "2001:2::1"].map(|a| a.parse().expect("valid")).into();
        let question = question_of(&query("DB1.Corp.", RecordType::AAAA));
        assert_eq!(question.name, "db1.corp");
        let answer = Message::from_vec(&question.answer(None, addresses).expect("bytes")).expect("an answer");
        assert!(answer.metadata.authoritative && answer.metadata.id == 7);
        let told: Vec<(String, u32, &RData)> =
            answer.answers.iter().map(|r| (r.name.to_ascii(), r.ttl, &r.data)).collect();
        assert_eq!(
            told,
            [("DB1.Corp.".to_owned(), 30, &RData::AAAA(AAAA("2001:2::1".parse().expect("valid"))))]
        );
        let empty = question.answer(None, vec!["240.240.0.1".parse().expect("valid")]).expect("bytes");
        let empty = Message::from_vec(&empty).expect("an answer");
        assert_eq!((empty.metadata.response_code, empty.answers.len()), (ResponseCode::NoError, 0));
    }

    #[test]
    fn a_name_with_a_search_domain_is_an_alias_and_what_does_not_fit_is_cut() {
        let question = question_of(&query("db1.corp.shop.svc.cluster.local.", RecordType::A));
        let answer = question.answer(Some("db1.corp"), vec!["240.240.0.1".parse().expect("valid")]);
        let answer = Message::from_vec(&answer.expect("bytes")).expect("an answer");
        assert_eq!(
            answer.answers[0].data,
            RData::CNAME(CNAME(Name::from_ascii("db1.corp.").expect("a name")))
        );
        assert_eq!(answer.answers[1].name.to_ascii(), "db1.corp.");

        let many: Vec<IpAddr> = (1..=200).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let cut = Message::from_vec(&question.answer(None, many.clone()).expect("bytes")).expect("an answer");
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let Received::Address(over_tcp) = read(&query("db1.corp.", RecordType::A), Some(65_535)) else {
            panic!()
        };
        let whole = Message::from_vec(&over_tcp.answer(None, many).expect("bytes")).expect("an answer");
        assert!(!whole.metadata.truncation && whole.answers.len() == 200);
    }

    #[test]
    fn only_the_answer_to_the_question_is_taken_for_it() {
        let asked = query("a.example.", RecordType::A);
        let good = question_of(&asked).answer(None, Vec::new()).expect("bytes");
        assert!(answers(&good, &asked));
        assert!(!answers(&asked, &asked), "a query is no answer");
        let other_name =
            question_of(&query("b.example.", RecordType::A)).answer(None, Vec::new()).expect("bytes");
        let other_type =
            question_of(&query("a.example.", RecordType::AAAA)).answer(None, Vec::new()).expect("bytes");
        let mut other_id = good.clone();
        other_id[1] ^= 1;
        for wrong in [other_name, other_type, other_id, good[..11].to_vec(), Vec::new()] {
            assert!(!answers(&wrong, &asked), "{wrong:?}");
        }
        let bare = Message::error_msg(7, OpCode::Query, ResponseCode::Refused).to_vec().expect("bytes");
        assert!(answers(&bare, &asked), "a refusal may leave the question out");
        let empty = Message::error_msg(7, OpCode::Query, ResponseCode::NoError).to_vec().expect("bytes");
        assert!(!answers(&empty, &asked));
    }

    #[test]
    fn damaged_packets_never_panic() {
        let good = query("web.shop.svc.cluster.local.", RecordType::A);
        let mut all = vec![Vec::new(), vec![0; 3], vec![0xff; 600]];
        all.extend((0..good.len()).map(|cut| good[..cut].to_vec()));
        for at in 0..good.len() {
            for value in [0, 1, 0x3f, 0x7f, 0x80, 0xc0, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                all.push(bad);
            }
        }
        for bad in all {
            if let Received::Address(question) = read(&bad, None) {
                let _ = question.answer(Some(&question.name), vec![[10, 0, 0, 1].into()]);
            }
            let _ = (failure(&bad), advertised(&bad), answers(&bad, &good), answers(&good, &bad));
        }
    }
}
