//! Rotations of a real control plane, with proxies that say over real streams what they use.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use maille_control::authority::{
    Action, Entries, Keeper, Kind, Object, Offer, Outcome, Phase, Request, Source, Status, Store, StoreError,
    Stored, Waiting,
};
use maille_control::revocation::Listed;
use maille_control::world::{Change, Event};
use maille_core::NamespacedName;
use maille_pki::{
    Authority, CertificateDer, Svid, certificates_from_pem, create_csr, fingerprint, generate_key,
};
use maille_proto::ca::IstioCertificateRequest;
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use maille_proto::facts::TrustBundle;
use maille_proto::flows::flows_client::FlowsClient;
use maille_proto::flows::{FlowReport, ProxyState};
use maille_xds::type_urls::TRUST_BUNDLE;
use maille_xds::{Backoff, Client, ClientOptions, run_client};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::lab::{CART, Collect, Lab, Seen, WEB, cart_service, cart_slice, channel, identity, pod};

/// Secrets in memory.
#[derive(Default)]
struct Memory(Mutex<(u64, Stored)>, tokio::sync::Notify);

impl Memory {
    fn write(
        &self,
        entries: Option<&Entries>,
        replaces: Option<&str>,
        of: impl Fn(&mut Stored) -> &mut Option<Object>,
    ) -> Result<(), StoreError> {
        let mut stored = self.0.lock().expect("lock");
        stored.0 += 1;
        let version = stored.0.to_string();
        let object = of(&mut stored.1);
        if object.as_ref().map(|object| object.version.as_str()) != replaces {
            return Err(StoreError::Conflict("it".into()));
        }
        *object = entries.map(|entries| Object { version, entries: entries.clone(), ..Object::default() });
        self.1.notify_one();
        Ok(())
    }

    fn plug_in(&self, authority: &Authority) {
        let entries = authority.to_secret().into_iter();
        let entries =
            entries.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec().into())).collect();
        let mut stored = self.0.lock().expect("lock");
        stored.0 += 1;
        let version = stored.0.to_string();
        stored.1.plugged_in = Some(Object { version, entries, ..Object::default() });
        self.1.notify_one();
    }

    fn ask(&self, request: &Request) {
        let mut stored = self.0.lock().expect("lock");
        stored.0 += 1;
        let version = stored.0.to_string();
        let object = stored.1.rotation.get_or_insert_default();
        object.version = version;
        object.request = Some(serde_json::to_string(request).expect("JSON"));
        self.1.notify_one();
    }

    fn keeps(&self, text: &str) -> bool {
        let stored = self.0.lock().expect("lock");
        let objects = [&stored.1.rotation, &stored.1.self_signed, &stored.1.plugged_in];
        let mut values = objects.into_iter().flatten().flat_map(|object| object.entries.values());
        values.any(|value| String::from_utf8_lossy(value).contains(text.trim()))
    }
}

impl Store for Memory {
    fn read(&self) -> BoxFuture<'_, Result<Stored, StoreError>> {
        async { Ok(self.0.lock().expect("lock").1.clone()) }.boxed()
    }

    fn write_rotation<'a>(
        &'a self,
        entries: &'a Entries,
        replaces: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.write(Some(entries), replaces, |stored| &mut stored.rotation) }.boxed()
    }

    fn write_home<'a>(
        &'a self,
        source: Source,
        entries: &'a Entries,
        replaces: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.write(Some(entries), replaces, |stored| home(stored, source)) }.boxed()
    }

    fn delete_home<'a>(&'a self, source: Source, replaces: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.write(None, Some(replaces), |stored| home(stored, source)) }.boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.1.notified().boxed()
    }
}

fn home(stored: &mut Stored, source: Source) -> &mut Option<Object> {
    match source {
        Source::SelfSigned => &mut stored.self_signed,
        Source::PluggedIn => &mut stored.plugged_in,
    }
}

/// A control plane with its keeper, and two proxies.
struct Mesh {
    lab: Lab,
    store: Arc<Memory>,
    roots: watch::Receiver<String>,
    web: Arc<Sidecar>,
    cart: Arc<Sidecar>,
    tasks: JoinSet<()>,
}

impl Mesh {
    async fn new(plugged_in: Option<&Authority>) -> Self {
        let lab = Lab::new().await;
        lab.control.hub.apply([
            Event::Pod(Change::Replace(vec![pod("web-1", "web", WEB), pod("cart-1", "cart", CART)])),
            Event::Service(Change::Replace(vec![cart_service()])),
            Event::Slice(Change::Replace(vec![cart_slice(true)])),
            Event::PeerAuthentication(Change::Replace(vec![])),
            Event::Authorization(Change::Replace(vec![])),
            Event::RequestAuthentication(Change::Replace(vec![])),
            Event::DestinationRule(Change::Replace(vec![])),
            Event::ServiceEntry(Change::Replace(vec![])),
            Event::WorkloadEntry(Change::Replace(vec![])),
            Event::Sidecar(Change::Replace(vec![])),
            Event::MeshConfig(Default::default()),
            Event::Revocations(Listed::default()),
            Event::RevocationLists(vec![], vec![]),
        ]);
        let store = Arc::new(Memory::default());
        if let Some(authority) = plugged_in {
            store.plug_in(authority);
        }
        let keeper = Keeper::start(lab.control.clone(), store.clone()).await.expect("starts");
        let roots = keeper.roots();
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.run());
        let web = Sidecar::new(&lab, &roots, WEB, "web");
        let cart = Sidecar::new(&lab, &roots, CART, "cart");
        for sidecar in [&web, &cart] {
            tasks.spawn(Arc::clone(sidecar).run());
        }
        let mesh = Self { lab, store, roots, web, cart, tasks };
        mesh.until("both report", |_| {
            let listed = mesh.lab.control.proxies.list();
            (listed.iter().filter(|proxy| proxy.svid.is_some()).count() == 2).then_some(())
        })
        .await;
        mesh
    }

    /// Waits until the status is so; half a minute at most, since phases take a second or more.
    async fn until<T>(&self, what: &str, mut look: impl FnMut(&Status) -> Option<T>) -> T {
        for _ in 0..3000 {
            if let Some(found) = self.lab.control.authority_status().and_then(|status| look(&status)) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("within half a minute: {what}; {:#?}", self.lab.control.authority_status());
    }

    async fn at(&self, phase: Phase) -> Status {
        self.until(phase.name(), |status| (status.phase == phase).then(|| status.clone())).await
    }

    async fn ask(&self, id: &str, action: Action) {
        let to = Offer::Generated;
        self.store.ask(&Request {
            id: id.to_owned(),
            action,
            to,
            dry_run: false,
            phase: None,
            past: Vec::new(),
        });
        let answer =
            self.until("an answer", |status| status.answer.clone().filter(|answer| answer.id == id)).await;
        assert_eq!(answer.outcome, Outcome::Accepted, "{}", answer.message);
    }

    fn failures(&self) -> Vec<String> {
        [&self.web, &self.cart].iter().flat_map(|s| s.failures.lock().expect("lock").clone()).collect()
    }
}

/// What Maille's proxy does for its identity, in small.
struct Sidecar {
    address: std::net::SocketAddr,
    from: &'static str,
    account: &'static str,
    /// The root file, as it is on the Pod's disk.
    file: watch::Receiver<String>,
    svid: Mutex<Option<Svid>>,
    /// Roots that came with the first certificate, in force until the bundle is known.
    bundle: Arc<Seen>,
    frozen: AtomicBool,
    failures: Mutex<Vec<String>>,
    /// New connections made with what is in use.
    calls: AtomicUsize,
}

impl Sidecar {
    fn new(
        lab: &Lab,
        file: &watch::Receiver<String>,
        from: &'static str,
        account: &'static str,
    ) -> Arc<Self> {
        Arc::new(Self {
            address: lab.address,
            from,
            account,
            file: file.clone(),
            svid: Mutex::default(),
            bundle: Arc::default(),
            frozen: AtomicBool::new(false),
            failures: Mutex::default(),
            calls: AtomicUsize::new(0),
        })
    }

    fn file(&self) -> String {
        self.file.borrow().clone()
    }

    fn bundle(&self) -> Option<TrustBundle> {
        self.bundle.get(TRUST_BUNDLE, "cluster.local")
    }

    fn svid(&self) -> Option<Svid> {
        self.svid.lock().expect("lock").clone()
    }

    async fn renew(&self) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let channel = channel(self.address, self.from, &self.file(), None).await.map_err(|e| text(&e))?;
        let key = generate_key().expect("key");
        let csr = create_csr(&key, &identity("shop", self.account)).expect("csr");
        let mut request = tonic::Request::new(IstioCertificateRequest { csr, ..Default::default() });
        let token = format!("Bearer shop:{}", self.account);
        request.metadata_mut().insert("authorization", token.parse().expect("header"));
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
        let chain = answer.map_err(|e| text(&e))?.into_inner().cert_chain;
        let svid = Svid::from_pem(&chain[..chain.len() - 1], key).map_err(|e| text(&e))?;
        *self.svid.lock().expect("lock") = Some(svid);
        Ok(())
    }

    fn state(&self) -> ProxyState {
        let roots: Vec<CertificateDer<'static>> = self
            .bundle()
            .map(|bundle| bundle.roots.iter().map(|root| root.to_vec().into()).collect())
            .unwrap_or_default();
        let file = certificates_from_pem("file", &self.file()).unwrap_or_default();
        let svid = self.svid().expect("it has one");
        let names = |all: &[CertificateDer<'static>]| all.iter().map(|root| fingerprint(root)).collect();
        let millis = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).expect("fits")
        };
        ProxyState {
            serial: svid.serial().to_owned(),
            signer: maille_pki::signer_of(svid.chain(), &roots).map(fingerprint).unwrap_or_default(),
            not_before_ms: millis(SystemTime::now()),
            // Nobody goes by it: one says that its certificate ended long ago, the other that it never does.
            not_after_ms: if self.account == "cart" { 1 } else { u64::MAX },
            roots: names(&roots),
            control_roots: names(&file),
            clock_ms: millis(SystemTime::now()),
            ..Default::default()
        }
    }

    async fn run(self: Arc<Self>) {
        self.renew().await.expect("a first certificate");
        let mut options = ClientOptions::new("test");
        options.backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(200));
        let (client, driver) = Client::new(&options);
        client.subscribe_wildcard(TRUST_BUNDLE);
        let this = Arc::clone(&self);
        let connect = move || {
            let this = Arc::clone(&this);
            async move { channel(this.address, this.from, &this.file(), this.svid().as_ref()).await }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(run_client(driver, options, connect, Collect(Arc::clone(&self.bundle))));
        let mut reports: Option<mpsc::Sender<FlowReport>> = None;
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if self.frozen.load(Ordering::SeqCst) {
                continue;
            }
            let Some(bundle) = self.bundle() else { continue };
            if !bundle.signer.is_empty()
                && self.state().signer != bundle.signer
                && let Err(error) = self.renew().await
            {
                self.failures.lock().expect("lock").push(format!("{}: renewal: {error}", self.account));
            }
            let state = Some(self.state());
            let to = match reports.take().filter(|open| !open.is_closed()) {
                Some(open) => open,
                // The connection stood on a certificate that is trusted no more.
                None => {
                    let channel = channel(self.address, self.from, &self.file(), self.svid().as_ref()).await;
                    let Ok(channel) = channel else { continue };
                    let (sender, receiver) = mpsc::channel(1);
                    let mut flows = FlowsClient::new(channel);
                    tasks.spawn(async move { drop(flows.report(ReceiverStream::new(receiver)).await) });
                    sender
                }
            };
            let _ = to.send(FlowReport { flows: Vec::new(), state }).await;
            reports = Some(to);
            // A new connection with what is in use, verified by both ends.
            let called =
                crate::lab::channel(self.address, self.from, &self.file(), self.svid().as_ref()).await;
            match called {
                Ok(_) => _ = self.calls.fetch_add(1, Ordering::SeqCst),
                Err(error) => {
                    self.failures.lock().expect("lock").push(format!("{}: {error}", self.account));
                }
            }
        }
    }
}

#[tokio::test]
async fn a_root_rotates_under_load_without_a_failure_once_a_frozen_proxy_goes_on() {
    let mut mesh = Mesh::new(None).await;
    let before = mesh.at(Phase::Idle).await;
    let old_roots = mesh.roots.borrow().clone();
    mesh.cart.frozen.store(true, Ordering::SeqCst);
    mesh.ask("one", Action::Rotate).await;
    // The other proxy confirms, this one is named, and the phase stays.
    let waiting = mesh
        .until("the frozen one alone is waited for", |status| {
            let rotation = status.rotation.as_ref()?;
            (rotation.confirmed == 1 && rotation.waiting_count == 1).then(|| rotation.waiting[0].clone())
        })
        .await;
    assert_eq!((waiting.name.as_str(), waiting.uid.as_str()), ("shop/cart-1", "uid-cart-1"));
    assert!(waiting.not_after_ms.is_some());
    let status = mesh.at(Phase::Distributing).await;
    assert_eq!(status.authority.signer, before.authority.signer, "the old one signs");
    assert_eq!(status.authority.roots.len(), 2);
    let (code, body) = mesh.lab.http("/ca").await;
    assert_eq!(code, 200);
    assert_eq!(serde_json::from_str::<Status>(&body).expect("JSON").phase, Phase::Distributing);
    assert!(!body.contains("PRIVATE"), "{body}");
    let (_, metrics) = mesh.lab.http("/metrics").await;
    assert!(metrics.contains("\nmaille_ca_rotation_waiting_proxies 1\n"), "{metrics}");
    assert!(metrics.contains("\nmaille_ca_rotation_phase{phase=\"distributing\"} 1\n"), "{metrics}");
    mesh.cart.frozen.store(false, Ordering::SeqCst);
    let status = mesh.at(Phase::Idle).await;
    let last = status.last.expect("ended");
    assert_eq!((last.id.as_str(), last.kind, last.waived.len()), ("one", Kind::Root, 0));
    let new = status.authority.signer.fingerprint;
    assert_ne!(new, before.authority.signer.fingerprint);
    assert_eq!(status.authority.roots.len(), 1);
    // Who goes by the old roots finds nobody, who goes by the new ones does: the port has followed.
    let svid = mesh.web.svid();
    channel(mesh.lab.address, WEB, &old_roots, svid.as_ref()).await.expect_err("signed by the new one");
    let now = mesh.roots.borrow().clone();
    channel(mesh.lab.address, WEB, &now, svid.as_ref()).await.expect("connects");
    for sidecar in [&mesh.web, &mesh.cart] {
        let state = sidecar.state();
        assert_eq!((state.signer.as_str(), state.roots.as_slice()), (new.as_str(), &[new.clone()][..]));
        assert!(sidecar.calls.load(Ordering::SeqCst) > 10);
    }
    assert_eq!(mesh.failures(), Vec::<String>::new());
    mesh.tasks.shutdown().await;
}

#[tokio::test]
async fn a_pod_that_goes_is_not_waited_for() {
    let mesh = Mesh::new(None).await;
    mesh.cart.frozen.store(true, Ordering::SeqCst);
    mesh.ask("one", Action::Rotate).await;
    mesh.until("it is waited for", |status| {
        let rotation = status.rotation.as_ref()?;
        (rotation.confirmed == 1 && rotation.waiting_count == 1).then_some(())
    })
    .await;
    mesh.lab.apply(Event::Pod(Change::Delete(NamespacedName::new("shop", "cart-1"))));
    let status = mesh.at(Phase::Idle).await;
    assert_eq!(status.last.expect("ended").id, "one");
}

/// The address of a Pod whose container istio-proxy says nothing to anybody, and the Pod.
const MUTE: &str = "127.0.0.13";

impl Mesh {
    fn put_mute(&self) {
        self.lab.apply(Event::Pod(Change::Put(pod("mute-1", "mute", MUTE))));
    }

    /// A certificate for it that lives so many seconds.
    async fn certify_mute(&self, seconds: i64) {
        let roots = self.roots.borrow().clone();
        let channel = channel(self.lab.address, MUTE, &roots, None).await.expect("connects");
        let csr = create_csr(&generate_key().expect("key"), &identity("shop", "mute")).expect("csr");
        let message = IstioCertificateRequest { csr, validity_duration: seconds, ..Default::default() };
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", "Bearer shop:mute".parse().expect("header"));
        IstioCertificateServiceClient::new(channel).create_certificate(request).await.expect("issued");
    }

    async fn mute_is_waited_for(&self, phase: Phase) -> Waiting {
        self.until("it alone is waited for", |status| {
            let rotation = status.rotation.as_ref().filter(|_| status.phase == phase)?;
            let is_mute = rotation.waiting_count == 1 && rotation.waiting[0].name == "shop/mute-1";
            (is_mute && rotation.confirmed == 2).then(|| rotation.waiting[0].clone())
        })
        .await
    }
}

#[tokio::test]
async fn a_pod_that_never_had_a_certificate_is_named_and_holds_nothing_up() {
    let mesh = Mesh::new(None).await;
    mesh.put_mute();
    mesh.cart.frozen.store(true, Ordering::SeqCst);
    mesh.ask("one", Action::Rotate).await;
    mesh.until("it is named", |status| {
        let is_named = |warning: &String| {
            warning.contains("not waited for") && warning.contains("shop/mute-1") && !warning.contains("cart")
        };
        status.warnings.iter().any(is_named).then_some(())
    })
    .await;
    mesh.cart.frozen.store(false, Ordering::SeqCst);
    let last = mesh.at(Phase::Idle).await.last.expect("ended");
    assert_eq!((last.id.as_str(), last.waived.len()), ("one", 0));
}

#[tokio::test]
async fn a_pod_that_says_nothing_is_waited_for_until_what_it_was_given_has_ended() {
    let mesh = Mesh::new(None).await;
    mesh.put_mute();
    mesh.certify_mute(8).await;
    mesh.ask("one", Action::Rotate).await;
    let waiting = mesh.mute_is_waited_for(Phase::Distributing).await;
    assert!(waiting.why.contains("was given a certificate"), "{}", waiting.why);
    let ends = Duration::from_millis(waiting.not_after_ms.expect("it is known"));
    mesh.at(Phase::Idle).await;
    assert!(SystemTime::now() >= SystemTime::UNIX_EPOCH + ends, "not before");
}

#[tokio::test]
async fn people_go_on_without_a_pod_that_says_nothing() {
    let mesh = Mesh::new(None).await;
    mesh.put_mute();
    mesh.certify_mute(600).await;
    mesh.ask("one", Action::Rotate).await;
    for (id, phase) in [("two", Phase::Distributing), ("three", Phase::Signing), ("four", Phase::Withdrawing)]
    {
        mesh.mute_is_waited_for(phase).await;
        let (action, to, past) = (Action::Proceed, Offer::Generated, vec!["shop/mute-1".to_owned()]);
        let request = Request { id: id.to_owned(), action, to, dry_run: false, phase: Some(phase), past };
        mesh.store.ask(&request);
        mesh.until("an answer", |status| {
            let answer = status.answer.as_ref().filter(|answer| answer.id == id)?;
            assert_eq!(answer.outcome, Outcome::Accepted, "{}", answer.message);
            Some(())
        })
        .await;
    }
    assert_eq!(mesh.at(Phase::Idle).await.last.expect("ended").waived, ["shop/mute-1"]);
}

#[tokio::test]
async fn a_rotation_that_is_rolled_back_ends_where_it_began() {
    let mesh = Mesh::new(None).await;
    let before = mesh.at(Phase::Idle).await.authority;
    mesh.cart.frozen.store(true, Ordering::SeqCst);
    mesh.ask("one", Action::Rotate).await;
    let new = mesh.at(Phase::Distributing).await.rotation.expect("under way").to.signer.fingerprint;
    mesh.ask("two", Action::Rollback).await;
    mesh.cart.frozen.store(false, Ordering::SeqCst);
    let status = mesh.at(Phase::Idle).await;
    assert_eq!(status.authority, before);
    assert!(status.last.expect("ended").rolled_back);
    for sidecar in [&mesh.web, &mesh.cart] {
        assert!(!sidecar.state().roots.contains(&new));
    }
    assert_eq!(mesh.failures(), Vec::<String>::new());
}

/// The roots stay, so nobody's trust changes; but the old key is kept until nobody uses what it signed.
#[tokio::test]
async fn an_intermediate_is_replaced_without_a_change_of_trust() {
    let domain = maille_core::TrustDomain::parse("cluster.local").expect("valid");
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    let root = Authority::self_signed(&domain, now, 10 * day).expect("root");
    let (one, two) = (root.intermediate("one", now, day), root.intermediate("two", now, day));
    let (one, two) = (one.expect("one"), two.expect("two"));
    let mesh = Mesh::new(Some(&one)).await;
    let roots = mesh.roots.borrow().clone();
    mesh.cart.frozen.store(true, Ordering::SeqCst);
    mesh.store.plug_in(&two);
    let waiting = mesh
        .until("signing waits", |status| {
            let rotation = status.rotation.as_ref()?;
            let waits = status.phase == Phase::Signing && rotation.confirmed == 1;
            (waits && rotation.waiting_count == 1).then(|| rotation.waiting[0].clone())
        })
        .await;
    assert!(waiting.why.contains("is still signed by"), "{waiting:?}");
    assert!(mesh.store.keeps(&one.key_pem()), "there is a way back");
    mesh.cart.frozen.store(false, Ordering::SeqCst);
    let status = mesh.at(Phase::Idle).await;
    assert_eq!(status.last.expect("ended").kind, Kind::Intermediate);
    assert_eq!(status.authority.signer.fingerprint, two.signer());
    assert!(!mesh.store.keeps(&one.key_pem()), "the old key is wiped");
    assert_eq!(*mesh.roots.borrow(), roots);
    let signers: BTreeMap<_, _> =
        [&mesh.web, &mesh.cart].map(|sidecar| (sidecar.account, sidecar.state().signer)).into();
    assert!(signers.values().all(|signer| *signer == two.signer()), "{signers:?}");
    assert_eq!(mesh.failures(), Vec::<String>::new());
}
