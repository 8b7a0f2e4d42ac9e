//! What the proxy of a Pod holds, and whether that is what the API says.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use maille_analysis::{Enforced, Resource, Settings, enforced};
use maille_config::kinds;
use maille_config::mtls::ResolvedMtls;
use maille_core::{DEFAULT_TRUST_DOMAIN, TrustDomain, ports};
use maille_policy::path::Normalization;
use maille_policy::{Authorization, TrustContext};
use maille_proto::facts as wire;

use super::CheckArgs;
use crate::client::{Api, collection_path};
use crate::commands::admin::{PodRef, config_dump, find_pod};

/// Policy of one Pod, as it is in force.
pub(super) struct Held {
    pub(super) pod: PodRef,
    pub(super) identity: String,
    pub(super) policy: Enforced,
    pub(super) trust: TrustContext,
    pub(super) normalization: Normalization,
    /// How often the proxy changed what it enforces; `None`: it could not be asked, and this is what the API says.
    pub(super) generation: Option<u32>,
}

/// Asks the proxy; says on standard error if it lags behind the API, or cannot be asked.
pub(super) async fn held(args: &CheckArgs, argument: &str) -> Result<Held> {
    let api = Api::connect(&args.api).await?;
    let pod = find_pod(&api, argument, args.namespace.as_deref()).await?;
    let wanted = wanted(&api, &pod, &args.root_namespace).await?;
    if !wanted.meshed {
        eprintln!(
            "Pod {}/{} has no sidecar: nothing is enforced in front of it, and everybody who reaches it may call it",
            pod.namespace, pod.name
        );
        return of_api(args, pod, wanted);
    }
    let dump = config_dump(&api, &pod, ports::ADMIN).await;
    match dump {
        Ok(dump) => {
            let held = of_proxy(pod, dump)?;
            for difference in differences(&held.policy, &wanted) {
                eprintln!("the proxy is not up to date: {difference}");
            }
            Ok(held)
        }
        Err(error) => {
            eprintln!("{error:#}\nwhat follows is what the API's objects say, not what the proxy enforces");
            of_api(args, pod, wanted)
        }
    }
}

fn of_api(args: &CheckArgs, pod: PodRef, policy: Enforced) -> Result<Held> {
    let trust_domain = TrustDomain::parse(&args.trust_domain)?;
    Ok(Held {
        identity: format!("spiffe://{trust_domain}/ns/{}/sa/{}", pod.namespace, policy.account),
        trust: TrustContext {
            trust_domain,
            aliases: Vec::new(),
            root_namespace: args.root_namespace.clone(),
        },
        normalization: Normalization::Base,
        generation: None,
        policy,
        pod,
    })
}

/// Reads the dump as the proxy itself reads the facts in it.
fn of_proxy(pod: PodRef, dump: wire::ConfigDump) -> Result<Held> {
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
    let account = inbound.workload.identity.as_ref().map(|identity| identity.service_account().to_owned());
    let ports = inbound
        .ports
        .iter()
        .map(|(port, declared)| (*port, (declared.protocol, declared.service.hostname.to_string())));
    let policy = Enforced {
        meshed: true,
        account: account.unwrap_or_default(),
        ports: ports.collect(),
        mtls: ResolvedMtls { mode: inbound.mode, ports: inbound.port_modes.into_iter().collect() },
        policies,
    };
    Ok(Held {
        pod,
        identity: dump.identity,
        policy,
        trust: TrustContext {
            trust_domain: settings.trust_domain,
            aliases: settings.trust_domain_aliases,
            root_namespace: settings.root_namespace,
        },
        normalization: settings.path_normalization,
        generation: Some(dump.generation),
    })
}

/// What the API's objects say of a Pod.
async fn wanted(api: &Api, pod: &PodRef, root: &str) -> Result<Enforced> {
    let mut resources = Vec::new();
    let own = pod.namespace.as_str();
    for (group, plural) in [("", "pods"), ("", "services")] {
        resources.extend(list(api, group, plural, own).await?);
    }
    for plural in ["peerauthentications", "authorizationpolicies"] {
        resources.extend(list(api, "security.istio.io", plural, own).await?);
        if root != own {
            resources.extend(list(api, "security.istio.io", plural, root).await?);
        }
    }
    let settings = Settings {
        root_namespace: root.to_owned(),
        trust_domain: DEFAULT_TRUST_DOMAIN.to_owned(),
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
