//! What this proxy has in use, as the control plane is told: by this a rotation knows when everybody is ready.
//!
//! It is read from where handshakes take it, never from what was received: an acknowledgement means "in use".

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use maille_pki::{CertificateDer, certificates_from_pem, fingerprint, signer_of};
use maille_proto::flows::ProxyState;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::channel::{MAX_ROOTS, read_bounded};
use super::facts_in_force::FactsInForce;
use super::stamp::Stamp;

/// Tells that something may have changed that hangs on the own identity, and how its last renewal ended.
#[derive(Debug, Default)]
pub(crate) struct News {
    changed: watch::Sender<()>,
    renewal_error: Mutex<String>,
}

impl News {
    /// Trust, certificate or revocations have changed, or may have.
    pub(crate) fn tell(&self) {
        self.changed.send_replace(());
    }

    /// The last renewal failed for this reason; empty: it did not.
    pub(crate) fn renewal_ended(&self, error: String) {
        *self.renewal_error.lock() = error;
        self.tell();
    }

    /// Hears of what changes from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// Reads what is in use.
pub(crate) struct InUse {
    facts: Arc<Mutex<FactsInForce>>,
    news: Arc<News>,
    control_roots: RootFile,
    /// Of one generation of the TLS state; hashing is for changes only.
    tls: Option<(u64, Tls)>,
}

/// What is read of the TLS state.
#[derive(Clone)]
struct Tls {
    serial: String,
    signer: String,
    not_before_ms: u64,
    not_after_ms: u64,
    roots: Vec<String>,
}

impl InUse {
    pub(crate) fn new(facts: Arc<Mutex<FactsInForce>>, news: Arc<News>, root_file: PathBuf) -> Self {
        Self { facts, news, control_roots: RootFile { path: root_file, read: None }, tls: None }
    }

    /// The state of now; `clock_ms` is left to whoever sends it. Nothing before the first certificate.
    pub(crate) async fn state(&mut self) -> Option<ProxyState> {
        let tls = self.tls()?;
        Some(ProxyState {
            serial: tls.serial,
            signer: tls.signer,
            not_before_ms: tls.not_before_ms,
            not_after_ms: tls.not_after_ms,
            roots: tls.roots,
            control_roots: self.control_roots.fingerprints().await,
            revocations: self.facts.lock().revocations_version(),
            clock_ms: 0,
            renewal_error: self.news.renewal_error.lock().clone(),
        })
    }

    fn tls(&mut self) -> Option<Tls> {
        let current = self.facts.lock().tls()?.current();
        if let Some((generation, known)) = &self.tls
            && *generation == current.generation()
        {
            return Some(known.clone());
        }
        let svid = current.svid();
        let roots = current.trust().bundles.roots(svid.identity().trust_domain());
        let read = Tls {
            serial: svid.serial().to_owned(),
            signer: signer_of(svid.chain(), roots).map(fingerprint).unwrap_or_default(),
            not_before_ms: unix_ms(svid.not_before()),
            not_after_ms: unix_ms(svid.not_after()),
            roots: fingerprints(roots),
        };
        self.tls = Some((current.generation(), read.clone()));
        Some(read)
    }
}

/// The file by which the control plane is verified. Each connection to it reads the file anew, so what it holds is in use.
struct RootFile {
    path: PathBuf,
    read: Option<(Stamp, Vec<String>)>,
}

impl RootFile {
    /// Of the certificates in it; none if it cannot be read, since then no connection comes about.
    async fn fingerprints(&mut self) -> Vec<String> {
        let Some(stamp) = Stamp::of(&self.path) else { return Vec::new() };
        if let Some((seen, known)) = &self.read
            && *seen == stamp
        {
            return known.clone();
        }
        let Ok(bytes) = read_bounded(&self.path, MAX_ROOTS).await else { return Vec::new() };
        let text = String::from_utf8_lossy(&bytes);
        let roots = certificates_from_pem("root file", &text).unwrap_or_default();
        let all = fingerprints(&roots);
        self.read = Some((stamp, all.clone()));
        all
    }
}

/// Sorted, so that equal sets are equal lists.
pub(crate) fn fingerprints(certificates: &[CertificateDer<'_>]) -> Vec<String> {
    let mut all: Vec<_> = certificates.iter().map(fingerprint).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// As the wire has times.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
