//! The caller's side of connections whose streams are bytes: which are open, and when another is opened.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{Method, Request, Uri};
use maille_core::Identity;
use maille_tls::{Binding, ClientAlpn, TlsContext};

use super::bounds::{BYTE_STREAMS, FRAME, SEND_BUFFER, SINGLE_FOR, is_there};
use super::bytes::{ByteStream, Counted};
use super::renewal::{Showing, Shown};
use crate::connect::{self, ConnectError, Connected, Security, Upstream};
use crate::http::write_first::{Progress, WriteFirst};
use crate::server_proof::{self, ServerProof};
use crate::stream::Stream;
use crate::worker::Worker;

/// Opens a connection of bytes: a stream of a shared one where the upstream takes many, else one of its own.
pub(crate) async fn connect(worker: &Worker, to: &Upstream) -> Result<Connected, ConnectError> {
    if matches!(to.security, Security::Mutual { multiplexes: true, .. }) {
        // Boxed, since the future of every other connection would carry it.
        return Box::pin(worker.callers.to(to).stream(worker, to)).await;
    }
    connect::connect(worker, to, ClientAlpn::Tcp).await
}

/// A worker's shared connections that carry bytes, by upstream.
#[derive(Default)]
pub(crate) struct Callers {
    all: RefCell<HashMap<Upstream, Rc<Shared>, foldhash::fast::RandomState>>,
}

impl Callers {
    fn to(&self, upstream: &Upstream) -> Rc<Shared> {
        if let Some(shared) = self.all.borrow().get(upstream) {
            return shared.clone();
        }
        self.all.borrow_mut().entry(upstream.clone()).or_default().clone()
    }

    /// Lets go of connections that nobody has used for `idle`. Those of an older certificate or trust get no new streams;
    /// while they have some, the peer is shown the certificate of now, and asked for its own.
    pub(crate) fn sweep(&self, idle: Duration, tls: &Arc<TlsContext>) {
        let mut all = self.all.borrow_mut();
        all.retain(|_, shared| shared.sweep(idle, tls) || Rc::strong_count(shared) > 1);
    }
}

/// The connections to one upstream.
#[derive(Default)]
struct Shared {
    open: RefCell<Vec<One>>,
    /// Of an older certificate or trust: no new streams, those under way go on.
    leaving: RefCell<Vec<One>>,
    opening: tokio::sync::Mutex<()>,
    failed: RefCell<Option<(Instant, ConnectError)>>,
    /// The upstream was to take many streams, and does not.
    is_single_until: Cell<Option<Instant>>,
}

/// One connection.
#[derive(Clone)]
struct One {
    sender: SendRequest<Bytes>,
    progress: Rc<Progress>,
    identity: Option<Identity>,
    generation: u64,
    local: Option<SocketAddr>,
    streams: Arc<AtomicUsize>,
    is_over: Rc<Cell<bool>>,
    binding: Option<Binding>,
    /// What the peer has proved, and proves again in time.
    proof: Option<Rc<ServerProof>>,
    /// Of the certificate that the peer knows of.
    shown: Rc<Cell<u64>>,
    /// Where both ends show their certificates; `None` while they do.
    showing: Rc<RefCell<Option<Showing>>>,
    used: Rc<Cell<Instant>>,
}

/// What an upstream gives to whoever dials it.
enum Opened {
    Many(One),
    /// It took no more than one stream, and this is it.
    Single(Connected),
}

impl Shared {
    async fn stream(&self, worker: &Worker, to: &Upstream) -> Result<Connected, ConnectError> {
        let mut is_fresh = false;
        loop {
            if self.is_single_until.get().is_some_and(|until| until > Instant::now()) {
                return connect::connect(worker, to, ClientAlpn::Tcp).await;
            }
            let one = match self.take(worker.shared.tls.generation()) {
                Some(one) => one,
                None => match self.open(worker, to).await? {
                    Opened::Many(one) => {
                        is_fresh = true;
                        one
                    }
                    Opened::Single(connected) => return Ok(connected),
                },
            };
            match one.stream().await {
                Ok(stream) => {
                    let stream = Stream::Carried(Box::new(stream));
                    return Ok(Connected {
                        stream,
                        identity: one.identity,
                        generation: one.generation,
                        proof: one.proof,
                        counted: None,
                    });
                }
                Err(error) => {
                    one.is_over.set(true);
                    // It ended while nobody looked; nothing was sent.
                    if is_fresh {
                        return Err(ConnectError::Tcp { address: to.address, reason: error.to_string() });
                    }
                }
            }
        }
    }

    /// A connection with room.
    fn take(&self, generation: u64) -> Option<One> {
        let mut open = self.open.borrow_mut();
        self.sort_out(&mut open, generation);
        open.iter().find(|one| one.streams.load(Relaxed) < one.room()).cloned()
    }

    /// Opens one. Whoever else finds none meanwhile waits, and shares it or its failure.
    async fn open(&self, worker: &Worker, to: &Upstream) -> Result<Opened, ConnectError> {
        let asked = Instant::now();
        let _one_at_a_time = self.opening.lock().await;
        if let Some(one) = self.take(worker.shared.tls.generation()) {
            return Ok(Opened::Many(one));
        }
        if let Some((when, error)) = &*self.failed.borrow()
            && *when >= asked
        {
            return Err(error.clone());
        }
        let opened = dial(worker, to).await;
        match &opened {
            Ok(Opened::Many(one)) => self.open.borrow_mut().push(one.clone()),
            Ok(Opened::Single(_)) => self.is_single_until.set(Some(Instant::now() + SINGLE_FOR)),
            Err(error) => {
                self.failed.replace(Some((Instant::now(), error.clone())));
            }
        }
        opened
    }

    /// Puts aside what is of an older certificate or trust, of either end, and forgets what is over.
    fn sort_out(&self, open: &mut Vec<One>, generation: u64) {
        let older = open.extract_if(.., |one| {
            one.generation != generation || one.is_over.get() || !server_proof::holds(one.proof.as_ref())
        });
        self.leaving.borrow_mut().extend(older);
    }

    fn sweep(&self, idle: Duration, tls: &Arc<TlsContext>) -> bool {
        let (mut open, generation) = (self.open.borrow_mut(), tls.generation());
        self.sort_out(&mut open, generation);
        open.retain(|one| one.streams.load(Relaxed) > 0 || one.used.get().elapsed() < idle);
        let mut leaving = self.leaving.borrow_mut();
        // Without a handle left, a connection ends with its last stream.
        leaving.retain(|one| one.streams.load(Relaxed) > 0 && !one.is_over.get());
        for one in open.iter().chain(leaving.iter()).filter(|one| one.wants_renewal(generation)) {
            tokio::task::spawn_local(one.clone().renew(generation, tls.clone()));
        }
        !open.is_empty()
            || !leaving.is_empty()
            || self.is_single_until.get().is_some_and(|until| until > Instant::now())
    }
}

async fn dial(worker: &Worker, to: &Upstream) -> Result<Opened, ConnectError> {
    let connected = connect::connect(worker, to, ClientAlpn::ManyTcp).await?;
    if !connected.stream.is_of_many() {
        return Ok(Opened::Single(connected));
    }
    let local = connected.local(worker);
    let binding = connected.stream.binding();
    if let (Some(proof), Some(_)) = (&connected.proof, &binding) {
        proof.can_be_renewed();
    }
    let Connected { stream, identity, generation, proof, counted: _ } = connected;
    let failed = |error: h2::Error| ConnectError::Tcp { address: to.address, reason: error.to_string() };
    let window = worker.windows.take_for_bytes();
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(window.stream())
        .initial_connection_window_size(window.connection())
        .data_frame_budget(window.frames())
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(1024);
    let (sender, progress, mut connection) = WriteFirst::open(&builder, stream).await.map_err(failed)?;
    let showing = match &binding {
        Some(_) => Showing::open(&sender).await,
        None => None,
    };
    let one = One {
        sender,
        progress,
        identity,
        generation,
        local,
        streams: Arc::default(),
        is_over: Rc::default(),
        binding,
        proof,
        showing: Rc::new(RefCell::new(showing)),
        shown: Rc::new(Cell::new(generation)),
        used: Rc::new(Cell::new(Instant::now())),
    };
    let (is_over, streams, progress) = (one.is_over.clone(), one.streams.clone(), one.progress.clone());
    let ping = connection.ping_pong();
    tokio::task::spawn_local(async move {
        let is_there = async {
            match ping {
                Some(ping) => is_there(ping, || streams.load(Relaxed) > 0, &progress).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What has come while this process stood still counts before the time that has passed.
            biased;
            // Its streams know how it ended.
            _ = connection => {}
            () = is_there => {}
        }
        is_over.set(true);
        drop(window);
    });
    Ok(Opened::Many(one))
}

impl One {
    /// Whether the peer is to know another certificate by now, or to have another one itself.
    fn wants_renewal(&self, generation: u64) -> bool {
        let is_due = self.proof.as_ref().is_some_and(|proof| proof.is_due());
        self.streams.load(Relaxed) > 0 && (is_due || self.shown.get() != generation)
    }

    /// Shows the peer the certificate of `generation` and takes its own, unless somebody does already; tried again if
    /// either is not taken.
    async fn renew(self, generation: u64, tls: Arc<TlsContext>) {
        // Not while somebody else has it.
        let (Some(binding), Some(mut showing)) = (&self.binding, self.showing.take()) else { return };
        // A stream that is of no use is gone: what stands on its certificates ends with them.
        let Some(shown) = showing.show(binding, &tls).await else { return };
        self.showing.replace(Some(showing));
        let Shown::Accepted(theirs) = shown else { return };
        self.shown.set(generation);
        if let (Some(proof), Some(identity), Some(theirs)) = (&self.proof, &self.identity, theirs)
            && let Err(reason) = proof.renew(binding, &theirs, identity, &tls.current())
        {
            tracing::warn!(server = %identity.uri(), %reason, "a server's renewed certificate was refused");
        }
    }

    /// The streams that it may carry at a time: what the peer takes beside the one on which certificates are shown, which
    /// may be less while one of the two is newer. Any more would wait for the others to end.
    fn room(&self) -> usize {
        BYTE_STREAMS.min(self.sender.current_max_send_streams().saturating_sub(1))
    }

    async fn stream(&self) -> Result<ByteStream, h2::Error> {
        let counted = Counted::new(&self.streams);
        let mut sender = self.sender.clone().ready().await?;
        self.used.set(Instant::now());
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        // HTTP/2 wants an authority; where to, the connection says.
        *request.uri_mut() = Uri::from_static("stream");
        let (answer, send) = sender.send_request(request, false)?;
        self.progress.opened();
        Ok(ByteStream::opened(send, answer, self.local, counted))
    }
}
