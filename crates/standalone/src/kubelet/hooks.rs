//! What a container wants done right after its start and before its end.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, Lifecycle, LifecycleHandler, Pod, Probe};
use maille_net::sandbox::SandboxSpec;

use super::container::PodContext;
use super::probe;
use super::security::{PROXY, is_injected};
use crate::address::BINARY_IN_CONTAINERS;

/// A hook by its name in the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    PostStart,
    PreStop,
}

impl Moment {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PostStart => "PostStartHook",
            Self::PreStop => "PreStopHook",
        }
    }

    fn of(self, lifecycle: &Lifecycle) -> Option<&LifecycleHandler> {
        match self {
            Self::PostStart => lifecycle.post_start.as_ref(),
            Self::PreStop => lifecycle.pre_stop.as_ref(),
        }
    }
}

/// What the container wants done at a moment.
///
/// An injected sidecar that has no hook of its own drains before its Pod's other containers have ended. In Kubernetes it is
/// asked to end together with them, and calls of theirs fail that last longer than its own drain.
pub(crate) fn wanted(pod: &Pod, container: &Container, moment: Moment) -> Option<LifecycleHandler> {
    let own = container.lifecycle.as_ref().and_then(|lifecycle| moment.of(lifecycle)).cloned();
    let is_sidecar = container.name == PROXY && is_injected(pod, container);
    match (own, moment) {
        (None, Moment::PreStop) if is_sidecar => Some(LifecycleHandler {
            exec: Some(ExecAction {
                command: Some([BINARY_IN_CONTAINERS, "proxy", "--drain"].map(str::to_owned).into()),
            }),
            ..Default::default()
        }),
        // Whoever starts the rest of the Pod waits for the sidecar in another way.
        (_, Moment::PostStart) if is_sidecar => None,
        (own, _) => own,
    }
}

/// Does it, for as long as it takes: a hook has no time-out but the Pod's grace period.
pub(crate) async fn run(
    hook: LifecycleHandler,
    context: &PodContext,
    container: &Container,
    exec: &SandboxSpec,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.try_into().unwrap_or_default())).await;
        return Ok(());
    }
    let probe =
        Probe { exec: hook.exec, http_get: hook.http_get, tcp_socket: hook.tcp_socket, ..Default::default() };
    probe::act(&probe, &context.target(container, exec)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_injected_sidecar_without_a_hook_drains_by_itself() {
        let container = |value| serde_json::from_value::<Container>(value).expect("a container");
        let proxy = container(serde_json::json!({"name": "istio-proxy"}));
        let own = container(serde_json::json!({"name": "istio-proxy",
            "lifecycle": {"preStop": {"sleep": {"seconds": 1}}, "postStart": {"exec": {"command": ["x"]}}}}));
        let other = container(serde_json::json!({"name": "app",
            "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}));
        let annotated = serde_json::json!({"metadata": {"annotations": {"sidecar.istio.io/status": "{}"}}});
        let injected: Pod = serde_json::from_value(annotated).expect("a Pod");
        let drains = |pod: &Pod, container: &Container| {
            wanted(pod, container, Moment::PreStop).and_then(|hook| hook.exec).is_some()
        };
        assert!(drains(&injected, &proxy));
        assert!(!drains(&injected, &own) && wanted(&injected, &own, Moment::PreStop).is_some());
        assert!(!drains(&injected, &other) && !drains(&Pod::default(), &proxy));
        assert!(wanted(&injected, &own, Moment::PostStart).is_none());
        assert!(wanted(&injected, &other, Moment::PostStart).is_some());
    }
}
