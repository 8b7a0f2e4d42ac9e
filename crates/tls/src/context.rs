use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::ArcSwap;
use maille_core::Identity;
use maille_pki::{CertificateDer, KeyPair, Svid};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::UnixTime;

use crate::alpn::{ClientAlpn, ServerAlpn, owned};
use crate::error::SetupError;
use crate::parameters::Parameters;
use crate::refusal::{Presenter, Reason, Refusal};
use crate::trust::{Anchors, Trust};
use crate::verifier::{MeshClientVerifier, MeshServerVerifier};

/// TLS 1.2 and 1.3 (reference mtls 8.1).
pub(crate) const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// The TLS state of one workload: who it is and whom it believes. One per process, shared by all
/// its workers.
pub struct TlsContext {
    current: ArcSwap<Current>,
    // Held while a successor is made, so that two replacements do not lose each other's part.
    replacing: Mutex<()>,
}

impl TlsContext {
    /// A context with a first SVID and trust.
    pub fn new(svid: Svid, trust: Trust) -> Result<Self, SetupError> {
        let current = ArcSwap::from_pointee(Current::new(1, svid, trust, Parameters::default())?);
        Ok(Self { current, replacing: Mutex::new(()) })
    }

    /// The state for a new connection: one atomic load.
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// How often the state was replaced, starting at 1. A connection made under an older generation
    /// keeps its keys, but its peer may have to be judged again: [`Current::recheck_client`].
    pub fn generation(&self) -> u64 {
        self.current.load().generation
    }

    /// Uses a renewed SVID for every handshake from now on. On error the old one stays.
    pub fn replace_svid(&self, svid: Svid) -> Result<(), SetupError> {
        self.replace(|old| (svid, old.trust.clone(), old.parameters.clone()))
    }

    /// Uses changed roots and trust domains for every handshake from now on. On error the old ones stay.
    pub fn replace_trust(&self, trust: Trust) -> Result<(), SetupError> {
        self.replace(|old| (old.svid.clone(), trust, old.parameters.clone()))
    }

    /// Negotiates by these from now on. On error the old ones stay.
    pub fn replace_parameters(&self, parameters: Parameters) -> Result<(), SetupError> {
        self.replace(|old| (old.svid.clone(), old.trust.clone(), parameters))
    }

    fn replace(
        &self,
        successor: impl FnOnce(&Current) -> (Svid, Trust, Parameters),
    ) -> Result<(), SetupError> {
        let _one_at_a_time = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.current.load_full();
        let (svid, trust, parameters) = successor(&old);
        self.current.store(Arc::new(Current::new(old.generation + 1, svid, trust, parameters)?));
        Ok(())
    }
}

impl fmt::Debug for TlsContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsContext").field(&self.current.load()).finish()
    }
}

/// One state of a [`TlsContext`]; immutable. A handshake takes it once and uses only it.
pub struct Current {
    generation: u64,
    svid: Svid,
    trust: Trust,
    parameters: Parameters,
    provider: Arc<CryptoProvider>,
    anchors: Arc<Anchors>,
    own: Arc<SingleCertAndKey>,
    server_http: Arc<ServerConfig>,
    server_none: Arc<ServerConfig>,
    server_many: Arc<ServerConfig>,
    clients: RwLock<HashMap<ClientKey, Arc<ClientConfig>>>,
}

type ClientKey = (ClientAlpn, Arc<[String]>);

/// Client configurations that are kept: three per destination in use is plenty for a workload.
/// When there are more, all are forgotten and made anew as needed, each in microseconds.
const CLIENT_CONFIGS: usize = 1024;

impl Current {
    fn new(generation: u64, svid: Svid, trust: Trust, parameters: Parameters) -> Result<Self, SetupError> {
        let anchors = Arc::new(Anchors::new(&trust)?);
        let own = certified(svid.chain().to_vec(), svid.key())?;
        let provider = parameters.provider();
        let server = |alpn: ServerAlpn| -> Result<_, SetupError> {
            let verifier = MeshClientVerifier { anchors: anchors.clone(), optional: false };
            let mut config = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(parameters.versions())?
                .with_client_cert_verifier(Arc::new(verifier))
                .with_cert_resolver(own.clone());
            config.alpn_protocols = owned(alpn.protocols());
            without_resumption(&mut config);
            Ok(Arc::new(config))
        };
        Ok(Self {
            server_http: server(ServerAlpn::Http)?,
            server_none: server(ServerAlpn::None)?,
            server_many: server(ServerAlpn::Many)?,
            clients: RwLock::default(),
            generation,
            svid,
            trust,
            parameters,
            provider,
            anchors,
            own,
        })
    }

    /// The configuration for an inbound connection: a client certificate is required.
    ///
    /// Choose `alpn` by what the ClientHello offers: [`ServerAlpn::choose`], and [`crate::alpn::carried`].
    pub fn server_config(&self, alpn: ServerAlpn) -> Arc<ServerConfig> {
        match alpn {
            ServerAlpn::Http => self.server_http.clone(),
            ServerAlpn::None => self.server_none.clone(),
            ServerAlpn::Many => self.server_many.clone(),
        }
    }

    /// The configuration for an outbound connection to a server that must prove one of the
    /// `expected` names (SN-2); an empty list accepts whatever the trusted roots vouch for (SN-3).
    ///
    /// Kept per (`alpn`, `expected`), so that a handshake costs a lookup.
    pub fn client_config(
        &self,
        alpn: ClientAlpn,
        expected: &Arc<[String]>,
    ) -> Result<Arc<ClientConfig>, SetupError> {
        let key = (alpn, expected.clone());
        if let Some(config) = self.clients.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(config.clone());
        }
        let verifier = MeshServerVerifier {
            anchors: self.anchors.clone(),
            own: self.svid.identity().trust_domain().clone(),
            expected: expected.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(self.parameters.versions())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(self.own.clone());
        config.alpn_protocols = owned(alpn.protocols());
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENT_CONFIGS {
            clients.clear();
        }
        clients.insert(key, config.clone());
        Ok(config)
    }

    /// Judges again, by the roots and the time of now, the client of a connection that is already
    /// open: its certificate may have expired, or its root may be trusted no more.
    pub fn recheck_client(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Identity, Refusal> {
        let (leaf, intermediates) = split(Presenter::Client, chain)?;
        self.anchors.verify_client(leaf, intermediates, now)
    }

    /// Judges again the server of a connection that is already open; see [`Current::recheck_client`].
    pub fn recheck_server(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &Arc<[String]>,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let (leaf, intermediates) = split(Presenter::Server, chain)?;
        let own = self.svid.identity().trust_domain();
        self.anchors.verify_server(leaf, intermediates, own, expected, now)
    }

    /// The own credential.
    pub fn svid(&self) -> &Svid {
        &self.svid
    }

    /// Whom this state believes.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// What this state negotiates.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The number of this state; see [`TlsContext::generation`].
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current")
            .field("generation", &self.generation)
            .field("identity", self.svid.identity())
            .field("serial", &self.svid.serial())
            .field("accepted_domains", &self.trust.accepted_domains)
            .finish_non_exhaustive()
    }
}

/// A chain and its key as TLS uses them.
pub(crate) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
) -> Result<Arc<SingleCertAndKey>, SetupError> {
    // Not `CertifiedKey::from_der`, which takes a copy of the key and does not wipe it.
    let certified = CertifiedKey::new(chain, any_supported_type(&key.to_der())?);
    match certified.keys_match() {
        // Says "unknown" where the library cannot tell; `Svid` has compared them already.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

/// Neither session identifiers nor tickets, in either version: see the crate's documentation.
pub(crate) fn without_resumption(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
}

pub(crate) fn split<'c, 'd>(
    presenter: Presenter,
    chain: &'c [CertificateDer<'d>],
) -> Result<(&'c CertificateDer<'d>, &'c [CertificateDer<'d>]), Refusal> {
    chain.split_first().ok_or_else(|| Refusal {
        presenter,
        claimed: Vec::new(),
        serial: String::new(),
        reason: Reason::Unreadable("the chain is empty".to_owned()),
    })
}
