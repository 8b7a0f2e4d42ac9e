//! Reaching a running proxy: which Pod is meant, and HTTP to a port inside of it.
//!
//! Requests travel as a port-forward of the Kubernetes API, on a cluster as on the standalone mesh, and so arrive at
//! the Pod's own 127.0.0.1, where the admin port listens.

use std::cmp::Reverse;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use futures::FutureExt as _;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use maille_proto::facts::ConfigDump;
use serde_json::Value;

use crate::client::{Api, ApiArgs};

/// istioctl's global flags.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MeshArgs {
    /// Namespace of the workload; that of the kubeconfig's context unless given.
    #[arg(short = 'n', long, global = true, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Namespace of the control plane and of mesh-wide policy.
    #[arg(short = 'i', long = "istioNamespace", alias = "istio-namespace", global = true, value_name = "NAMESPACE",
          default_value = maille_core::ROOT_NAMESPACE)]
    pub(crate) istio_namespace: String,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

impl MeshArgs {
    /// The namespace asked for; an empty one counts as none.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref().filter(|namespace| !namespace.is_empty())
    }
}

/// For everything that one question takes.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer read; a dump of 4096 destinations with a hundred endpoints each stays below.
const MAX_ANSWER: usize = 256 << 20;

/// A Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodRef {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl std::fmt::Display for PodRef {
    /// As istioctl writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// What an argument `[type/]name[.namespace]` names (reference cli 1.1, "Pod selectors").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) kind: Option<String>,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
}

/// Reads `[type/]name[.namespace]`: the namespace is what follows the last dot behind the last slash.
pub(crate) fn parse_named(argument: &str) -> Result<Named> {
    let (kind, rest) = match argument.rsplit_once('/') {
        Some((kind, rest)) => (Some(kind.to_owned()), rest),
        None => (None, argument),
    };
    let (name, namespace) = match rest.rsplit_once('.') {
        Some((name, namespace)) => (name, Some(namespace)),
        None => (rest, None),
    };
    // They become parts of a path.
    let label = |text: &str| maille_core::is_dns_label(text);
    ensure!(
        maille_core::is_dns_subdomain(name)
            && namespace.is_none_or(label)
            && kind.as_deref().is_none_or(|kind| !kind.is_empty()),
        "'{argument}' names no workload; write NAME, NAME.NAMESPACE or TYPE/NAME.NAMESPACE, e.g. deploy/cart.production"
    );
    Ok(Named { kind, name: name.to_owned(), namespace: namespace.map(str::to_owned) })
}

/// The Pod that `argument` means: `pod/x` and `x` without a look-up, anything else is resolved to the first Pod that
/// it selects, as `kubectl logs` orders them (ready, running, recent).
pub(crate) async fn find_pod(api: &Api, argument: &str, namespace: Option<&str>) -> Result<PodRef> {
    let named = parse_named(argument)?;
    if names_a_pod(&named) {
        let namespace = namespace_of(api, &named, namespace)?;
        return Ok(PodRef { namespace, name: named.name });
    }
    let pods = find_pods(api, argument, namespace).await?;
    pods.into_iter().next().with_context(|| format!("{argument} selects no Pod"))
}

/// All the Pods that `argument` means, the best first.
pub(crate) async fn find_pods(api: &Api, argument: &str, namespace: Option<&str>) -> Result<Vec<PodRef>> {
    let named = parse_named(argument)?;
    let namespace = namespace_of(api, &named, namespace)?;
    if names_a_pod(&named) {
        return Ok(vec![PodRef { namespace, name: named.name }]);
    }
    let kind = named.kind.as_deref().unwrap_or_default();
    let selector = selector_of(api, kind, &named.name, &namespace).await?;
    ensure!(!selector.is_empty(), "{argument} has no selector, so that it has no Pods of its own");
    listed(api, &namespace, &selector.join(",")).await
}

/// All Pods with these labels (`app=cart,version=v1`), the best first.
pub(crate) async fn select_pods(api: &Api, selector: &str, namespace: Option<&str>) -> Result<Vec<PodRef>> {
    let namespace = namespace.unwrap_or_else(|| api.client().default_namespace());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=!,".contains(c);
    ensure!(
        maille_core::is_dns_label(namespace) && selector.chars().all(is_plain),
        "'{selector}' selects no labels; write KEY=VALUE, several with commas between"
    );
    listed(api, namespace, &selector.replace('=', "%3D")).await
}

async fn listed(api: &Api, namespace: &str, selector: &str) -> Result<Vec<PodRef>> {
    let list = api.get(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")).await?;
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    pods.sort_by_key(|pod| {
        let created = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
        (!is_ready(pod), pod["status"]["phase"] != "Running", Reverse(created))
    });
    let names = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str());
    Ok(names.map(|name| PodRef { namespace: namespace.to_owned(), name: name.to_owned() }).collect())
}

fn names_a_pod(named: &Named) -> bool {
    matches!(named.kind.as_deref(), None | Some("pod" | "pods" | "po"))
}

pub(crate) fn namespace_of(api: &Api, named: &Named, flag: Option<&str>) -> Result<String> {
    let chosen = named.namespace.as_deref().or(flag.filter(|namespace| !namespace.is_empty()));
    let chosen = chosen.unwrap_or_else(|| api.client().default_namespace());
    ensure!(maille_core::is_dns_label(chosen), "'{chosen}' is not the name of a namespace");
    Ok(chosen.to_owned())
}

/// The label selector of whatever owns Pods, each pair in the form of a query.
async fn selector_of(api: &Api, kind: &str, name: &str, namespace: &str) -> Result<Vec<String>> {
    let of_apps = |plural: &'static str| ("apis/apps/v1", plural, "/spec/selector/matchLabels");
    let (group, plural, pointer) = match kind {
        "deployment" | "deployments" | "deploy" | "deployments.apps" => of_apps("deployments"),
        "statefulset" | "statefulsets" | "sts" | "statefulsets.apps" => of_apps("statefulsets"),
        "daemonset" | "daemonsets" | "ds" | "daemonsets.apps" => of_apps("daemonsets"),
        "replicaset" | "replicasets" | "rs" | "replicasets.apps" => of_apps("replicasets"),
        "job" | "jobs" | "jobs.batch" => ("apis/batch/v1", "jobs", "/spec/selector/matchLabels"),
        "service" | "services" | "svc" => ("api/v1", "services", "/spec/selector"),
        "gateway" | "gateways" | "gtw" | "gateways.gateway.networking.k8s.io" => {
            return Ok(vec![format!("gateway.networking.k8s.io/gateway-name%3D{name}")]);
        }
        other => bail!(
            "'{other}' is no type that has Pods; name a Pod, or a deployment/, statefulset/, daemonset/, replicaset/, \
             job/ or service/"
        ),
    };
    let owner = api.get(&format!("/{group}/namespaces/{namespace}/{plural}/{name}")).await?;
    let labels = owner.pointer(pointer).and_then(Value::as_object);
    let pairs = labels.into_iter().flatten();
    Ok(pairs.map(|(key, value)| format!("{key}%3D{}", value.as_str().unwrap_or_default())).collect())
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Asks the process that listens on 127.0.0.1:`port` inside the Pod, and gives its answer if that is a success.
pub(crate) async fn ask(api: &Api, pod: &PodRef, port: u16, method: Method, path: &str) -> Result<Vec<u8>> {
    match tokio::time::timeout(TIMEOUT, exchange(api, pod, port, method, path)).await {
        Ok(outcome) => outcome,
        Err(_) => bail!("no answer from port {port} of Pod {pod} within {} s", TIMEOUT.as_secs()),
    }
    .with_context(|| format!("cannot ask Pod {}/{}", pod.namespace, pod.name))
}

async fn exchange(api: &Api, pod: &PodRef, port: u16, method: Method, path: &str) -> Result<Vec<u8>> {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client().clone(), &pod.namespace);
    let mut forwarder = pods.portforward(&pod.name, &[port]).await.map_err(refused)?;
    let stream = forwarder.take_stream(port).context("the port-forward has no stream")?;
    let refusal = forwarder.take_error(port).context("the port-forward has no error stream")?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, format!("localhost:{port}"))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let talk = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow!("its answer broke off: {error}"))?.to_bytes();
        drop(sender);
        talk.abort();
        Ok::<_, anyhow::Error>((status, body))
    };
    // Polled again below, when it may have ended without a word.
    let refusal = refusal.fuse();
    tokio::pin!(answer, refusal);
    // What the server has to say explains more than the stream that it cut.
    let outcome = tokio::select! {
        biased;
        Some(reason) = &mut refusal => bail!("port {port} cannot be reached: {}", reason.trim()),
        outcome = &mut answer => outcome,
    };
    let (status, body) = match outcome {
        Ok(answer) => answer,
        Err(error) => match tokio::time::timeout(Duration::from_millis(200), refusal).await {
            Ok(Some(reason)) => bail!("port {port} cannot be reached: {}", reason.trim()),
            Ok(None) | Err(_) => {
                // The forwarder knows what cut the stream.
                let error = match tokio::time::timeout(Duration::from_millis(200), forwarder.join()).await {
                    Ok(Err(cause)) => anyhow!("{error:#} ({cause})"),
                    Ok(Ok(())) | Err(_) => error,
                };
                return Err(error.context(format!("port {port} did not answer")));
            }
        },
    };
    ensure!(
        status.is_success(),
        "it answered {status}: {}",
        String::from_utf8_lossy(&body).trim().chars().take(500).collect::<String>()
    );
    Ok(body.to_vec())
}

/// What a proxy lives by, as its admin port shows it.
pub(crate) async fn config_dump(api: &Api, pod: &PodRef, port: u16) -> Result<ConfigDump> {
    let bytes = match ask(api, pod, port, Method::GET, "/config_dump").await {
        Ok(bytes) => bytes,
        Err(error) => {
            let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
            return Err(match api.get(&path).await {
                Ok(found) if !has_sidecar(&found) => {
                    anyhow!("Pod {pod} has no sidecar, and so no proxy to ask")
                }
                Ok(found) => error.context(unreachable(&found, pod)),
                Err(missing) if missing.is_not_found() => {
                    anyhow!("there is no Pod {} in namespace {}", pod.name, pod.namespace)
                }
                Err(_) => error.context("no proxy answers there"),
            });
        }
    };
    serde_json::from_slice(&bytes).with_context(|| {
        format!("Pod {pod} answered on port {port} with something that is no dump of a Maille proxy")
    })
}

fn has_sidecar(pod: &Value) -> bool {
    let mut containers = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
    containers.any(|container| container["name"] == maille_inject::SIDECAR_CONTAINER)
}

/// Why no proxy answers in a Pod that has one.
fn unreachable(found: &Value, pod: &PodRef) -> String {
    match found["status"]["phase"].as_str().unwrap_or("Unknown") {
        "Running" => format!("the proxy of Pod {pod} does not answer"),
        phase => format!("Pod {pod} does not run ({phase}), and so no proxy answers in it"),
    }
}

/// What keeps a proxy from reaching what its application calls: files of DestinationRules, names without addresses.
pub(crate) fn problems(dump: &ConfigDump) -> Vec<String> {
    let mut found = Vec::new();
    for destination in dump.facts.iter().flat_map(|facts| &facts.destinations) {
        let name = &destination.name;
        for origination in destination.originations.iter().filter(|one| !one.problem.is_empty()) {
            let (port, rule, problem) = (origination.port, &origination.rule, &origination.problem);
            found.push(format!("TLS to {name}:{port} by DestinationRule {rule} does not work: {problem}"));
        }
        if !destination.lookup_failure.is_empty() {
            found.push(format!("{name} cannot be looked up: {}", destination.lookup_failure));
        }
    }
    found
}

/// The API's own words, where it has some.
fn refused(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow!("{}", status.message),
        other => {
            let chain: Vec<String> =
                std::iter::successors(Some(&other as &(dyn std::error::Error + 'static)), |error| {
                    error.source()
                })
                .map(ToString::to_string)
                .collect();
            anyhow!("the port-forward failed: {}", chain.join(": "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kind: Option<&str>, name: &str, namespace: Option<&str>) -> Named {
        Named {
            kind: kind.map(str::to_owned),
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
        }
    }

    #[test]
    fn the_namespace_follows_the_last_dot_behind_the_last_slash() {
        for (argument, expected) in [
            ("cart-7d9", named(None, "cart-7d9", None)),
            ("cart-7d9.production", named(None, "cart-7d9", Some("production"))),
            ("deploy/cart", named(Some("deploy"), "cart", None)),
            ("a.b.production", named(None, "a.b", Some("production"))),
            (
                "gateways.gateway.networking.k8s.io/edge.istio-system",
                named(Some("gateways.gateway.networking.k8s.io"), "edge", Some("istio-system")),
            ),
        ] {
            assert_eq!(parse_named(argument).expect(argument), expected);
        }
    }

    #[test]
    fn what_cannot_be_part_of_a_path_is_refused() {
        for argument in ["", "/x", "pod/", "a?b", "a/../b c", "x.", ".y", "x.a%2Fb", "pod/x.A_B"] {
            let error = parse_named(argument).expect_err(argument).to_string();
            assert!(error.contains("NAME.NAMESPACE"), "{error}");
        }
    }

    #[test]
    fn what_does_not_work_is_told_with_rule_and_file() {
        let origination = maille_proto::facts::Origination {
            port: 443,
            rule: "production/external-api-mtls".into(),
            problem: "/etc/certs/key.pem: no such file".into(),
        };
        let destination = maille_proto::facts::NamedDestination {
            name: "api.external-service.com".into(),
            originations: vec![origination],
            ..Default::default()
        };
        let facts =
            maille_proto::facts::FactsInForce { destinations: vec![destination], ..Default::default() };
        assert_eq!(
            problems(&ConfigDump { facts: Some(facts), ..Default::default() }),
            [
                "TLS to api.external-service.com:443 by DestinationRule production/external-api-mtls does not work: \
              /etc/certs/key.pem: no such file"
            ]
        );
    }

    #[test]
    fn a_pod_that_cannot_be_asked_is_told_from_one_without_a_proxy() {
        let pod = PodRef { namespace: "shop".into(), name: "cart".into() };
        let with = |name: &str, phase: &str| serde_json::json!({"spec": {"containers": [{"name": name}]}, "status": {"phase": phase}});
        assert!(!has_sidecar(&with("app", "Running")) && has_sidecar(&with("istio-proxy", "Running")));
        let why = |phase: &str| unreachable(&with("istio-proxy", phase), &pod);
        assert!(why("Pending").contains("does not run (Pending)"));
        assert!(why("Running").contains("does not answer"));
    }

    #[test]
    fn only_pods_need_no_look_up() {
        for (argument, is_pod) in
            [("x", true), ("pod/x", true), ("po/x", true), ("deploy/x", false), ("svc/x", false)]
        {
            assert_eq!(names_a_pod(&parse_named(argument).expect("named")), is_pod, "{argument}");
        }
    }
}
