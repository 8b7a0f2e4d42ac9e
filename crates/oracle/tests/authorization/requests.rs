//! Generated facts: near misses of a policy's rules, preferably.

use std::net::IpAddr;

use maille_config::istio::{Condition, Operation, Rule, Source};
use maille_core::Identity;
use maille_policy::{Authorization, Claims, ConnectionAttributes, RequestAttributes};

use crate::policies::{
    ACCOUNTS, ADDRESSES, DOMAINS, HEADERS, HOSTS, METHODS, NAMES, NAMESPACES, PATHS, PORTS, VALUES,
};
use crate::random::Random;

/// Owned facts of one connection and one request on it.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) identity: Option<Identity>,
    pub(crate) source_ip: IpAddr,
    pub(crate) remote_ip: IpAddr,
    pub(crate) destination_ip: IpAddr,
    pub(crate) destination_port: u16,
    pub(crate) sni: Option<String>,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) forwarded: Option<IpAddr>,
    pub(crate) headers: Vec<(String, String)>,
    /// What a verified token says.
    pub(crate) claims: Option<Claims>,
}

impl Facts {
    pub(crate) fn connection(&self) -> ConnectionAttributes<'_> {
        ConnectionAttributes {
            identity: self.identity.as_ref(),
            source_ip: self.source_ip,
            remote_ip: self.remote_ip,
            destination_ip: self.destination_ip,
            destination_port: self.destination_port,
            sni: self.sni.as_deref(),
        }
    }

    pub(crate) fn request(&self) -> RequestAttributes<'_> {
        RequestAttributes {
            method: &self.method,
            host: &self.host,
            path: &self.path,
            remote_ip: self.forwarded,
            headers: &self.headers,
            claims: self.claims.as_ref(),
        }
    }

    /// Facts that have nothing to do with any policy.
    pub(crate) fn any(random: &mut Random) -> Self {
        let mut facts = Self {
            identity: None,
            source_ip: address(random),
            remote_ip: address(random),
            destination_ip: address(random),
            destination_port: 80,
            sni: None,
            method: String::new(),
            host: String::new(),
            path: String::new(),
            forwarded: None,
            headers: Vec::new(),
            claims: None,
        };
        for attribute in 0..ATTRIBUTES {
            facts.change(attribute, random);
        }
        facts
    }

    /// Facts made to fit one rule of the policies, then perhaps changed in one attribute.
    #[allow(dead_code, reason = "shared with another test")]
    pub(crate) fn near(random: &mut Random, policies: &[Authorization]) -> Self {
        Self::near_rule(random, policies).0
    }

    /// As [`Self::near`], with that rule.
    pub(crate) fn near_rule<'p>(
        random: &mut Random,
        policies: &'p [Authorization],
    ) -> (Self, Option<&'p Rule>) {
        let mut facts = Self::any(random);
        let rules: Vec<_> = policies.iter().flat_map(|p| p.spec.rules.iter().map(move |r| (p, r))).collect();
        if rules.is_empty() || random.once_in(10) {
            return (facts, None);
        }
        let (policy, rule) = *random.one(&rules);
        if !rule.from.is_empty()
            && let Some(source) = &random.one(&rule.from).source
        {
            facts.fit_source(source, policy, random);
        }
        if !rule.to.is_empty()
            && let Some(operation) = &random.one(&rule.to).operation
        {
            facts.fit_operation(operation, random);
        }
        for condition in &rule.when {
            facts.fit_condition(condition, policy, random);
        }
        if random.once_in(2) {
            facts.change(random.below(ATTRIBUTES), random);
        }
        (facts, Some(rule))
    }

    /// Gives one attribute another value.
    fn change(&mut self, attribute: usize, random: &mut Random) {
        match attribute {
            0 => {
                let text = format!(
                    "{}/ns/{}/sa/{}",
                    random.pick(DOMAINS),
                    random.pick(NAMESPACES),
                    random.pick(ACCOUNTS)
                );
                self.identity = if random.once_in(5) { None } else { Identity::parse_principal(&text).ok() };
            }
            1 => self.source_ip = address(random),
            2 => self.remote_ip = address(random),
            3 => self.destination_ip = address(random),
            4 => {
                self.destination_port =
                    random.pick(PORTS).parse().expect("ports of the vocabulary are numbers")
            }
            5 => self.sni = (!random.once_in(3)).then(|| random.pick(NAMES).to_owned()),
            6 => self.method = random.pick(METHODS).to_owned(),
            7 => self.host = if random.once_in(8) { String::new() } else { random.pick(HOSTS).to_owned() },
            8 => {
                self.path = if random.once_in(12) { String::new() } else { random.pick(PATHS).to_owned() };
                if random.once_in(6) && !self.path.is_empty() {
                    self.path.push_str(random.pick(&["?x=/admin", "#f", "?", "?a?b"]));
                }
            }
            9 => self.forwarded = random.once_in(3).then(|| address(random)),
            _ => {
                self.headers.clear();
                for _ in 0..random.below(4) {
                    self.headers
                        .push((random.pick(&HEADERS[..4]).to_owned(), random.pick(VALUES).to_owned()));
                }
            }
        }
    }

    fn fit_source(&mut self, source: &Source, policy: &Authorization, random: &mut Random) {
        let text = |values: &[String], random: &mut Random| {
            (!values.is_empty()).then(|| instance(random.one(values).as_str(), random))
        };
        let mut parts =
            [random.pick(DOMAINS), random.pick(NAMESPACES), random.pick(ACCOUNTS)].map(str::to_owned);
        if let Some(domain) = text(&source.trust_domains, random) {
            parts[0] = domain;
        }
        if let Some(namespace) = text(&source.namespaces, random) {
            parts[1] = namespace;
        }
        if let Some(account) = text(&source.service_accounts, random) {
            let (namespace, account) = account.split_once('/').unwrap_or((&policy.namespace, &account));
            parts[1] = namespace.to_owned();
            parts[2] = account.to_owned();
        }
        let [domain, namespace, account] = parts;
        let principal = text(&source.principals, random)
            .unwrap_or_else(|| format!("{domain}/ns/{namespace}/sa/{account}"));
        if let Ok(identity) = Identity::parse_principal(&principal) {
            self.identity = Some(identity);
        }
        fit_address(&mut self.source_ip, &source.ip_blocks, random);
        let mut remote = self.forwarded.unwrap_or(self.remote_ip);
        fit_address(&mut remote, &source.remote_ip_blocks, random);
        self.set_remote(remote);
    }

    fn set_remote(&mut self, remote: IpAddr) {
        match &mut self.forwarded {
            Some(forwarded) => *forwarded = remote,
            None => self.remote_ip = remote,
        }
    }

    fn fit_operation(&mut self, operation: &Operation, random: &mut Random) {
        if let Some(port) = operation.ports.first().and_then(|p| p.parse().ok()) {
            self.destination_port = port;
        }
        for (values, field) in [
            (&operation.hosts, &mut self.host),
            (&operation.methods, &mut self.method),
            (&operation.paths, &mut self.path),
        ] {
            if !values.is_empty() {
                *field = instance(random.one(values).as_str(), random);
            }
        }
    }

    fn fit_condition(&mut self, c: &Condition, policy: &Authorization, random: &mut Random) {
        let values = c.values.clone();
        let source = |fill: fn(&mut Source) -> &mut Vec<String>| {
            let mut source = Source::default();
            fill(&mut source).clone_from(&values);
            source
        };
        match c.key.as_str() {
            "source.ip" => fit_address(&mut self.source_ip, &values, random),
            "remote.ip" => self.fit_source(&source(|s| &mut s.remote_ip_blocks), policy, random),
            "destination.ip" => fit_address(&mut self.destination_ip, &values, random),
            "source.namespace" => self.fit_source(&source(|s| &mut s.namespaces), policy, random),
            "source.serviceAccount" => self.fit_source(&source(|s| &mut s.service_accounts), policy, random),
            "source.principal" => self.fit_source(&source(|s| &mut s.principals), policy, random),
            "source.trustDomain" => self.fit_source(&source(|s| &mut s.trust_domains), policy, random),
            "destination.port" => {
                let operation = Operation { ports: values, ..Operation::default() };
                self.fit_operation(&operation, random);
            }
            "connection.sni" if !values.is_empty() => {
                self.sni = Some(instance(random.one(&values).as_str(), random))
            }
            key if !values.is_empty() => {
                let name = key.trim_start_matches("request.headers[").trim_end_matches(']');
                let value = instance(random.one(&values).as_str(), random);
                match name {
                    "host" | ":authority" => self.host = value,
                    ":path" => self.path = value,
                    ":method" => self.method = value,
                    // Tokens are fitted apart.
                    name if name.starts_with("request.auth.") => {}
                    name => self.headers.push((name.to_owned(), value)),
                }
            }
            _ => {}
        }
    }
}

/// How many attributes [`Facts::change`] knows.
const ATTRIBUTES: usize = 11;

fn address(random: &mut Random) -> IpAddr {
    random.pick(ADDRESSES).parse().expect("addresses of the vocabulary parse")
}

fn fit_address(address: &mut IpAddr, blocks: &[String], random: &mut Random) {
    if blocks.is_empty() {
        return;
    }
    let block = random.one(blocks).as_str();
    if let Ok(fits) = block.split('/').next().unwrap_or(block).parse() {
        *address = fits;
    }
}

/// A text that matches the pattern, more or less.
fn instance(pattern: &str, random: &mut Random) -> String {
    let filling = random.pick(&["", "x", "b", "/", "eu", "a/b"]);
    let text =
        pattern.replace("{**}", filling).replace("{*}", random.pick(&["q", "", "a*b", "a/b", "[", "é"]));
    let text = if random.once_in(6) { text } else { text.replace('*', filling) };
    if random.once_in(16) { text.to_ascii_uppercase() } else { text }
}
