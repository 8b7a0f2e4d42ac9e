//! The sidecar's containers and volumes.

use std::time::Duration;

use maille_config::k8s::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, ObjectFieldSelector, Probe,
    ProjectedVolumeSource, ResourceRequirements, SecurityContext, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use maille_config::k8s::{IntOrString, Quantity};
use maille_config::proxy_config::ProxyConfig;
use maille_core::ports;
use serde_json::json;

use crate::InjectSettings;
use crate::annotations::Wishes;

/// Name of the proxy's container.
pub const SIDECAR_CONTAINER: &str = "istio-proxy";
/// Name of the container that installs the redirection.
pub const INIT_CONTAINER: &str = "istio-init";

const TOKEN_VOLUME: &str = "istio-token";
const ROOT_VOLUME: &str = "istiod-ca-cert";
const STATE_VOLUME: &str = "workload-state";
/// Istio's name.
const SOCKET_VOLUME: &str = "workload-socket";
/// Names of the volumes that injection adds; the last one where applications get certificates.
pub(crate) const VOLUMES: [&str; 4] = [STATE_VOLUME, TOKEN_VOLUME, ROOT_VOLUME, SOCKET_VOLUME];

const TOKEN_MOUNT: &str = "/var/run/secrets/tokens";
const ROOT_MOUNT: &str = "/var/run/secrets/istio";
const STATE_MOUNT: &str = "/var/lib/maille";
/// Where Istio has the socket of the Workload API (reference mtls 6.5).
const SOCKET_MOUNT: &str = "/var/run/secrets/workload-spiffe-uds";
/// Where the sidecar keeps its files.
pub(crate) const RESERVED_MOUNTS: [&str; 4] = [STATE_MOUNT, TOKEN_MOUNT, ROOT_MOUNT, SOCKET_MOUNT];
/// By this, clients of the Workload API find the socket (SPIFFE Workload Endpoint section 4).
const ENDPOINT_SOCKET: &str = "SPIFFE_ENDPOINT_SOCKET";

/// ConfigMap with the roots, in every namespace (reference mtls 5.6).
const ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";
const TOKEN_AUDIENCE: &str = "istio-ca";
/// Twelve hours (reference mtls 5.3).
const TOKEN_SECONDS: i64 = 43_200;

/// The container that installs the redirection and ends.
pub(crate) fn init_container(settings: &InjectSettings, args: &[String]) -> Container {
    Container {
        name: INIT_CONTAINER.to_owned(),
        image: Some(settings.image.clone()),
        command: Some(vec![settings.binary.clone()]),
        args: Some(std::iter::once("intercept".to_owned()).chain(args.iter().cloned()).collect()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".to_owned(), "NET_RAW".to_owned()]),
                drop: Some(vec!["ALL".to_owned()]),
            }),
            privileged: Some(false),
            read_only_root_filesystem: Some(false),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            run_as_user: Some(0),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The proxy.
pub(crate) fn proxy_container(
    settings: &InjectSettings,
    wishes: &Wishes,
    extra_env: Vec<EnvVar>,
) -> Container {
    let mut env = vec![
        from_field("POD_NAME", "metadata.name"),
        from_field("POD_NAMESPACE", "metadata.namespace"),
        from_field("INSTANCE_IP", "status.podIP"),
        from_field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        value("DISCOVERY_ADDRESS", &settings.discovery_address),
        value("CA_ADDR", &settings.discovery_address),
        value("TRUST_DOMAIN", settings.trust_domain.as_str()),
        // The allocator takes memory before any code of ours runs; in huge pages an idle sidecar would be 5.6 MB larger.
        value("MIMALLOC_ALLOW_THP", "0"),
    ];
    env.extend(config_env(&wishes.proxy));
    if wishes.has_workload_api() {
        env.push(value("MAILLE_WORKLOAD_SOCKET", &format!("{SOCKET_MOUNT}/socket")));
    }
    env.extend(extra_env);
    let mut mounts = vec![
        mount(STATE_VOLUME, STATE_MOUNT, false),
        mount(ROOT_VOLUME, ROOT_MOUNT, true),
        mount(TOKEN_VOLUME, TOKEN_MOUNT, true),
    ];
    if wishes.has_workload_api() {
        mounts.push(mount(SOCKET_VOLUME, SOCKET_MOUNT, false));
    }
    mounts.extend(wishes.mounts.iter().cloned());
    Container {
        name: SIDECAR_CONTAINER.to_owned(),
        image: Some(settings.image.clone()),
        command: Some(vec![settings.binary.clone()]),
        args: Some(vec!["proxy".to_owned()]),
        env: Some(env),
        ports: Some(vec![ContainerPort {
            name: Some("http-envoy-prom".to_owned()),
            container_port: i32::from(ports::METRICS),
            protocol: Some("TCP".to_owned()),
            ..Default::default()
        }]),
        readiness_probe: wishes.status.then(|| ready(15, 4)),
        startup_probe: wishes.status.then(|| ready(1, 600)),
        lifecycle: lifecycle(settings, wishes),
        restart_policy: wishes.is_native.then(|| "Always".to_owned()),
        resources: Some(resources(wishes)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_group: Some(i64::from(ports::PROXY_UID)),
            run_as_non_root: Some(true),
            run_as_user: Some(i64::from(ports::PROXY_UID)),
            ..Default::default()
        }),
        volume_mounts: Some(mounts),
        ..Default::default()
    }
}

/// Shows the Workload API to a container of the application: the socket's directory, in which nothing can be put in the
/// socket's place from there, and where it is. A container that has something else there keeps it, and one that says
/// itself where its Workload API is is believed.
pub(crate) fn show_workload_api(container: &mut Container) {
    let mounts = container.volume_mounts.get_or_insert_default();
    let theirs = |mount: &VolumeMount| mount.mount_path.trim_end_matches('/').starts_with(SOCKET_MOUNT);
    if mounts.iter().any(theirs) {
        return;
    }
    mounts.push(mount(SOCKET_VOLUME, SOCKET_MOUNT, true));
    let env = container.env.get_or_insert_default();
    if !env.iter().any(|variable| variable.name == ENDPOINT_SOCKET) {
        env.push(value(ENDPOINT_SOCKET, &format!("unix://{SOCKET_MOUNT}/socket")));
    }
}

/// What the proxy is told of its `ProxyConfig`; what it is not told has its default.
fn config_env(config: &ProxyConfig) -> Vec<EnvVar> {
    let whole = |duration: Duration| duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    let seconds = |duration: Option<Duration>| duration.map(|duration| whole(duration).to_string());
    let switch = |on: Option<bool>| on.map(|on| on.to_string());
    // Zero is the default: as many as there are processors.
    let workers = config.concurrency.filter(|count| *count > 0).map(|count| count.to_string());
    let minimum = config.minimum_drain_duration.map(|duration| format!("{}ms", duration.as_millis()));
    let lifetime = config.secret_ttl.map(|duration| format!("{}s", whole(duration)));
    // As Istio writes it; read by whoever starts the containers.
    let hold = config.hold_application_until_proxy_starts;
    let hold = hold.map(|hold| json!({"holdApplicationUntilProxyStarts": hold}).to_string());
    let all = [
        ("PROXY_CONFIG", hold),
        ("MAILLE_WORKERS", workers),
        ("MAILLE_DRAIN_DURATION_SECONDS", seconds(config.drain_duration)),
        ("TERMINATION_DRAIN_DURATION_SECONDS", seconds(config.termination_drain_duration)),
        ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", switch(config.exit_on_zero_active_connections)),
        ("MINIMUM_DRAIN_DURATION", minimum),
        ("SECRET_TTL", lifetime),
        ("ISTIO_META_DNS_CAPTURE", switch(config.dns_capture)),
    ];
    all.into_iter().filter_map(|(name, text)| Some(value(name, &text?))).collect()
}

/// Hooks of the proxy (reference mtls 7.7): containers after it wait until it is ready, if they are to; and as an init
/// container, which is asked to end last, it drains when its Pod is to end.
fn lifecycle(settings: &InjectSettings, wishes: &Wishes) -> Option<Lifecycle> {
    let ask = |what: &str| LifecycleHandler {
        exec: Some(ExecAction {
            command: Some(vec![settings.binary.clone(), "proxy".to_owned(), what.to_owned()]),
        }),
        ..Default::default()
    };
    // For an init container, the startup probe does this.
    let holds = wishes.proxy.hold_application_until_proxy_starts == Some(true) && !wishes.is_native;
    let lifecycle = Lifecycle {
        post_start: holds.then(|| ask("--wait")),
        pre_stop: (wishes.is_native && wishes.status).then(|| ask("--drain")),
        ..Default::default()
    };
    (lifecycle.post_start.is_some() || lifecycle.pre_stop.is_some()).then_some(lifecycle)
}

/// The volumes of the proxy: its state in memory, the roots, a token for the authority alone, and the directory that it
/// shares with the application.
pub(crate) fn volumes(wishes: &Wishes) -> Vec<Volume> {
    let in_memory = |name: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: Some("Memory".to_owned()), ..Default::default() }),
        ..Default::default()
    };
    let mut volumes = vec![
        in_memory(STATE_VOLUME),
        Volume {
            name: TOKEN_VOLUME.to_owned(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        audience: Some(TOKEN_AUDIENCE.to_owned()),
                        expiration_seconds: Some(TOKEN_SECONDS),
                        path: "istio-token".to_owned(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        },
        Volume {
            name: ROOT_VOLUME.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: ROOT_CONFIG_MAP.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        },
    ];
    if wishes.has_workload_api() {
        volumes.push(in_memory(SOCKET_VOLUME));
    }
    volumes
}

/// Whether the proxy is ready: asked every second while it starts, every 15 s later on (reference mtls 10).
fn ready(period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/healthz/ready".to_owned()),
            port: IntOrString::Int(i32::from(ports::READINESS)),
            ..Default::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        ..Default::default()
    }
}

fn resources(wishes: &Wishes) -> ResourceRequirements {
    let mut requests = wishes.requests.clone();
    // What an idle sidecar really takes, so that schedulers do not reserve what nobody uses.
    requests.entry("cpu".to_owned()).or_insert_with(|| Quantity("10m".to_owned()));
    requests.entry("memory".to_owned()).or_insert_with(|| Quantity("24Mi".to_owned()));
    let limits = Some(wishes.limits.clone()).filter(|limits| !limits.is_empty());
    ResourceRequirements { claims: None, limits, requests: Some(requests) }
}

pub(crate) fn value(name: &str, text: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(text.to_owned()), value_from: None }
}

fn from_field(name: &str, field_path: &str) -> EnvVar {
    let field_ref =
        ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: field_path.to_owned() };
    let source = EnvVarSource { field_ref: Some(field_ref), ..Default::default() };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}
