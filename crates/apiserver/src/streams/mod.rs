//! `pods/x/exec`, `pods/x/attach`, `pods/x/portforward`: streams of bytes into a Pod, over WebSocket.
//!
//! Source: KEP-4006; apimachinery `util/remotecommand`, `util/portforward`; kubelet `pkg/cri/streaming`.

mod exec;
mod portforward;
mod sessions;
mod websocket;

use std::sync::Arc;

use http::Response;
use http::request::Parts;
use serde_json::Value;

use crate::api::{Api, Caller};
use crate::json;
use crate::pods::PodStreams;
use crate::request::{Query, Target};
use crate::respond::Body;
use crate::status::{ApiError, ApiResult};
use crate::verbs::read;

pub(crate) use sessions::Sessions;

/// Whether a Pod's subresource is a stream, and not an object.
pub(crate) fn is_stream(target: &Target) -> bool {
    target.resource.is("", "pods")
        && matches!(target.subresource.as_deref(), Some("exec" | "attach" | "portforward"))
}

/// Answers a request whose sender has the right to it.
pub(crate) async fn answer(
    api: &Arc<Api>,
    caller: &Caller,
    target: &Target,
    query: &Query,
    parts: &Parts,
) -> ApiResult<Response<Body>> {
    match target.subresource.as_deref() {
        Some("portforward") => portforward::answer(api, caller, target, query, parts),
        Some("exec") => exec::answer(api, caller, target, query, parts).await,
        _ => Err(ApiError::new(
            405,
            "MethodNotAllowed",
            "this API does not serve attach: `kubectl logs -f` follows what a container writes, and `kubectl exec` \
             runs a command beside it",
        )),
    }
}

/// Whoever runs the Pods.
fn runner(api: &Api) -> ApiResult<Arc<dyn PodStreams>> {
    api.pods.clone().ok_or_else(|| ApiError::unavailable("this API runs no Pods"))
}

/// The Pod, which must be running.
fn running_pod(api: &Api, target: &Target, what: &str) -> ApiResult<Arc<Value>> {
    let pod = read::object(&api.store, target)?;
    match json::text(&pod, &["status", "phase"]) {
        "Running" => Ok(pod),
        phase => {
            let phase = if phase.is_empty() { "Pending" } else { phase };
            Err(ApiError::bad_request(format!(
                "unable to {what} because pod is not running. Current status={phase}"
            )))
        }
    }
}
