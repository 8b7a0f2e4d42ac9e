//! AuthorizationPolicy, read literally (reference authorization 3 to 13; without JWT and CUSTOM providers).

use maille_config::istio::{Action, Condition, Operation, Rule, Source};
use maille_policy::{
    Authorization, ConnectionAttributes, DecidedBy, RequestAttributes, TrustContext, Verdict,
};

use crate::text::{fits, fits_path, fits_text, template};
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

/// What one decision is made of.
struct Case<'a> {
    trust: &'a TrustContext,
    connection: &'a ConnectionAttributes<'a>,
    request: Option<&'a RequestAttributes<'a>>,
}

/// Decides (section 3). `request`: `None` for TCP.
pub fn decide(
    policies: &[Authorization],
    trust: &TrustContext,
    connection: &ConnectionAttributes<'_>,
    request: Option<&RequestAttributes<'_>>,
) -> Answer {
    let case = Case { trust, connection, request };
    let enforced: Vec<&Authorization> = policies.iter().filter(|p| !p.dry_run).collect();
    // A CUSTOM policy that cannot be asked refuses what its rules match (section 15).
    let denying = |p: &&&Authorization| matches!(p.spec.action, Action::Deny | Action::Custom);
    let allowing = |p: &&&Authorization| p.spec.action == Action::Allow;
    let denied = enforced.iter().filter(denying).flat_map(|p| case.matching(p)).min();
    if denied.is_some() {
        return Answer { verdict: Verdict::Deny, action: DecidedBy::DenyRule, rule: denied };
    }
    if !enforced.iter().any(|p| allowing(&p)) {
        return Answer { verdict: Verdict::Allow, action: DecidedBy::NoPolicy, rule: None };
    }
    let allowed = enforced.iter().filter(allowing).flat_map(|p| case.matching(p)).min();
    match allowed.is_some() {
        true => Answer { verdict: Verdict::Allow, action: DecidedBy::AllowRule, rule: allowed },
        false => Answer { verdict: Verdict::Deny, action: DecidedBy::NoAllowRule, rule: None },
    }
}

impl Case<'_> {
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
        both(&s.principals, &s.not_principals, principal)
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
            "authorization",
            "content-type",
            "referer",
            "user-agent",
            "via",
            "x-forwarded-for",
            "x-forwarded-proto",
        ];
        if folded.contains(&name.as_str()) && !values.is_empty() {
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
    rule.when.iter().any(|c| c.key.starts_with("request."))
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

/// Whether every value of a rule can be understood (section 18), and needs nothing that is not there yet.
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
            && s.request_principals.is_empty()
            && s.not_request_principals.is_empty()
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
                "source.namespace" | "source.principal" | "connection.sni" => true,
                key => key.strip_prefix("request.headers").is_some_and(header),
            }
    })
}

fn every(lists: &[&Vec<String>], test: impl Fn(&str) -> bool) -> bool {
    lists.iter().all(|list| list.iter().all(|value| test(value)))
}
