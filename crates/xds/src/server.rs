use std::future::Future;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use maille_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::limits::ACK_TIMEOUT;
use crate::resource::Resource;
use crate::server_state::{ProtocolError, Request, ServerState};

/// What may have changed for a subscriber. Too much is harmless (equal versions are not sent), too
/// little is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dirty {
    /// Anything of this type.
    Type(&'static str),
    /// One resource of this type.
    Name(&'static str, String),
}

/// The resources as one subscriber may see them. Whatever is answered here reaches the
/// peer; what it may not see is answered as absent.
pub trait View: Send + 'static {
    /// Everything of this type that a wildcard holds.
    fn list(&self, type_url: &str) -> Vec<Arc<Resource>>;
    /// One resource by name; `None` if there is none for this subscriber.
    fn resource(&self, type_url: &str, name: &str) -> Option<Arc<Resource>>;
    /// Waits for changes. An error ends the stream with that status, e.g. when the peer's right to it
    /// has ended. Must be cancel safe: a change not returned is returned by the next call.
    fn changed(&mut self) -> impl Future<Output = Result<Vec<Dirty>, Status>> + Send;
    /// Told of each request, after the subscription changed and before it is answered.
    fn requested(&mut self, type_url: &str, request: &Request, state: &ServerState);
    /// Told of each response, just before it goes out.
    fn sending(&mut self, _response: &DeltaDiscoveryResponse, _state: &ServerState) {}
}

/// Serves one stream until the peer ends it, breaks the protocol, does not
/// acknowledge in time, or its right ends. The returned responses must be polled for that to go on.
pub fn serve_stream<S, V>(
    requests: S,
    view: V,
) -> impl Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send + 'static
where
    S: Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Send + Unpin + 'static,
    V: View,
{
    // One response per type is on its way at most, so the queue stays as short as that.
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        if let Err(status) = drive(requests, view, &sender).await {
            // A peer that is gone needs no status.
            let _ = sender.send(Err(status)).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn drive<S, V>(
    mut requests: S,
    mut view: V,
    sender: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
) -> Result<(), Status>
where
    S: Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Unpin,
    V: View,
{
    let mut state = ServerState::new();
    let mut deadline = Instant::now() + ACK_TIMEOUT;
    loop {
        while let Some(response) = state.next_response(&view) {
            deadline = Instant::now() + ACK_TIMEOUT;
            view.sending(&response, &state);
            tokio::select! {
                sent = sender.send(Ok(response)) => if sent.is_err() { return Ok(()) },
                () = sleep_until(deadline) => return Err(too_slow()),
            }
        }
        tokio::select! {
            request = requests.next() => match request {
                None => return Ok(()),
                Some(Err(status)) => return Err(status),
                Some(Ok(request)) => {
                    let type_url = request.type_url.clone();
                    let done = state.request(request).map_err(|e| refusal(&e))?;
                    if done.acked || done.nacked.is_some() {
                        deadline = Instant::now() + ACK_TIMEOUT;
                    }
                    view.requested(&type_url, &done, &state);
                }
            },
            dirty = view.changed() => for dirty in dirty? {
                state.mark(&dirty);
            },
            () = sleep_until(deadline), if state.awaits_ack() => return Err(too_slow()),
            () = sender.closed() => return Ok(()),
        }
    }
}

fn too_slow() -> Status {
    Status::deadline_exceeded(format!("no ack within {ACK_TIMEOUT:?}; dial again"))
}

fn refusal(error: &ProtocolError) -> Status {
    match error {
        ProtocolError::Name(_) => Status::invalid_argument(error.to_string()),
        ProtocolError::TooManySubscriptions | ProtocolError::TooManyTypes => {
            Status::resource_exhausted(error.to_string())
        }
    }
}
