//! From specs to rule trees, or to the problem that prevents it.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use maille_config::istio::{Condition, Operation, Rule, Source};

use crate::address::{AddressSet, Block};
use crate::peer::{self, NamespacePattern, TrustDomainSet};
use crate::rule::{AllOf, RuleTree, TestId, Tests};
use crate::template::{self, PathTemplate};
use crate::test::{Check, Header, Test};
use crate::text::{TextPattern, TextSet};
use crate::token::{ClaimPath, RequestPrincipals};
use crate::{Authorization, TrustContext};

/// Why a rule cannot be compiled: field path below the rule, and what is wrong.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) field: String,
    pub(crate) message: String,
}

type Compiled<T> = Result<T, Fault>;

/// Collects tests; equal ones get one id.
#[derive(Default)]
pub(crate) struct Compiler {
    all: Vec<Test>,
    ids: HashMap<Test, TestId, RandomState>,
}

impl Compiler {
    pub(crate) fn finish(self) -> Tests {
        Tests::new(self.all)
    }

    fn intern(&mut self, test: Test) -> TestId {
        if let Some(id) = self.ids.get(&test) {
            return *id;
        }
        let id = self.all.len() as TestId;
        self.all.push(test.clone());
        self.ids.insert(test, id);
        id
    }

    /// The tree of one rule.
    pub(crate) fn rule(
        &mut self,
        rule: &Rule,
        policy: &Authorization,
        trust: &TrustContext,
    ) -> Compiled<RuleTree> {
        let mut tree = RuleTree::default();
        for (i, from) in rule.from.iter().enumerate() {
            let mut all = AllOf::new();
            if let Some(source) = &from.source {
                self.source(source, policy, trust, &mut all)
                    .map_err(|f| f.below(&format!("from[{i}].source")))?;
            }
            tree.sources.push(all);
        }
        for (i, to) in rule.to.iter().enumerate() {
            let mut all = AllOf::new();
            if let Some(operation) = &to.operation {
                self.operation(operation, &mut all).map_err(|f| f.below(&format!("to[{i}].operation")))?;
            }
            tree.operations.push(all);
        }
        for (i, condition) in rule.when.iter().enumerate() {
            self.condition(condition, policy, trust, &mut tree.when)
                .map_err(|f| f.below(&format!("when[{i}]")))?;
        }
        Ok(tree)
    }

    /// Adds the test of one value list, if there is one.
    fn add(
        &mut self,
        all: &mut AllOf,
        field: &str,
        negated: bool,
        values: &[String],
        check: impl FnOnce(&[String]) -> Result<Check, String>,
    ) -> Compiled<()> {
        if values.is_empty() {
            return Ok(());
        }
        let fault = |message: String| Fault { field: field.to_owned(), message };
        if values.iter().any(String::is_empty) {
            return Err(fault("an empty value is not allowed".to_owned()));
        }
        let check = check(values).map_err(fault)?;
        all.push(self.intern(Test { check, negated, written: values.to_vec() }));
        Ok(())
    }

    fn source(
        &mut self,
        source: &Source,
        policy: &Authorization,
        trust: &TrustContext,
        all: &mut AllOf,
    ) -> Compiled<()> {
        for (field, negated, values) in
            [("principals", false, &source.principals), ("notPrincipals", true, &source.not_principals)]
        {
            self.add(all, field, negated, values, |v| Ok(principals(v, trust)))?;
        }
        for (field, negated, values) in [
            ("requestPrincipals", false, &source.request_principals),
            ("notRequestPrincipals", true, &source.not_request_principals),
        ] {
            self.add(all, field, negated, values, |v| {
                Ok(Check::RequestPrincipal(RequestPrincipals::parse(v)))
            })?;
        }
        for (field, negated, values) in
            [("namespaces", false, &source.namespaces), ("notNamespaces", true, &source.not_namespaces)]
        {
            self.add(all, field, negated, values, |v| Ok(namespaces(v)))?;
        }
        for (field, negated, values) in [
            ("serviceAccounts", false, &source.service_accounts),
            ("notServiceAccounts", true, &source.not_service_accounts),
        ] {
            self.add(all, field, negated, values, |v| service_accounts(v, &policy.namespace))?;
        }
        for (field, negated, values) in [
            ("trustDomains", false, &source.trust_domains),
            ("notTrustDomains", true, &source.not_trust_domains),
        ] {
            self.add(all, field, negated, values, |v| trust_domains(v, trust))?;
        }
        for (field, negated, values) in
            [("ipBlocks", false, &source.ip_blocks), ("notIpBlocks", true, &source.not_ip_blocks)]
        {
            self.add(all, field, negated, values, |v| blocks(v).map(Check::SourceIp))?;
        }
        for (field, negated, values) in [
            ("remoteIpBlocks", false, &source.remote_ip_blocks),
            ("notRemoteIpBlocks", true, &source.not_remote_ip_blocks),
        ] {
            self.add(all, field, negated, values, |v| blocks(v).map(Check::RemoteIp))?;
        }
        Ok(())
    }

    fn operation(&mut self, operation: &Operation, all: &mut AllOf) -> Compiled<()> {
        for (field, negated, values) in
            [("hosts", false, &operation.hosts), ("notHosts", true, &operation.not_hosts)]
        {
            self.add(all, field, negated, values, |v| Ok(Check::Host(texts(v, true))))?;
        }
        for (field, negated, values) in
            [("ports", false, &operation.ports), ("notPorts", true, &operation.not_ports)]
        {
            self.add(all, field, negated, values, ports)?;
        }
        for (field, negated, values) in
            [("methods", false, &operation.methods), ("notMethods", true, &operation.not_methods)]
        {
            self.add(all, field, negated, values, |v| Ok(Check::Method(texts(v, false))))?;
        }
        for (field, negated, values) in
            [("paths", false, &operation.paths), ("notPaths", true, &operation.not_paths)]
        {
            self.add(all, field, negated, values, paths)?;
        }
        Ok(())
    }

    fn condition(
        &mut self,
        condition: &Condition,
        policy: &Authorization,
        trust: &TrustContext,
        all: &mut AllOf,
    ) -> Compiled<()> {
        let key = condition.key.as_str();
        let fault = |message: String| Err(Fault { field: "key".to_owned(), message });
        if condition.values.is_empty() && condition.not_values.is_empty() {
            return Err(Fault {
                field: "values".to_owned(),
                message: "values or notValues must be set".to_owned(),
            });
        }
        let attribute = match conditioned(key) {
            Ok(attribute) => attribute,
            Err(message) => return fault(message),
        };
        for (field, negated, values) in
            [("values", false, &condition.values), ("notValues", true, &condition.not_values)]
        {
            self.add(all, field, negated, values, |v| match &attribute {
                Conditioned::Header(header) => Ok(Check::Header(header.clone(), texts(v, false))),
                Conditioned::Claim(path) => Ok(Check::Claim(path.clone(), texts(v, false))),
                Conditioned::RequestPrincipal => Ok(Check::RequestPrincipal(RequestPrincipals::parse(v))),
                Conditioned::SourceIp => blocks(v).map(Check::SourceIp),
                Conditioned::RemoteIp => blocks(v).map(Check::RemoteIp),
                Conditioned::DestinationIp => blocks(v).map(Check::DestinationIp),
                Conditioned::Namespace => Ok(namespaces(v)),
                Conditioned::ServiceAccount => service_accounts(v, &policy.namespace),
                Conditioned::Principal => Ok(principals(v, trust)),
                Conditioned::TrustDomain => trust_domains(v, trust),
                Conditioned::Port => ports(v),
                Conditioned::Sni => Ok(Check::Sni(texts(v, false))),
            })?;
        }
        Ok(())
    }
}

/// What the key of a condition names.
enum Conditioned {
    Header(Header),
    Claim(ClaimPath),
    RequestPrincipal,
    SourceIp,
    RemoteIp,
    DestinationIp,
    Namespace,
    ServiceAccount,
    Principal,
    TrustDomain,
    Port,
    Sni,
}

/// Reads a key (reference authorization 9).
fn conditioned(key: &str) -> Result<Conditioned, String> {
    if let Some(brackets) = key.strip_prefix("request.headers") {
        let name = brackets.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        return match name.filter(|name| !name.is_empty()) {
            Some(name) => Ok(Conditioned::Header(Header::parse(name))),
            None => Err(format!("'{key}' is not of the form request.headers[<name>]")),
        };
    }
    if let Some(brackets) = key.strip_prefix("request.auth.claims") {
        return match ClaimPath::parse(brackets) {
            Some(path) => Ok(Conditioned::Claim(path)),
            None => Err(format!("'{key}' is not of the form request.auth.claims[<name>]")),
        };
    }
    Ok(match key {
        "request.auth.principal" => Conditioned::RequestPrincipal,
        "request.auth.audiences" => Conditioned::Claim(ClaimPath::top("aud")),
        "request.auth.presenter" => Conditioned::Claim(ClaimPath::top("azp")),
        "source.ip" => Conditioned::SourceIp,
        "remote.ip" => Conditioned::RemoteIp,
        "destination.ip" => Conditioned::DestinationIp,
        "source.namespace" => Conditioned::Namespace,
        "source.serviceAccount" => Conditioned::ServiceAccount,
        "source.principal" => Conditioned::Principal,
        "source.trustDomain" => Conditioned::TrustDomain,
        "destination.port" => Conditioned::Port,
        "connection.sni" => Conditioned::Sni,
        _ => return Err(format!("'{key}' is no attribute")),
    })
}

impl Fault {
    pub(crate) fn below(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), message: self.message }
    }
}

fn texts(values: &[String], fold: bool) -> TextSet {
    TextSet::new(&values.iter().map(|v| TextPattern::parse(v)).collect::<Vec<_>>(), fold)
}

fn principals(values: &[String], trust: &TrustContext) -> Check {
    let patterns: Vec<_> = values
        .iter()
        .flat_map(|v| peer::expand_principal(v, trust))
        .map(|v| peer::principal_pattern(&v))
        .collect();
    Check::Principal(TextSet::new(&patterns, false))
}

fn namespaces(values: &[String]) -> Check {
    let mut patterns: Vec<_> = values.iter().map(|v| NamespacePattern::parse(v)).collect();
    patterns.sort();
    Check::Namespace(patterns)
}

fn service_accounts(values: &[String], policy_namespace: &str) -> Result<Check, String> {
    let mut accounts =
        values.iter().map(|v| peer::service_account(v, policy_namespace)).collect::<Result<Vec<_>, _>>()?;
    accounts.sort();
    Ok(Check::ServiceAccount(accounts))
}

fn trust_domains(values: &[String], trust: &TrustContext) -> Result<Check, String> {
    TrustDomainSet::parse(&peer::expand_trust_domains(values, trust)).map(Check::TrustDomain)
}

fn blocks(values: &[String]) -> Result<AddressSet, String> {
    Ok(AddressSet::new(&values.iter().map(|v| Block::parse(v)).collect::<Result<Vec<_>, _>>()?))
}

fn ports(values: &[String]) -> Result<Check, String> {
    let parse = |value: &String| match value.parse::<u16>() {
        Ok(port) if value.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(format!("'{value}' is no port: an integer from 0 to 65535")),
    };
    let mut ports = values.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    ports.sort_unstable();
    Ok(Check::Port(ports))
}

fn paths(values: &[String]) -> Result<Check, String> {
    let (mut plain, mut templates) = (Vec::new(), Vec::new());
    for value in values {
        if template::has_braces(value) {
            templates.push(PathTemplate::parse(value).map_err(|e| format!("path template '{value}': {e}"))?);
        } else {
            plain.push(TextPattern::parse(value));
        }
    }
    Ok(Check::Path(TextSet::new(&plain, false), templates))
}
