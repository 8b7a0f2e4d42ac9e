//! Policies in hand, asked about one request.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use maille_config::istio::RequestAuthenticationSpec;
use maille_policy::{
    Ask, Authorization, Claims, ConnectionAttributes, ConnectionPolicy, DecidedBy, Decision, PolicySet,
    RequestAttributes, Shadow, TrustContext, forwarded_for,
};

use super::answer::{RuleName, ShadowAnswer, ShadowResult};
use super::providers::Asked;
use super::{Answer, Protocol, Providers, Request};

/// An address that nobody named: no IPv4 block has it, and of the IPv6 blocks only `::/0`.
const UNKNOWN: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Everything that decides for one workload.
#[derive(Debug, Clone)]
pub struct Judge {
    set: Arc<PolicySet>,
    providers: Providers,
    words: Vec<WordLists>,
    /// Why no provider is asked, for people.
    nobody: &'static str,
}

/// Claims of an issuer's tokens that are lists of words (`spaceDelimitedClaims`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordLists {
    /// Empty: every issuer's.
    pub issuer: String,
    /// Names of the claims.
    pub claims: Vec<String>,
}

impl WordLists {
    /// Those of a RequestAuthentication.
    pub fn of(spec: &RequestAuthenticationSpec) -> Vec<Self> {
        let delimited = spec.jwt_rules.iter().filter(|rule| !rule.space_delimited_claims.is_empty());
        delimited
            .map(|rule| Self { issuer: rule.issuer.clone(), claims: rule.space_delimited_claims.clone() })
            .collect()
    }
}

impl Judge {
    /// Takes the policies that apply to the workload, and the word lists of its RequestAuthentications.
    pub fn new(
        policies: &[Authorization],
        trust: &TrustContext,
        providers: Providers,
        words: Vec<WordLists>,
    ) -> Self {
        // Policies that were checked compile; one that does not refuses, and its answers say so.
        let set = Arc::new(PolicySet::compile(policies, trust).0);
        Self { set, providers, words, nobody: "offline nobody can be asked" }
    }

    /// For policies in force: where a provider could be asked, and is not by who asks here.
    pub fn live(self) -> Self {
        Self { nobody: "this command asks nobody", ..self }
    }

    /// Decides one request.
    pub fn decide(&self, request: &Request) -> Answer {
        let source_ip = request.source_ip().unwrap_or(UNKNOWN);
        let connection = self.set.on_connection(&ConnectionAttributes {
            identity: request.identity(),
            source_ip,
            remote_ip: request.remote_ip().unwrap_or(source_ip),
            destination_ip: request.destination_ip().unwrap_or(UNKNOWN),
            destination_port: request.destination_port().unwrap_or(0),
            sni: request.sni(),
        });
        if request.protocol() == Protocol::Tcp {
            return self.answer(&connection, None);
        }
        let claims = request.jwt().map(|claims| {
            let issuer = claims.get("iss").and_then(|issuer| issuer.as_str()).unwrap_or_default();
            let own = self.words.iter().filter(|words| words.issuer.is_empty() || words.issuer == issuer);
            let words: Vec<String> = own.flat_map(|words| words.claims.iter().cloned()).collect();
            Claims::new(claims.clone(), &words)
        });
        let attributes = RequestAttributes {
            method: request.method().unwrap_or_default(),
            host: request.host().unwrap_or_default(),
            path: request.path().unwrap_or_default(),
            // What the question says is right; else what a sidecar would take from the headers.
            remote_ip: request.remote_ip().or_else(|| forwarded_for(&Lines(request.headers()))),
            headers: &Lines(request.headers()),
            claims: claims.as_ref(),
        };
        self.answer(&connection, Some(&attributes))
    }

    fn answer(&self, connection: &ConnectionPolicy, http: Option<&RequestAttributes<'_>>) -> Answer {
        let (decision, ask, audit, shadow) = match http {
            Some(http) => (
                connection.decide_http(http),
                connection.ask_http(http),
                connection.audit_http(http),
                connection.shadow_http(http),
            ),
            None => (
                connection.decide_tcp(),
                connection.ask_tcp(),
                connection.audit_tcp(),
                connection.shadow_tcp(),
            ),
        };
        let decided = Answer::new(&decision, connection.explain(http, &decision));
        let mut answer = match ask {
            Some(ask) => self.asked(&ask, decided, http.is_none()),
            None => decided,
        };
        answer.audit = audit.map(RuleName::of);
        answer.shadow = shadowed(&decision, &shadow);
        answer
    }

    /// What CUSTOM makes of an answer. Its filter is the first: where nobody can be asked that is what the caller sees;
    /// else DENY and ALLOW have the last word, since a yes of the provider does not overrule them.
    fn asked(&self, ask: &Ask<'_>, decided: Answer, tcp: bool) -> Answer {
        let name = ask.provider;
        let refused = |why: &str| {
            let RuleName { policy, rule } = RuleName::of(ask.rule);
            Answer::custom(
                ask.rule,
                name,
                format!(
                    "{policy} rule {rule} (CUSTOM) matches, and nobody can be asked: {why}; refused with 403"
                ),
            )
        };
        if let Some(problem) = ask.problem {
            return refused(problem);
        }
        match self.providers.asked(name, tcp) {
            Asked::Refused(why) => refused(&why),
            Asked::Passed => Answer {
                reason: format!(
                    "{}; extension provider {name} is one of HTTP, and is not asked about connections",
                    decided.reason
                ),
                ..decided
            },
            Asked::Asked(_) if !decided.allowed => Answer { provider: Some(name.to_owned()), ..decided },
            Asked::Asked(provider) => {
                let RuleName { policy, rule } = RuleName::of(ask.rule);
                let at = provider.as_ref().map(|p| format!(" ({})", p.address)).unwrap_or_default();
                let open = provider.is_some_and(|provider| provider.fail_open);
                let open = if open { "; its failure would count as a yes" } else { "" };
                let answer = Answer::custom(
                    ask.rule,
                    name,
                    format!(
                        "{policy} rule {rule} asks provider {name}{at}; {}{open}. Beside it: {}",
                        self.nobody, decided.reason
                    ),
                );
                Answer { undecided: true, ..answer }
            }
        }
    }
}

/// What dry-run policies make of a decision; nothing without any.
fn shadowed(decision: &Decision<'_>, shadow: &Shadow<'_>) -> Option<ShadowAnswer> {
    if shadow.deny.is_none() && shadow.allow.is_none() {
        return None;
    }
    let result = |result: &maille_policy::ShadowResult<'_>| {
        let (policy, rule) = result.rule.map(RuleName::of).map(|name| (name.policy, name.rule)).unzip();
        ShadowResult { allowed: result.allowed, policy, rule }
    };
    let (deny, allow) = (shadow.deny.as_ref().map(result), shadow.allow.as_ref().map(result));
    let denied = deny.as_ref().filter(|deny| !deny.allowed);
    let admitted = allow.as_ref().filter(|allow| allow.allowed);
    let named = |result: &ShadowResult| {
        let policy = result.policy.as_deref().unwrap_or("a policy");
        format!("{policy} rule {}", result.rule.unwrap_or(0))
    };
    let (allowed, reason) = match (decision.action, denied, admitted, &allow) {
        (DecidedBy::DenyRule, ..) => (false, "the dry-run policies would change nothing".to_owned()),
        (_, Some(deny), ..) => (false, format!("dry-run {} (DENY) would refuse it", named(deny))),
        (DecidedBy::AllowRule, ..) => (true, "the dry-run policies would change nothing".to_owned()),
        (DecidedBy::NoAllowRule, _, Some(allow), _) => {
            (true, format!("dry-run {} (ALLOW) would let it through", named(allow)))
        }
        (DecidedBy::NoAllowRule, ..) => (false, "the dry-run policies would change nothing".to_owned()),
        (DecidedBy::NoPolicy, _, Some(allow), _) => {
            (true, format!("dry-run {} (ALLOW) would let it through", named(allow)))
        }
        (DecidedBy::NoPolicy, _, None, Some(_)) => {
            (false, "dry-run ALLOW policies would refuse it: none of their rules matches".to_owned())
        }
        (DecidedBy::NoPolicy, _, None, None) => {
            (true, "the dry-run policies would change nothing".to_owned())
        }
    };
    Some(ShadowAnswer { allowed, deny, allow, reason })
}

/// Headers by name, without case.
struct Lines<'r>(&'r [(String, String)]);

impl maille_policy::HeaderLookup for Lines<'_> {
    fn values<'h>(&'h self, name: &str, visit: &mut dyn FnMut(&'h [u8])) {
        self.0.values(name, visit);
    }
}
