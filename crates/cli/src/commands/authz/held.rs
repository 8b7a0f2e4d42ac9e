//! What the proxy of a Pod holds, and whether that is what the API says.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use maille_analysis::authz::{self, Judge, Provider, Providers, WordLists};
use maille_analysis::{Enforced, Resource, Settings, enforced};
use maille_config::mesh::{self, CONFIG_KEY, CONFIG_MAP, MeshConfig};
use maille_config::mtls::ResolvedMtls;
use maille_config::{istio, kinds};
use maille_core::{DEFAULT_TRUST_DOMAIN, ROOT_NAMESPACE, TrustDomain, ports};
use maille_policy::authentication::{JwtRule, RequestAuthentication};
use maille_policy::path::Normalization;
use maille_policy::{Authorization, TrustContext};
use maille_proto::facts as wire;

use super::CheckArgs;
use crate::client::{Api, ApiError, collection_path};
use crate::commands::admin::{PodRef, config_dump, find_pod};

/// Policy of one Pod, as it is in force.
pub(super) struct Held {
    pub(super) pod: PodRef,
    pub(super) identity: String,
    pub(super) policy: Enforced,
    /// With the keys that the proxy has; without, if the API was asked.
    pub(super) authentications: Vec<RequestAuthentication>,
    pub(super) providers: Providers,
    pub(super) trust: TrustContext,
    pub(super) normalization: Normalization,
    /// How often the proxy changed what it enforces; `None`: it could not be asked, and this is what the API says.
    pub(super) generation: Option<u32>,
}

impl Held {
    /// Everything that decides about a request, once it is known who calls.
    pub(super) fn judge(&self) -> Judge {
        let rules = self.authentications.iter().flat_map(|one| &one.rules);
        let words = rules.map(|rule| WordLists {
            issuer: rule.issuer.clone(),
            claims: rule.space_delimited_claims.clone(),
        });
        Judge::new(&self.policy.policies, &self.trust, self.providers.clone(), words.collect()).live()
    }
}

/// Asks the proxy; says on standard error if it lags behind the API, or cannot be asked.
pub(super) async fn held(args: &CheckArgs, argument: &str) -> Result<Held> {
    let api = Api::connect(&args.api).await?;
    let pod = find_pod(&api, argument, args.namespace.as_deref()).await?;
    let config = configuration(&api).await?;
    let settings = settings(args, &config)?;
    let wanted = wanted(&api, &pod, &settings).await?;
    if !wanted.meshed {
        eprintln!(
            "Pod {}/{} has no sidecar: nothing is enforced in front of it, and everybody who reaches it may call it",
            pod.namespace, pod.name
        );
        return Ok(of_api(pod, wanted, settings, config.path_normalization));
    }
    let dump = config_dump(&api, &pod, ports::ADMIN).await;
    match dump {
        Ok(dump) => {
            let held = of_proxy(pod, dump, &wanted)?;
            for difference in differences(&held.policy, &wanted) {
                eprintln!("the proxy is not up to date: {difference}");
            }
            Ok(held)
        }
        Err(error) => {
            eprintln!("{error:#}\nwhat follows is what the API's objects say, not what the proxy enforces");
            Ok(of_api(pod, wanted, settings, config.path_normalization))
        }
    }
}

/// The mesh's configuration, as the API has it; Istio's defaults if it has none, or a wrong one.
async fn configuration(api: &Api) -> Result<MeshConfig> {
    let path = format!("/api/v1/namespaces/{ROOT_NAMESPACE}/configmaps/{CONFIG_MAP}");
    let object = match api.get(&path).await {
        Ok(object) => object,
        Err(ApiError::Refused { code: 403 | 404, .. }) => return Ok(MeshConfig::default()),
        Err(error) => return Err(error).context("cannot read the mesh's configuration"),
    };
    Ok(match object["data"][CONFIG_KEY].as_str().map(mesh::check) {
        Some(Ok(config)) => config,
        Some(Err(_)) => {
            eprintln!(
                "ConfigMap {ROOT_NAMESPACE}/{CONFIG_MAP} is wrong, and not looked at; see maille analyze"
            );
            MeshConfig::default()
        }
        None => MeshConfig::default(),
    })
}

/// The flags go before the mesh's configuration.
pub(super) fn settings(args: &CheckArgs, config: &MeshConfig) -> Result<authz::Settings> {
    let domain = |text: &str| TrustDomain::parse(text).map_err(anyhow::Error::from);
    let mut settings = authz::Settings::of(config, domain(DEFAULT_TRUST_DOMAIN)?);
    if let Some(given) = &args.trust_domain {
        settings.trust_domain = domain(given)?;
    }
    for alias in &args.trust_domain_aliases {
        settings.aliases.push(domain(alias)?);
    }
    if let Some(given) = &args.root_namespace {
        settings.root_namespace.clone_from(given);
    }
    Ok(settings)
}

fn of_api(
    pod: PodRef,
    policy: Enforced,
    settings: authz::Settings,
    normalization: mesh::PathNormalization,
) -> Held {
    let authz::Settings { trust_domain, aliases, root_namespace, providers } = settings;
    let keys = |rule: &istio::JwtRule| match rule.jwks.is_empty() {
        true => Err("only the proxy has the keys that are fetched".to_owned()),
        false => Ok(rule.jwks.clone()),
    };
    let authentications = policy.authentications.iter().map(|one| RequestAuthentication {
        namespace: one.metadata.namespace.clone().unwrap_or_default(),
        name: one.metadata.name.clone().unwrap_or_default(),
        rules: one.spec.jwt_rules.iter().map(|rule| JwtRule::of_spec(rule, keys(rule))).collect(),
    });
    Held {
        identity: format!("spiffe://{trust_domain}/ns/{}/sa/{}", pod.namespace, policy.account),
        authentications: authentications.collect(),
        providers,
        trust: TrustContext { trust_domain, aliases, root_namespace },
        normalization: match normalization {
            mesh::PathNormalization::None => Normalization::None,
            mesh::PathNormalization::Base => Normalization::Base,
            mesh::PathNormalization::MergeSlashes => Normalization::MergeSlashes,
            mesh::PathNormalization::DecodeAndMergeSlashes => Normalization::DecodeAndMergeSlashes,
        },
        generation: None,
        policy,
        pod,
    }
}

/// Reads the dump as the proxy itself reads the facts in it.
fn of_proxy(pod: PodRef, dump: wire::ConfigDump, wanted: &Enforced) -> Result<Held> {
    if dump.generation == 0 {
        bail!("the proxy of Pod {}/{} has nothing in force yet, and serves nobody", pod.namespace, pod.name);
    }
    let facts = dump.facts.context("the proxy shows no facts")?;
    let settings = facts.mesh_settings.context("the proxy shows no mesh settings")?;
    let settings = maille_proxy::facts::mesh_settings(&settings).context("mesh settings")?;
    let inbound = facts.inbound.context("the proxy shows nothing of its own workload")?;
    let inbound = maille_proxy::facts::inbound(&inbound).context("inbound")?;
    let mut policies: Vec<Authorization> =
        facts.authorizations.iter().map(maille_proxy::facts::authorization).collect();
    policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut authentications: Vec<RequestAuthentication> =
        facts.request_authentications.iter().map(maille_proxy::facts::request_authentication).collect();
    authentications.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let account = inbound.workload.identity.as_ref().map(|identity| identity.service_account().to_owned());
    let ports = inbound
        .ports
        .iter()
        .map(|(port, declared)| (*port, (declared.protocol, declared.service.hostname.to_string())));
    let held = |one: &istio::RequestAuthentication| {
        authentications.iter().any(|held| is_the_same(held, one)).then(|| one.clone())
    };
    let policy = Enforced {
        meshed: true,
        account: account.unwrap_or_default(),
        ports: ports.collect(),
        mtls: ResolvedMtls { mode: inbound.mode, ports: inbound.port_modes.into_iter().collect() },
        policies,
        authentications: wanted.authentications.iter().filter_map(held).collect(),
    };
    Ok(Held {
        pod,
        identity: dump.identity,
        policy,
        authentications,
        providers: Providers::Known(settings.extension_providers.iter().map(provider).collect()),
        trust: TrustContext {
            trust_domain: settings.trust_domain,
            aliases: settings.trust_domain_aliases,
            root_namespace: settings.root_namespace,
        },
        normalization: settings.path_normalization,
        generation: Some(dump.generation),
    })
}

fn provider(provider: &wire::ExtensionProvider) -> Provider {
    use wire::extension_provider::Kind;
    let said = Some(provider.problem.clone()).filter(|problem| !problem.is_empty());
    Provider {
        name: provider.name.clone(),
        address: format!("{}:{}", provider.host, provider.port),
        asks_tcp: matches!(provider.kind, Some(Kind::Grpc(_))),
        fail_open: provider.fail_open,
        problem: said
            .or_else(|| provider.kind.is_none().then(|| "the proxy does not know its protocol".into())),
    }
}

/// Whether the proxy holds this object: by name, and by the issuers and audiences of its rules. Keys come otherwise.
fn is_the_same(held: &RequestAuthentication, wanted: &istio::RequestAuthentication) -> bool {
    let of_held = held.rules.iter().map(|rule| (&rule.issuer, &rule.audiences));
    let of_wanted = wanted.spec.jwt_rules.iter().map(|rule| (&rule.issuer, &rule.audiences));
    Some(&held.namespace) == wanted.metadata.namespace.as_ref()
        && Some(&held.name) == wanted.metadata.name.as_ref()
        && of_held.eq(of_wanted)
}

/// What the API's objects say of a Pod.
async fn wanted(api: &Api, pod: &PodRef, settings: &authz::Settings) -> Result<Enforced> {
    let mut resources = Vec::new();
    let (own, root) = (pod.namespace.as_str(), settings.root_namespace.as_str());
    for (group, plural) in [("", "pods"), ("", "services")] {
        resources.extend(list(api, group, plural, own).await?);
    }
    for plural in ["peerauthentications", "authorizationpolicies", "requestauthentications"] {
        resources.extend(list(api, "security.istio.io", plural, own).await?);
        if root != own {
            resources.extend(list(api, "security.istio.io", plural, root).await?);
        }
    }
    let settings = Settings {
        root_namespace: root.to_owned(),
        trust_domain: settings.trust_domain.to_string(),
        complete: true,
    };
    enforced(&resources, settings, own, &pod.name)
        .with_context(|| format!("there is no running Pod {} in namespace {own}", pod.name))
}

async fn list(api: &Api, group: &str, plural: &str, namespace: &str) -> Result<Vec<Resource>> {
    let kind = kinds::find_plural(group, "v1", plural).context("a kind of this mesh")?;
    let list = match api.get(&collection_path(kind, "v1", Some(namespace))).await {
        Ok(list) => list,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {plural} of {namespace}")),
    };
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items.into_iter().map(|item| Resource::listed(item, kind)).collect())
}

/// Where the proxy and the API differ, for people.
fn differences(held: &Enforced, wanted: &Enforced) -> Vec<String> {
    let by_name = |policies: &[Authorization]| -> BTreeMap<String, Authorization> {
        policies.iter().map(|p| (format!("{}/{}", p.namespace, p.name), p.clone())).collect()
    };
    let (held_policies, wanted_policies) = (by_name(&held.policies), by_name(&wanted.policies));
    let mut found = Vec::new();
    for (name, policy) in &wanted_policies {
        match held_policies.get(name) {
            None => found.push(format!("it does not hold AuthorizationPolicy {name} yet")),
            Some(other) if other != policy => {
                found.push(format!("it holds another version of AuthorizationPolicy {name}"));
            }
            Some(_) => {}
        }
    }
    for name in held_policies.keys().filter(|name| !wanted_policies.contains_key(*name)) {
        found.push(format!("it still holds AuthorizationPolicy {name}"));
    }
    let name = |one: &istio::RequestAuthentication| {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{}/{}", part(&one.metadata.namespace), part(&one.metadata.name))
    };
    let lacking = wanted.authentications.iter().filter(|one| !held.authentications.contains(one));
    found.extend(lacking.map(|one| format!("it does not hold RequestAuthentication {} as it is", name(one))));
    let mut numbers: Vec<u16> = held.mtls.ports.keys().chain(wanted.mtls.ports.keys()).copied().collect();
    numbers.dedup();
    let differing = numbers.into_iter().find(|port| held.mtls.for_port(*port) != wanted.mtls.for_port(*port));
    if held.mtls.mode != wanted.mtls.mode {
        let (old, new) = (held.mtls.mode.as_str(), wanted.mtls.mode.as_str());
        found.push(format!("it still accepts by mode {old}, and PeerAuthentication says {new}"));
    } else if let Some(port) = differing {
        let (old, new) = (held.mtls.for_port(port).as_str(), wanted.mtls.for_port(port).as_str());
        found.push(format!("port {port} is still {old}, and PeerAuthentication says {new}"));
    }
    found
}
