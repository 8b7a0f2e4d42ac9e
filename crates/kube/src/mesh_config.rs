//! The mesh's configuration: ConfigMap `istio` of the control plane's namespace, watched and reloaded while running.
//!
//! A bad one changes nothing: the last good one stays in force, and that is said in the log, as an Event of the
//! ConfigMap, in a metric and on the monitoring port. Without a last good one the world is not complete, and
//! nobody is served: defaults could open what the configuration is meant to close, while proxies that have facts go on with them.
//! A ConfigMap that is deleted means the defaults.

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use maille_config::mesh::{self, CONFIG_KEY, CONFIG_MAP, MeshConfig};
use maille_control::ControlPlane;
use maille_control::world::Event;
use maille_core::TrustDomain;
use tokio::sync::mpsc;

use crate::objects::ConfigMap;
use crate::watch::{Retry, config};

/// Longest message of an Event (Kubernetes' bound is 1024 bytes).
const MAX_EVENT_MESSAGE: usize = 1000;

/// Follows the ConfigMap for ever.
pub(crate) async fn feed(client: Client, events: &mpsc::Sender<Event>, control: &ControlPlane) {
    let (namespace, default_domain) = {
        let snapshot = control.hub.snapshot();
        let config = snapshot.world.config();
        (config.system_namespace.clone(), config.trust_domain.clone())
    };
    let api = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
    let of_name = config().fields(&format!("metadata.name={CONFIG_MAP}"));
    let mut stream = std::pin::pin!(watcher(api, of_name).backoff(Retry::default()));
    let mut follower = Follower::new(default_domain);
    let mut listed = None;
    while let Some(seen) = stream.next().await {
        let object = match seen {
            Err(error) => {
                tracing::warn!(%error, "watch of the mesh configuration failed; the last one stays in force, trying again");
                continue;
            }
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed = is_it(&object).then_some(object).or(listed);
                continue;
            }
            Ok(watcher::Event::InitDone) => listed.take(),
            Ok(watcher::Event::Apply(object)) if is_it(&object) => Some(object),
            Ok(watcher::Event::Delete(object)) if is_it(&object) => None,
            Ok(_) => continue,
        };
        let Step { config, problem } = follower.step(object.as_ref().map(text_of));
        let in_force = config.is_some();
        if let Some(config) = config
            && events.send(Event::MeshConfig(config)).await.is_err()
        {
            return;
        }
        let Some(problem) = follower.news(problem) else { continue };
        control.report_mesh_config(problem.clone());
        match problem {
            Some(problem) => {
                let reason = if in_force { "MeshConfigPartlyInForce" } else { "InvalidMeshConfig" };
                tracing::error!(reason, "ConfigMap {namespace}/{CONFIG_MAP}: {problem}");
                if let Some(object) = &object {
                    tell(&client, &object.metadata, reason, &problem).await;
                }
            }
            None => tracing::info!("ConfigMap {namespace}/{CONFIG_MAP} is in force again in full"),
        }
    }
}

fn text_of(object: &ConfigMap) -> Option<&str> {
    object.data.as_ref()?.get(CONFIG_KEY).map(String::as_str)
}

fn is_it(object: &ConfigMap) -> bool {
    object.metadata.name.as_deref() == Some(CONFIG_MAP)
}

/// What is in force, and what was last complained about.
#[derive(Debug)]
struct Follower {
    default_domain: TrustDomain,
    /// The trust domain in force, once there is one.
    domain: Option<TrustDomain>,
    problem: Option<String>,
}

/// What one version of the ConfigMap comes to.
#[derive(Debug, PartialEq)]
struct Step {
    /// What is to be in force; `None`: what is.
    config: Option<MeshConfig>,
    problem: Option<String>,
}

impl Follower {
    fn new(default_domain: TrustDomain) -> Self {
        Self { default_domain, domain: None, problem: None }
    }

    /// Takes in the ConfigMap's text; the outer `None` is no ConfigMap.
    fn step(&mut self, text: Option<Option<&str>>) -> Step {
        let read = match text {
            None => Ok(MeshConfig::default()),
            Some(Some(text)) => mesh::check(text).map_err(|found| {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                found.join("; ")
            }),
            Some(None) => {
                Err(format!("key {CONFIG_KEY} is not there; write {CONFIG_KEY}: \"\" for Istio's defaults"))
            }
        };
        let mut config = match read {
            Ok(config) => config,
            Err(found) => {
                let stays = if self.domain.is_some() {
                    "the last good configuration stays in force"
                } else {
                    "nothing is served until it is corrected"
                };
                return Step { config: None, problem: Some(format!("{stays}: {found}")) };
            }
        };
        let problem = self.keep_trust_domain(&mut config);
        Step { config: Some(config), problem }
    }

    /// Identities change their trust domain step by step, as certificates are renewed. Meanwhile old and new ones
    /// must be believed, which they are only if the old domain is an alias of the new one (SN-12). Without that every
    /// connection would break, so this one field then stays as it is.
    fn keep_trust_domain(&mut self, config: &mut MeshConfig) -> Option<String> {
        let wanted = config.trust_domain.clone().unwrap_or_else(|| self.default_domain.clone());
        match &self.domain {
            Some(domain) if *domain != wanted && !config.trust_domain_aliases.contains(domain) => {
                let problem = format!(
                    "trustDomain stays '{domain}' and all other fields are in force: with '{wanted}' the certificates in \
                     use would be believed no more; to change it, list '{domain}' in trustDomainAliases until every \
                     workload has a new certificate"
                );
                config.trust_domain = Some(domain.clone());
                Some(problem)
            }
            _ => {
                self.domain = Some(wanted);
                None
            }
        }
    }

    /// A problem, or its end, if that was not told yet.
    fn news(&mut self, problem: Option<String>) -> Option<Option<String>> {
        (self.problem != problem).then(|| {
            self.problem.clone_from(&problem);
            problem
        })
    }
}

/// An Event that `kubectl describe configmap istio` shows. What cannot be written is in the log anyhow.
async fn tell(client: &Client, about: &ObjectMeta, reason: &str, problem: &str) {
    let now = Timestamp::now();
    let namespace = about.namespace.clone().unwrap_or_default();
    let event = ApiEvent {
        metadata: ObjectMeta {
            name: Some(format!("{CONFIG_MAP}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            name: about.name.clone(),
            namespace: Some(namespace.clone()),
            uid: about.uid.clone(),
            resource_version: about.resource_version.clone(),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(problem.chars().take(MAX_EVENT_MESSAGE).collect()),
        source: Some(EventSource { component: Some("istiod".to_owned()), host: None }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..ApiEvent::default()
    };
    let api = Api::<ApiEvent>::namespaced(client.clone(), &namespace);
    if let Err(error) = api.create(&PostParams::default(), &event).await {
        tracing::warn!(error = crate::brief(&error), "the event about the mesh configuration is not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> TrustDomain {
        TrustDomain::parse(text).expect("valid")
    }

    fn follower() -> Follower {
        Follower::new(domain("cluster.local"))
    }

    #[test]
    fn a_bad_configuration_changes_nothing_and_names_its_field() {
        let mut follower = follower();
        let first = follower.step(Some(Some("rootNamespce: istio-config\n")));
        let problem = first.problem.expect("a problem");
        assert!(first.config.is_none() && problem.contains("nothing is served"), "{problem}");
        let good = follower.step(Some(Some("rootNamespace: istio-config\n")));
        assert_eq!(good.config.map(|c| c.root_namespace).as_deref(), Some("istio-config"));
        let bad = follower.step(Some(Some("rootNamespace: istio-config\naccessLogFile: /var/log/x\n")));
        let problem = bad.problem.expect("a problem");
        assert!(bad.config.is_none() && problem.contains("stays in force"), "{problem}");
        assert!(problem.contains("accessLogFile") && problem.contains('2'), "field and line: {problem}");
        let without = follower.step(Some(None));
        assert!(
            without.config.is_none() && without.problem.is_some_and(|p| p.contains("key mesh is not there"))
        );
        let gone = follower.step(None);
        assert_eq!(gone, Step { config: Some(MeshConfig::default()), problem: None });
    }

    #[test]
    fn a_trust_domain_changes_only_where_the_old_one_stays_an_alias() {
        let mut follower = follower();
        assert_eq!(follower.step(Some(Some(""))).problem, None);
        let refused = follower.step(Some(Some("trustDomain: new.td\nrootNamespace: istio-config\n")));
        let config = refused.config.expect("the rest");
        assert_eq!(
            (config.trust_domain, config.root_namespace.as_str()),
            (Some(domain("cluster.local")), "istio-config")
        );
        assert!(refused.problem.is_some_and(|p| p.contains("list 'cluster.local' in trustDomainAliases")));
        let taken = follower.step(Some(Some("trustDomain: new.td\ntrustDomainAliases: [cluster.local]\n")));
        assert_eq!(
            (taken.config.and_then(|c| c.trust_domain), taken.problem),
            (Some(domain("new.td")), None)
        );
        let later = follower.step(Some(Some("trustDomain: new.td\n")));
        assert_eq!((later.config.map(|c| c.trust_domain_aliases), later.problem), (Some(Vec::new()), None));
        let gone = follower.step(None);
        assert_eq!(gone.config.and_then(|c| c.trust_domain), Some(domain("new.td")));
        assert!(gone.problem.is_some());
    }

    #[test]
    fn the_first_configuration_is_taken_as_it_is() {
        let taken = follower().step(Some(Some("trustDomain: new.td\n")));
        assert_eq!(
            (taken.config.and_then(|c| c.trust_domain), taken.problem),
            (Some(domain("new.td")), None)
        );
    }

    #[test]
    fn a_problem_is_told_once() {
        let mut follower = follower();
        let problem = || Some("x".to_owned());
        assert_eq!(follower.news(None), None);
        assert_eq!(follower.news(problem()), Some(problem()));
        assert_eq!(follower.news(problem()), None);
        assert_eq!(follower.news(None), Some(None));
    }
}
