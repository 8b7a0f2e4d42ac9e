//! Reasons for people: what matched, or what came nearest and where it failed.

use std::fmt::Write as _;

use serde_json::Value;

use crate::rule::{AllOf, RuleTree, TestId, Tests};
use crate::set::PolicySet;
use crate::side::Rank;
use crate::test::{Check, Connection, Request, Test};
use crate::{ConnectionPolicy, DecidedBy, Decision, RequestAttributes, RuleId};

/// How many rules the search for the nearest looks at. A caller can provoke refusals at will, so that the
/// work for each must be bounded.
const RULE_BUDGET: usize = 64;

/// How many tests it evaluates, all rules together; one that looks at many values counts for as many.
const TEST_BUDGET: usize = 2048;

/// How many expected values are shown.
const SHOWN_VALUES: usize = 3;

/// How many characters of one value are shown.
const SHOWN_CHARACTERS: usize = 96;

/// The ALLOW rule that came nearest to matching, and the first attribute that kept it from doing so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss<'a> {
    /// The rule.
    pub rule: &'a RuleId,
    /// The attribute, named as in `when` keys: `source.principal`, `request.path` …
    pub attribute: String,
    /// What the rule wants, such as `one of "GET", "HEAD"`.
    pub expected: String,
    /// What was there, such as `"POST"` or `nothing`.
    pub actual: String,
}

impl ConnectionPolicy {
    /// The reason of a decision, for people. `request` is the one decided about; `None`: TCP.
    pub fn explain(&self, request: Option<&RequestAttributes<'_>>, decision: &Decision<'_>) -> String {
        let rule = |id: &RuleId| format!("policy {}/{}, rule {}", id.namespace, id.name, id.rule);
        match (decision.action, decision.policy) {
            (DecidedBy::NoPolicy, _) => "no DENY rule matches and no ALLOW policy applies".to_owned(),
            (DecidedBy::AllowRule, Some(id)) => format!("ALLOW {} matches", rule(id)),
            (DecidedBy::DenyRule, Some(id)) if self.set().unusable.contains(id) => {
                format!("DENY {} cannot be compiled, so that the policy refuses everything", rule(id))
            }
            (DecidedBy::DenyRule, Some(id)) => format!("DENY {} matches", rule(id)),
            _ => match self.nearest(request) {
                Some(miss) => format!(
                    "no ALLOW rule matches; nearest is {}: {} is {}, expected {}",
                    rule(miss.rule),
                    miss.attribute,
                    miss.actual,
                    miss.expected
                ),
                None => self.set().barren_reason(),
            },
        }
    }

    /// The ALLOW rule with the fewest failing tests, among as many as the budget admits: those that the connection
    /// satisfies or the request hits first. For refusals; `None` if there is no rule, or one matches after all.
    pub fn nearest(&self, request: Option<&RequestAttributes<'_>>) -> Option<NearMiss<'_>> {
        let request = request.map(Request::new);
        let request = request.as_ref();
        let (side, open) = self.allowing()?;
        let rules = &side.rules;
        let mut candidates: Vec<Rank> = Vec::with_capacity(RULE_BUDGET);
        side.promising(open, self.connection(), request, &mut |rank| {
            if candidates.len() < RULE_BUDGET && !candidates.contains(&rank) {
                candidates.push(rank);
            }
        });
        for rank in (0..rules.len() as Rank).take(RULE_BUDGET) {
            if candidates.len() < RULE_BUDGET && !candidates.contains(&rank) {
                candidates.push(rank);
            }
        }
        let mut search =
            Search { tests: &side.tests, connection: self.connection(), request, budget: TEST_BUDGET };
        let mut best: Option<(Distance, Rank)> = None;
        for rank in candidates {
            let Some(rule) = rules.get(rank as usize) else { continue };
            if search.budget == 0 {
                break;
            }
            let distance = search.distance(&rule.tree)?;
            if best.is_none_or(|(b, r)| (distance.failing, rank) < (b.failing, r)) {
                best = Some((distance, rank));
            }
        }
        let (distance, rank) = best?;
        let test = side.tests.get(distance.first)?;
        Some(NearMiss {
            rule: &rules.get(rank as usize)?.id,
            attribute: test.attribute(),
            expected: test.expected(),
            actual: test.actual(self.connection(), request),
        })
    }
}

impl PolicySet {
    /// Why nothing is allowed where no ALLOW policy has a rule.
    fn barren_reason(&self) -> String {
        let kind = |unusable: bool| -> Vec<&str> {
            self.barren.iter().filter(|p| p.unusable == unusable).map(|p| p.name.as_str()).collect()
        };
        let described = |names: &[&str], one: &str, several: &str| {
            let more = match names.len().saturating_sub(SHOWN_VALUES) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let shown: Vec<_> = names.iter().take(SHOWN_VALUES).copied().collect();
            match names {
                [] => None,
                [_] => Some(format!("policy {} {one}", shown.join(", "))),
                _ => Some(format!("policies {}{more} {several}", shown.join(", "))),
            }
        };
        let empty = described(
            &kind(false),
            "applies and has no rules, which allows nothing",
            "apply and have no rules, which allows nothing",
        );
        let unusable = described(
            &kind(true),
            "applies and has a rule that cannot be compiled, so that it allows nothing",
            "apply and have rules that cannot be compiled, so that they allow nothing",
        );
        let reasons: Vec<_> = empty.into_iter().chain(unusable).collect();
        format!("no ALLOW rule matches: {}", reasons.join("; "))
    }
}

/// How far a rule is from matching.
#[derive(Debug, Clone, Copy)]
struct Distance {
    failing: usize,
    first: TestId,
}

struct Search<'a> {
    tests: &'a Tests,
    connection: &'a Connection,
    request: Option<&'a Request<'a>>,
    budget: usize,
}

impl Search<'_> {
    /// `None` if nothing fails.
    fn distance(&mut self, tree: &RuleTree) -> Option<Distance> {
        let parts =
            [self.alternatives(&tree.sources), self.alternatives(&tree.operations), self.all(&tree.when)];
        parts.into_iter().flatten().reduce(|a, b| Distance { failing: a.failing + b.failing, first: a.first })
    }

    /// The distance of the nearest alternative; `None` if one holds, or none is demanded.
    fn alternatives(&mut self, any: &[AllOf]) -> Option<Distance> {
        let mut best: Option<Distance> = None;
        for all in any {
            let distance = self.all(all)?;
            if best.is_none_or(|b| distance.failing < b.failing) {
                best = Some(distance);
            }
        }
        best
    }

    fn all(&mut self, all: &[TestId]) -> Option<Distance> {
        let mut distance: Option<Distance> = None;
        for id in all {
            // Beyond the budget a test counts as failed: the rule looks farther away than it may be.
            let holds = self.budget > 0 && self.holds(*id);
            let cost = self.tests.get(*id).map_or(0, |test| test.values(self.request));
            self.budget = self.budget.saturating_sub(cost.max(1));
            if !holds {
                let before = distance.map_or(0, |d| d.failing);
                distance = Some(Distance { failing: before + 1, first: distance.map_or(*id, |d| d.first) });
            }
        }
        distance
    }

    /// On TCP no HTTP-only test holds, not even a negative one: a rule with one is dropped there.
    fn holds(&self, id: TestId) -> bool {
        (self.request.is_some() || !self.tests.is_http_only(id))
            && self.tests.holds(id, self.connection, self.request)
    }
}

impl Test {
    /// How many values of a request it may have to look at, where the caller can send many.
    fn values(&self, request: Option<&Request<'_>>) -> usize {
        let mut count = 0;
        let mut add = |_: &[u8]| count += 1;
        match (&self.check, request) {
            (Check::Header(header, _), Some(request)) => header.visit(request, &mut add),
            (Check::Claim(path, _), Some(request)) => path.visit(request, &mut add),
            _ => {}
        }
        count
    }

    fn attribute(&self) -> String {
        let name = match &self.check {
            Check::Principal(_) => "source.principal",
            Check::Namespace(_) => "source.namespace",
            Check::ServiceAccount(_) => "source.serviceAccount",
            Check::TrustDomain(_) => "source.trustDomain",
            Check::SourceIp(_) => "source.ip",
            Check::RemoteIp(_) => "remote.ip",
            Check::DestinationIp(_) => "destination.ip",
            Check::Port(_) => "destination.port",
            Check::Sni(_) => "connection.sni",
            Check::Method(_) => "request.method",
            Check::Host(_) => "request.host",
            Check::Path(..) => "request.path",
            Check::Header(header, _) => return format!("request.headers[{}]", shown(header.name())),
            Check::RequestPrincipal(_) => "request.auth.principal",
            Check::Claim(path, _) => return claim_key(path.names()),
        };
        name.to_owned()
    }

    fn expected(&self) -> String {
        let mut text = match (self.negated, self.written.len()) {
            (false, 1) => String::new(),
            (false, _) => "one of ".to_owned(),
            (true, 1) => "not ".to_owned(),
            (true, _) => "none of ".to_owned(),
        };
        for (index, value) in self.written.iter().take(SHOWN_VALUES).enumerate() {
            let _ = write!(text, "{}\"{}\"", if index > 0 { ", " } else { "" }, shown(value));
        }
        if self.written.len() > SHOWN_VALUES {
            let _ = write!(text, " and {} more", self.written.len() - SHOWN_VALUES);
        }
        text
    }

    fn actual(&self, connection: &Connection, request: Option<&Request<'_>>) -> String {
        if self.is_http_only() && request.is_none() {
            return "not there on TCP".to_owned();
        }
        let peer = |text: fn(&maille_core::Identity) -> String| match &connection.identity {
            Some(identity) => format!("\"{}\"", shown(&text(identity))),
            None => "nothing (no client certificate)".to_owned(),
        };
        let text =
            |text: &str| if text.is_empty() { "nothing".to_owned() } else { format!("\"{}\"", shown(text)) };
        match &self.check {
            Check::Principal(_) => peer(|id| id.to_string()),
            Check::Namespace(_) => peer(|id| id.namespace().to_owned()),
            Check::ServiceAccount(_) => peer(|id| format!("{}/{}", id.namespace(), id.service_account())),
            Check::TrustDomain(_) => peer(|id| id.trust_domain().to_string()),
            Check::SourceIp(_) => address(connection.source_ip),
            Check::RemoteIp(_) => address(connection.remote_ip_of(request)),
            Check::DestinationIp(_) => address(connection.destination_ip),
            Check::Port(_) if connection.destination_port == 0 => "nothing".to_owned(),
            Check::Port(_) => connection.destination_port.to_string(),
            Check::Sni(_) => text(&connection.sni),
            Check::Method(_) => text(request.map_or("", |r| r.attributes.method)),
            Check::Host(_) => text(request.map_or("", |r| r.attributes.host)),
            Check::Path(..) => text(request.map_or("", |r| r.path)),
            Check::Header(header, _) => {
                let mut values = Vec::new();
                if let Some(request) = request {
                    header.visit(request, &mut |value| {
                        if values.len() < SHOWN_VALUES {
                            values.push(format!("\"{}\"", shown(&String::from_utf8_lossy(value))));
                        }
                    });
                }
                match values.is_empty() {
                    true => "nothing".to_owned(),
                    false if is_secret(header.name()) => not_shown(self.negated),
                    false => values.join(", "),
                }
            }
            Check::RequestPrincipal(_) => match request.and_then(|r| r.attributes.claims) {
                None => NO_TOKEN.to_owned(),
                Some(claims) => match claims.principal() {
                    Some((issuer, subject)) => format!("\"{}/{}\"", shown(issuer), shown(subject)),
                    None => "nothing (the token has no issuer or no subject)".to_owned(),
                },
            },
            Check::Claim(path, _) => match request.and_then(|r| r.attributes.claims) {
                None => NO_TOKEN.to_owned(),
                Some(claims) => claim(path.names(), claims.get(path.names()), self.negated),
            },
        }
    }
}

/// Of what a token says, only who issued it, for whom and about whom is shown: the rest is somebody's affair. What a
/// negative test finds is one of the values that it names.
fn not_shown(negated: bool) -> String {
    if negated { "there (not shown)".to_owned() } else { "there, but different (not shown)".to_owned() }
}

const NO_TOKEN: &str = "nothing (no verified token)";

/// A claim's key, as in `when`.
fn claim_key(path: &[Box<str>]) -> String {
    match path {
        [name] if **name == *"aud" => "request.auth.audiences".to_owned(),
        [name] if **name == *"azp" => "request.auth.presenter".to_owned(),
        names => {
            names.iter().fold("request.auth.claims".to_owned(), |key, name| format!("{key}[{}]", shown(name)))
        }
    }
}

/// What is there of a claim.
fn claim(path: &[Box<str>], value: Option<&Value>, negated: bool) -> String {
    let texts = match value {
        None => return "nothing".to_owned(),
        Some(Value::String(text)) => vec![text.as_str()],
        Some(Value::Array(elements)) => elements.iter().filter_map(Value::as_str).collect(),
        Some(_) => Vec::new(),
    };
    let public = matches!(path, [name] if ["iss", "sub", "aud"].contains(&&**name));
    match texts.as_slice() {
        [] => "there, but neither a text nor a list of texts".to_owned(),
        _ if !public => not_shown(negated),
        texts => {
            let texts = texts.iter().take(SHOWN_VALUES).map(|text| format!("\"{}\"", shown(text)));
            texts.collect::<Vec<_>>().join(", ")
        }
    }
}

/// No connection has the unspecified address: an offline question left it out.
fn address(address: std::net::IpAddr) -> String {
    if address.is_unspecified() { "nothing".to_owned() } else { address.to_string() }
}

/// Headers whose values do not belong into logs.
fn is_secret(name: &str) -> bool {
    ["authorization", "cookie", "token", "secret", "key", "password"].iter().any(|part| name.contains(part))
}

/// Bounded, on one line.
fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_CHARACTERS).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARACTERS).is_some() {
        short.push('…');
    }
    short
}
