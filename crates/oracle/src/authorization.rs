//! AuthorizationPolicy, read literally (reference authorization 3 to 15 and 20).

use maille_config::istio::{Action, Condition, Operation, Rule, Source};
use maille_policy::{
    Authorization, ConnectionAttributes, DecidedBy, RequestAttributes, TrustContext, Verdict,
};

use crate::text::{fits, fits_path, fits_text, template};
use crate::tokens::{claim_path, fits_claim, fits_request_principal};
use crate::values::{
    block, fits_account, fits_block, fits_namespace, fits_principal, fits_trust_domain, is_account,
    is_trust_domain, port,
};

/// The answer, with the printed id of the rule that is smallest in byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it may go on.
    pub verdict: Verdict,
    /// Why.
    pub action: DecidedBy,
    /// The printed id of the rule that matched.
    pub rule: Option<String>,
}

/// Whom a CUSTOM policy asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The provider's name.
    pub provider: String,
    /// The printed id of the rule that matched.
    pub rule: String,
    /// Nobody can be asked: refused.
    pub refused: bool,
}

/// What the dry-run policies of one action say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadowed {
    /// Whether they would let it through.
    pub allowed: bool,
    /// The printed id of the rule that matched.
    pub rule: Option<String>,
}

/// All that policies say about one connection or request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// DENY and ALLOW.
    pub decision: Answer,
    /// CUSTOM, which comes before.
    pub ask: Option<Asked>,
    /// AUDIT: the printed id of the rule that matched.
    pub audit: Option<String>,
    /// DENY of a dry run; `None`: there is no such policy.
    pub shadow_deny: Option<Shadowed>,
    /// ALLOW of a dry run; `None`: there is no such policy.
    pub shadow_allow: Option<Shadowed>,
}

/// What one decision is made of.
struct Case<'a> {
    policies: &'a [Authorization],
    trust: &'a TrustContext,
    connection: &'a ConnectionAttributes<'a>,
    request: Option<&'a RequestAttributes<'a>>,
}

/// Answers everything (sections 3, 14 and 15). `request`: `None` for TCP.
pub fn answer(
    policies: &[Authorization],
    trust: &TrustContext,
    connection: &ConnectionAttributes<'_>,
    request: Option<&RequestAttributes<'_>>,
) -> Answers {
    let case = Case { policies, trust, connection, request };
    let shadow = |action: Action, allows: bool| {
        case.any(action, true).then(|| {
            let rule = case.first(action, true);
            Shadowed { allowed: rule.is_some() == allows, rule }
        })
    };
    Answers {
        decision: case.decide(),
        ask: case.ask(),
        audit: case.first(Action::Audit, false),
        shadow_deny: shadow(Action::Deny, false),
        shadow_allow: shadow(Action::Allow, true),
    }
}

/// Decides by DENY and ALLOW alone (section 3). `request`: `None` for TCP.
pub fn decide(
    policies: &[Authorization],
    trust: &TrustContext,
    connection: &ConnectionAttributes<'_>,
    request: Option<&RequestAttributes<'_>>,
) -> Answer {
    Case { policies, trust, connection, request }.decide()
}

impl Case<'_> {
    fn any(&self, action: Action, dry_run: bool) -> bool {
        self.policies.iter().any(|p| p.spec.action == action && p.dry_run == dry_run)
    }

    /// The smallest id of the rules of an action that match.
    fn first(&self, action: Action, dry_run: bool) -> Option<String> {
        let policies = self.policies.iter().filter(|p| p.spec.action == action && p.dry_run == dry_run);
        policies.flat_map(|p| self.matching(p)).min()
    }

    fn decide(&self) -> Answer {
        let denied = self.first(Action::Deny, false);
        if denied.is_some() {
            return Answer { verdict: Verdict::Deny, action: DecidedBy::DenyRule, rule: denied };
        }
        if !self.any(Action::Allow, false) {
            return Answer { verdict: Verdict::Allow, action: DecidedBy::NoPolicy, rule: None };
        }
        let allowed = self.first(Action::Allow, false);
        match allowed.is_some() {
            true => Answer { verdict: Verdict::Allow, action: DecidedBy::AllowRule, rule: allowed },
            false => Answer { verdict: Verdict::Deny, action: DecidedBy::NoAllowRule, rule: None },
        }
    }

    /// Section 15: one provider on a workload, and all policies understood, or nobody is asked. A policy that is not
    /// understood refuses everything, whatever others ask.
    fn ask(&self) -> Option<Asked> {
        let custom = || self.policies.iter().filter(|p| p.spec.action == Action::Custom && !p.dry_run);
        let provider = |p: &Authorization| p.spec.provider.clone().map_or(String::new(), |p| p.name);
        let bad = |p: &&Authorization| p.spec.rules.iter().any(|rule| !is_usable(rule));
        let refused = custom().filter(bad).flat_map(|p| self.matching(p)).min();
        let rule = refused.clone().or_else(|| self.first(Action::Custom, false))?;
        let asking = custom().find(|p| self.matching(p).contains(&rule))?;
        let others = custom().any(|p| provider(p) != provider(asking));
        let provider = provider(asking);
        Some(Asked { refused: refused.is_some() || others || provider.is_empty(), provider, rule })
    }

    /// Ids of the rules of a policy that match.
    fn matching(&self, policy: &Authorization) -> Vec<String> {
        let id = |index: usize| format!("ns[{}]-policy[{}]-rule[{index}]", policy.namespace, policy.name);
        let allow = policy.spec.action == Action::Allow;
        let rules = &policy.spec.rules;
        if let Some(bad) = rules.iter().position(|rule| !is_usable(rule)) {
            return if allow { Vec::new() } else { vec![id(bad)] };
        }
        let indices =
            (0..rules.len()).filter(|i| rules.get(*i).is_some_and(|rule| self.rule(rule, policy, allow)));
        indices.map(id).collect()
    }

    /// Section 5, and section 11 for TCP.
    fn rule(&self, rule: &Rule, policy: &Authorization, allow: bool) -> bool {
        let mut rule = rule.clone();
        if self.request.is_none() {
            if allow && uses_http(&rule) {
                return false;
            }
            for source in rule.from.iter_mut().filter_map(|from| from.source.as_mut()) {
                source.request_principals.clear();
                source.not_request_principals.clear();
            }
            rule.to.iter_mut().filter_map(|to| to.operation.as_mut()).for_each(strip_http);
            rule.when.retain(|condition| !condition.key.starts_with("request."));
        }
        let from = rule.from.is_empty()
            || rule.from.iter().any(|f| f.source.as_ref().is_none_or(|s| self.source(s, policy)));
        let to = rule.to.is_empty()
            || rule.to.iter().any(|t| t.operation.as_ref().is_none_or(|o| self.operation(o)));
        from && to && rule.when.iter().all(|condition| self.condition(condition, policy))
    }

    /// Section 7.
    fn source(&self, s: &Source, policy: &Authorization) -> bool {
        let peer = self.connection.identity;
        let principal = |v: &String| fits_principal(v, peer, self.trust);
        let namespace = |v: &String| fits_namespace(v, peer);
        let account = |v: &String| fits_account(v, &policy.namespace, peer);
        let domain = |v: &String| fits_trust_domain(v, peer, self.trust);
        let ip = |v: &String| fits_block(v, self.connection.source_ip);
        let remote = |v: &String| fits_block(v, self.remote_ip());
        let token = |v: &String| fits_request_principal(v, self.request.and_then(|r| r.claims));
        both(&s.principals, &s.not_principals, principal)
            && both(&s.request_principals, &s.not_request_principals, token)
            && both(&s.namespaces, &s.not_namespaces, namespace)
            && both(&s.service_accounts, &s.not_service_accounts, account)
            && both(&s.trust_domains, &s.not_trust_domains, domain)
            && both(&s.ip_blocks, &s.not_ip_blocks, ip)
            && both(&s.remote_ip_blocks, &s.not_remote_ip_blocks, remote)
    }

    /// Section 8.
    fn operation(&self, o: &Operation) -> bool {
        let request = self.request;
        let host = |v: &String| {
            request.is_some_and(|r| fits_text(&v.to_ascii_lowercase(), &r.host.to_ascii_lowercase()))
        };
        let method = |v: &String| request.is_some_and(|r| fits_text(v, r.method));
        let path = |v: &String| {
            request.is_some_and(|r| fits_path(v, r.path.split(['?', '#']).next().unwrap_or_default()))
        };
        let port = |v: &String| port(v) == Some(self.connection.destination_port.into());
        both(&o.hosts, &o.not_hosts, host)
            && both(&o.ports, &o.not_ports, port)
            && both(&o.methods, &o.not_methods, method)
            && both(&o.paths, &o.not_paths, path)
    }

    /// Section 9.
    fn condition(&self, c: &Condition, policy: &Authorization) -> bool {
        let connection = self.connection;
        let peer = connection.identity;
        let one = |v: &String| match c.key.as_str() {
            "source.ip" => fits_block(v, connection.source_ip),
            "remote.ip" => fits_block(v, self.remote_ip()),
            "destination.ip" => fits_block(v, connection.destination_ip),
            "source.namespace" => fits_namespace(v, peer),
            "source.serviceAccount" => fits_account(v, &policy.namespace, peer),
            "source.principal" => fits_principal(v, peer, self.trust),
            "source.trustDomain" => fits_trust_domain(v, peer, self.trust),
            "destination.port" => port(v) == Some(connection.destination_port.into()),
            "connection.sni" => fits_text(v, &connection.sni.unwrap_or_default().to_ascii_lowercase()),
            "request.auth.principal" => fits_request_principal(v, self.request.and_then(|r| r.claims)),
            key if key.starts_with("request.auth.") => {
                claim_path(key).is_some_and(|path| fits_claim(v, &path, self.request.and_then(|r| r.claims)))
            }
            key => {
                self.header_values(&key["request.headers[".len()..key.len() - 1]).iter().any(|h| fits(v, h))
            }
        };
        both(&c.values, &c.not_values, one)
    }

    /// Section 9.1: what policy sees of a header.
    fn header_values(&self, name: &str) -> Vec<Vec<u8>> {
        let Some(request) = self.request else { return Vec::new() };
        let name = name.to_ascii_lowercase();
        let unless_empty = |text: &str| if text.is_empty() { vec![] } else { vec![text.as_bytes().to_vec()] };
        match name.as_str() {
            ":method" => return unless_empty(request.method),
            ":authority" | "host" => return unless_empty(request.host),
            ":path" => return unless_empty(request.path),
            _ => {}
        }
        let mut values = Vec::new();
        request.headers.values(&name, &mut |value| values.push(value.to_vec()));
        let folded = [
            "accept",
            "accept-encoding",
            "access-control-request-headers",
            "access-control-request-method",
            "access-control-request-private-network",
            "authorization",
            "cache-control",
            "content-encoding",
            "content-type",
            "expect",
            "grpc-accept-encoding",
            "grpc-timeout",
            "if-match",
            "if-modified-since",
            "if-none-match",
            "if-range",
            "if-unmodified-since",
            "origin",
            "pragma",
            "referer",
            "user-agent",
            "via",
            "x-client-trace-id",
            "x-envoy-original-path",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-proto",
            "x-request-id",
        ];
        if folded.contains(&name.as_str()) && !values.is_empty() {
            // Empty lines leave no trace.
            values.retain(|value| !value.is_empty());
            values = vec![values.join(&b',')];
        }
        values
    }

    fn remote_ip(&self) -> std::net::IpAddr {
        self.request.and_then(|r| r.remote_ip).unwrap_or(self.connection.remote_ip)
    }
}

/// A field and its `not` form: any value, and none of the others; an empty list demands nothing.
fn both(values: &[String], not_values: &[String], fits: impl Fn(&String) -> bool) -> bool {
    (values.is_empty() || values.iter().any(&fits)) && !not_values.iter().any(&fits)
}

fn uses_http(rule: &Rule) -> bool {
    let operations = rule.to.iter().filter_map(|to| to.operation.as_ref());
    let mut sources = rule.from.iter().filter_map(|from| from.source.as_ref());
    sources.any(|s| !s.request_principals.is_empty() || !s.not_request_principals.is_empty())
        || rule.when.iter().any(|c| c.key.starts_with("request."))
        || operations.into_iter().any(|o| {
            let lists = [&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths];
            lists.iter().any(|list| !list.is_empty())
        })
}

fn strip_http(operation: &mut Operation) {
    *operation = Operation {
        ports: std::mem::take(&mut operation.ports),
        not_ports: std::mem::take(&mut operation.not_ports),
        ..Operation::default()
    };
}

/// Whether every value of a rule can be understood (section 18).
fn is_usable(rule: &Rule) -> bool {
    let sources = rule.from.iter().filter_map(|f| f.source.as_ref());
    let operations = rule.to.iter().filter_map(|t| t.operation.as_ref());
    sources.into_iter().all(|s| {
        let all = [&s.principals, &s.not_principals, &s.namespaces, &s.not_namespaces];
        let accounts = [&s.service_accounts, &s.not_service_accounts];
        let domains = [&s.trust_domains, &s.not_trust_domains];
        let blocks = [&s.ip_blocks, &s.not_ip_blocks, &s.remote_ip_blocks, &s.not_remote_ip_blocks];
        every(&all, |v| !v.is_empty())
            && every(&accounts, is_account)
            && every(&domains, |v| !v.is_empty() && is_trust_domain(v))
            && every(&blocks, |v| block(v).is_some())
            && every(&[&s.request_principals, &s.not_request_principals], |v| !v.is_empty())
    }) && operations.into_iter().all(|o| {
        every(&[&o.hosts, &o.not_hosts, &o.methods, &o.not_methods], |v| !v.is_empty())
            && every(&[&o.ports, &o.not_ports], |v| port(v).is_some())
            && every(&[&o.paths, &o.not_paths], |v| !v.is_empty() && !matches!(template(v), Some(None)))
    }) && rule.when.iter().all(|c| {
        let lists = [&c.values, &c.not_values];
        let header = |name: &str| name.len() > 2 && name.starts_with('[') && name.ends_with(']');
        (!c.values.is_empty() || !c.not_values.is_empty())
            && every(&lists, |v| !v.is_empty())
            && match c.key.as_str() {
                "source.ip" | "remote.ip" | "destination.ip" => every(&lists, |v| block(v).is_some()),
                "source.serviceAccount" => every(&lists, is_account),
                "source.trustDomain" => every(&lists, is_trust_domain),
                "destination.port" => every(&lists, |v| port(v).is_some()),
                "source.namespace" | "source.principal" | "connection.sni" | "request.auth.principal" => true,
                key if key.starts_with("request.auth.") => claim_path(key).is_some(),
                key => key.strip_prefix("request.headers").is_some_and(header),
            }
    })
}

fn every(lists: &[&Vec<String>], test: impl Fn(&str) -> bool) -> bool {
    lists.iter().all(|list| list.iter().all(|value| test(value)))
}
