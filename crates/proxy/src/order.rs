//! TLS as a DestinationRule orders it: the order, and the files that it names (reference mtls 2.2).
//!
//! The agent reads the files and keeps what they give in a [`Material`]; workers read it when they open a connection.
//! Nothing here does I/O.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use maille_tls::{Origin, Proof};
use tokio::sync::watch;

/// How long a connection waits for files that are being read for the first time.
const FIRST_READ: Duration = Duration::from_secs(2);

/// `tls.mode` of a DestinationRule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OrderMode {
    /// Plaintext to every endpoint (DR-1).
    Disable,
    /// TLS without a client certificate (DR-3).
    Simple,
    /// TLS with the client certificate of the rule (DR-3).
    Mutual,
    /// The mesh's mutual TLS to every endpoint (DR-2).
    IstioMutual,
    /// It cannot be kept, or is of a newer version: nothing is sent.
    Unknown,
}

impl OrderMode {
    /// Istio's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::Simple => "SIMPLE",
            Self::Mutual => "MUTUAL",
            Self::IstioMutual => "ISTIO_MUTUAL",
            Self::Unknown => "unknown",
        }
    }
}

/// Where the roots of servers come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum RootsFrom {
    /// No server is verified (`insecureSkipVerify`).
    #[default]
    Nowhere,
    /// The bundle of the operating system, in the proxy's container.
    System,
    /// `caCertificates`.
    File(Arc<str>),
    /// The Secret of `credentialName`.
    Credential,
}

/// What an order is made of: files, as paths inside the proxy's container, or a credential.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct OrderFiles {
    /// `clientCertificate` and `privateKey`, of MUTUAL only.
    pub own: Option<(Arc<str>, Arc<str>)>,
    /// The roots of servers.
    pub roots: RootsFrom,
    /// `caCrl`.
    pub crl: Option<Arc<str>>,
    /// `credentialName`, in place of files.
    pub credential: Option<CredentialUse>,
}

/// A Credential resource, and what of it is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CredentialUse {
    /// The resource's name.
    pub name: Arc<str>,
    /// Its certificate is shown to servers (MUTUAL).
    pub shows_certificate: bool,
}

impl OrderFiles {
    /// Where the certificate comes from that servers are shown, if they are shown one, as a message says it.
    pub(crate) fn certificate_source(&self) -> Option<String> {
        let of_file = self.own.as_ref().map(|(path, _)| format!("clientCertificate {path}"));
        let credential = self.credential.as_ref().filter(|credential| credential.shows_certificate);
        of_file.or_else(|| credential.map(|credential| format!("the certificate of {}", credential.name)))
    }
}

/// What a DestinationRule says of one port, for this workload.
#[derive(Debug, Clone)]
pub struct TlsOrder {
    /// How.
    pub mode: OrderMode,
    /// `<namespace>/<name>` of the DestinationRule.
    pub rule: Arc<str>,
    /// What it names.
    pub files: OrderFiles,
    /// Names of which the server must prove one: the rule's, else those of the ServiceEntry; with ISTIO_MUTUAL and none,
    /// the service's identities.
    pub subject_alt_names: Arc<[String]>,
    /// `sni`.
    pub sni: Option<Arc<str>>,
    /// `insecureSkipVerify`.
    pub insecure_skip_verify: bool,
    /// What was read from the files. Not part of what makes two orders equal.
    pub material: Arc<Material>,
}

impl TlsOrder {
    /// Whether the rule's own TLS is put around what the application sends.
    pub fn originates(&self) -> bool {
        match self.mode {
            OrderMode::Simple | OrderMode::Mutual | OrderMode::Unknown => true,
            OrderMode::Disable | OrderMode::IstioMutual => false,
        }
    }

    /// What a server must prove that is called by `name` (DR-3).
    pub(crate) fn proof(&self, name: Option<&str>) -> Proof {
        if self.insecure_skip_verify {
            Proof::Nothing
        } else if !self.subject_alt_names.is_empty() {
            Proof::OneOf(self.subject_alt_names.clone())
        } else if self.sni.is_none() && name.is_some() {
            Proof::DialledName
        } else {
            Proof::Chain
        }
    }

    fn content(&self) -> (OrderMode, &str, &OrderFiles, &[String], Option<&str>, bool) {
        let sni = self.sni.as_deref();
        let names = &self.subject_alt_names;
        (self.mode, &self.rule, &self.files, names, sni, self.insecure_skip_verify)
    }
}

impl PartialEq for TlsOrder {
    fn eq(&self, other: &Self) -> bool {
        self.content() == other.content()
    }
}

impl Eq for TlsOrder {}

impl Hash for TlsOrder {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.content().hash(state);
    }
}

/// What the files of an order gave, kept current by the agent.
#[derive(Debug)]
pub struct Material {
    current: ArcSwap<Reading>,
    generation: AtomicU64,
    was_read: watch::Sender<bool>,
}

/// One state of a [`Material`].
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// What the files gave when they were last good.
    pub origin: Option<Arc<Origin>>,
    /// What is wrong with them now, naming the file.
    pub problem: Option<Arc<str>>,
}

impl Default for Material {
    fn default() -> Self {
        Self {
            current: ArcSwap::default(),
            generation: AtomicU64::new(1),
            was_read: watch::Sender::new(false),
        }
    }
}

impl Material {
    /// What is in force.
    pub fn current(&self) -> Arc<Reading> {
        self.current.load_full()
    }

    /// Grows when other files are in force: connections of an older generation carry no new requests.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Puts what was read in force; `is_other` if connections made so far must not be used any more.
    pub(crate) fn replace(&self, reading: Reading, is_other: bool) {
        self.current.store(Arc::new(reading));
        if is_other {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        self.was_read.send_replace(true);
    }

    /// What a new connection is made of and its generation; an error says which file is not good, and why.
    pub(crate) async fn for_connection(
        &self,
        files: &OrderFiles,
        now: SystemTime,
    ) -> Result<(Arc<Origin>, u64), String> {
        if !*self.was_read.borrow() {
            let mut was_read = self.was_read.subscribe();
            // Whether it came in time shows below.
            let _ = tokio::time::timeout(FIRST_READ, was_read.wait_for(|read| *read)).await;
        }
        // Before the state: a connection may count as older than it is, never as newer.
        let generation = self.generation();
        let reading = self.current.load();
        let Some(origin) = &reading.origin else {
            let unread = || "its files could not be read yet".to_owned();
            return Err(reading.problem.as_ref().map_or_else(unread, ToString::to_string));
        };
        if let (Some(certificate), Some(source)) = (origin.certificate(), files.certificate_source()) {
            certificate.check(now).map_err(|why| format!("{source} cannot be used: {why}"))?;
        }
        Ok((origin.clone(), generation))
    }
}
