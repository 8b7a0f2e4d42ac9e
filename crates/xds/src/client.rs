use std::collections::VecDeque;
use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use maille_proto::discovery::DeltaDiscoveryRequest;
use maille_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::backoff::Backoff;
use crate::client_state::{ClientState, SubscribeError};
use crate::limits::MAX_RESPONSE_BYTES;
use crate::resource::{Rejection, Update};

/// How long a connection, and then the stream on it, may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// What `connect` may fail with.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Why a stream is not up.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to the control plane: {0}")]
    Connect(BoxError),
    /// The stream was refused or broke.
    #[error("discovery stream ended: {} ({:?})", .0.message(), .0.code())]
    Stream(Box<tonic::Status>),
    /// The server closed the stream in order, as it does when it stops.
    #[error("the control plane closed the discovery stream")]
    Closed,
}

/// Receives what the stream brings. Called from one task, in order.
pub trait Handler: Send {
    /// A stream is up; subscriptions are being sent.
    fn connected(&mut self) {}
    /// The stream is gone or could not be made; the client goes on trying. What was applied stays valid.
    fn disconnected(&mut self, error: &ClientError);
    /// Applies an update, all of it but what it rejects. An update may be empty: the first answer to a
    /// wildcard says that all there is has arrived.
    fn apply(&mut self, update: Update) -> Result<(), Vec<Rejection>>;
}

/// How [`run_client`] behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Names this client in the server's records; its identity comes from its certificate.
    pub node_id: String,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// How long a stream must have lived for the back-off to start over.
    pub stable_after: Duration,
}

impl ClientOptions {
    /// The usual behaviour under this name.
    pub fn new(node_id: impl Into<String>) -> Self {
        Self { node_id: node_id.into(), backoff: Backoff::default(), stable_after: Duration::from_secs(5) }
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<ClientState>,
    wake: Notify,
    reconnect: Notify,
    connected: watch::Sender<bool>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, ClientState> {
        // The state machine does not panic halfway through a change; a poisoned lock means another
        // thread died elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handle for subscribing; clones share one stream. Works whether or not a stream is up.
#[derive(Debug, Clone)]
pub struct Client(Arc<Shared>);

/// The running half of a [`Client`], for [`run_client`].
#[derive(Debug)]
pub struct Driver(Arc<Shared>);

impl Client {
    /// A client with no subscription, and the half that runs it.
    pub fn new(options: &ClientOptions) -> (Self, Driver) {
        let shared = Arc::new(Shared {
            state: Mutex::new(ClientState::new(options.node_id.clone())),
            wake: Notify::new(),
            reconnect: Notify::new(),
            connected: watch::Sender::new(false),
        });
        (Self(Arc::clone(&shared)), Driver(shared))
    }

    /// Notes resources held from an earlier life (type URL, name, version). To be called before the
    /// subscriptions are made; see [`ClientState::resume`].
    pub fn resume<'a>(&self, known: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) {
        let mut state = self.0.state();
        for (type_url, name, version) in known {
            state.resume(type_url, name, version);
        }
    }

    /// Subscribes to one name; again is no change.
    pub fn subscribe(&self, type_url: &str, name: &str) -> Result<(), SubscribeError> {
        self.0.state().subscribe(type_url, name)?;
        self.0.wake.notify_one();
        Ok(())
    }

    /// Gives a name up and forgets its content.
    pub fn unsubscribe(&self, type_url: &str, name: &str) {
        self.0.state().unsubscribe(type_url, name);
        self.0.wake.notify_one();
    }

    /// Subscribes to everything of a type that the server lets this client see.
    pub fn subscribe_wildcard(&self, type_url: &str) {
        self.0.state().subscribe_wildcard(type_url);
        self.0.wake.notify_one();
    }

    /// Whether a stream is up now, and a way to wait for it.
    pub fn connection(&self) -> watch::Receiver<bool> {
        self.0.connected.subscribe()
    }

    /// Ends the current stream and dials anew, e.g. to show a renewed certificate.
    pub fn reconnect(&self) {
        self.0.reconnect.notify_one();
    }
}

/// The settings every connection to the control plane has: HTTP/2 pings every 10 s (20 s without an
/// answer end the connection, also on an idle stream), a bounded connect.
pub fn configure_endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true)
}

/// Runs for ever: connects, subscribes, applies, acknowledges; after a loss waits with
/// back-off and jitter and resumes with the versions held. Dropping the future ends it.
///
/// `connect` is called for each attempt, so that it can present the current certificate.
pub async fn run_client<C, F, H>(driver: Driver, options: ClientOptions, mut connect: C, mut handler: H)
where
    C: FnMut() -> F + Send,
    F: Future<Output = Result<Channel, BoxError>> + Send,
    H: Handler,
{
    let shared = driver.0;
    let mut backoff = options.backoff.clone();
    loop {
        let started = tokio::time::Instant::now();
        let error = match timeout(OPEN_TIMEOUT, connect()).await {
            Err(_) => ClientError::Connect(format!("no answer within {OPEN_TIMEOUT:?}").into()),
            Ok(Err(error)) => ClientError::Connect(error),
            Ok(Ok(channel)) => run_stream(&shared, channel, &mut handler).await,
        };
        shared.state().disconnected();
        shared.connected.send_replace(false);
        handler.disconnected(&error);
        if started.elapsed() >= options.stable_after {
            backoff.reset();
        }
        tokio::time::sleep(backoff.next_wait(rand::random())).await;
    }
}

async fn run_stream(shared: &Shared, channel: Channel, handler: &mut impl Handler) -> ClientError {
    let stream_error = |status: tonic::Status| ClientError::Stream(Box::new(status));
    let mut service =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
    // Requests are produced only as fast as they are taken, so a small queue is enough.
    let (sender, receiver) = mpsc::channel::<DeltaDiscoveryRequest>(16);
    // The first requests ride along with the headers: a server may wait for one before it answers.
    let first = {
        let mut state = shared.state();
        state.connected();
        state.take_requests()
    };
    let mut unsent: VecDeque<_> = first.into();
    while let Some(request) = unsent.pop_front() {
        if let Err(mpsc::error::TrySendError::Full(request)) = sender.try_send(request) {
            unsent.push_front(request);
            break;
        }
    }
    let opening = service.delta_aggregated_resources(ReceiverStream::new(receiver));
    let mut responses = match timeout(OPEN_TIMEOUT, opening).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return stream_error(status),
        Err(_) => return ClientError::Connect(format!("no stream within {OPEN_TIMEOUT:?}").into()),
    };
    shared.connected.send_replace(true);
    handler.connected();
    loop {
        if unsent.is_empty() {
            unsent.extend(shared.state().take_requests());
        }
        tokio::select! {
            permit = sender.reserve(), if !unsent.is_empty() => match permit {
                Ok(permit) => {
                    if let Some(request) = unsent.pop_front() {
                        permit.send(request);
                    }
                }
                Err(_) => return ClientError::Closed,
            },
            response = responses.message() => match response {
                Ok(Some(response)) => {
                    let (update, receipt) = shared.state().receive(response);
                    // The lock is free while the handler works, since it may subscribe.
                    let outcome = handler.apply(update);
                    shared.state().settle(receipt, outcome);
                }
                Ok(None) => return ClientError::Closed,
                Err(status) => return stream_error(status),
            },
            () = shared.wake.notified() => {}
            () = shared.reconnect.notified() => return ClientError::Closed,
        }
    }
}
