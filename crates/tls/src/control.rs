//! The ordinary TLS around the mesh: the control plane's port, the API server, and their clients.
//!
//! Here servers prove a DNS name or address, as on the web, but against roots that are given;
//! the machine's own certificate store plays no part.

use std::sync::Arc;
use std::time::SystemTime;

use maille_core::Identity;
use maille_pki::{CertificateDer, KeyPair, Svid, certificates_from_pem};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientCertVerifierBuilder, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::UnixTime;

use crate::alpn::{H2, HTTP_11, owned};
use crate::context::{VERSIONS, certified, split, without_resumption};
use crate::error::SetupError;
use crate::parameters::Parameters;
use crate::provider::provider;
use crate::refusal::{Presenter, Refusal};
use crate::trust::{Anchors, Trust};
use crate::verifier::MeshClientVerifier;

/// A certificate chain with its key, for a server or client that is no workload of the mesh.
#[derive(Debug, Clone)]
pub struct Credential(Arc<SingleCertAndKey>);

impl Credential {
    /// From PEM: the chain, leaf first, and the key. They must belong together.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, SetupError> {
        let chain = certificates_from_pem("certificate chain", chain_pem)?;
        Ok(Self(certified(chain, &KeyPair::from_pem(key_pem)?)?))
    }

    /// From a workload's SVID: how a proxy shows itself to the control plane.
    ///
    /// Do not show an expired one: the control plane refuses the connection then, even if a token
    /// would be good.
    pub fn from_svid(svid: &Svid) -> Result<Self, SetupError> {
        Ok(Self(certified(svid.chain().to_vec(), svid.key())?))
    }
}

/// The server side of port 15012 (reference mtls 5.2): gRPC; a client may show its SVID, which is
/// then verified as in the mesh, or come without and show a token.
///
/// After the handshake, [`crate::peer_of_server`] says who the client is; it answers
/// `NoCertificate` for one without.
pub fn discovery_server(own: &Credential, trust: &Trust) -> Result<Arc<ServerConfig>, SetupError> {
    discovery_server_by(own, trust, &Parameters::default())
}

/// The same, negotiating by `parameters`.
pub fn discovery_server_by(
    own: &Credential,
    trust: &Trust,
    parameters: &Parameters,
) -> Result<Arc<ServerConfig>, SetupError> {
    let anchors = Arc::new(Anchors::new(trust)?);
    let mut config = ServerConfig::builder_with_provider(parameters.provider())
        .with_protocol_versions(parameters.versions())?
        .with_client_cert_verifier(Arc::new(MeshClientVerifier { anchors, optional: true }))
        .with_cert_resolver(own.0.clone());
    config.alpn_protocols = owned(&[H2]);
    without_resumption(&mut config);
    Ok(Arc::new(config))
}

/// Judges clients of [`discovery_server`] after their handshake: trust may have changed since.
#[derive(Debug)]
pub struct ClientJudge(Anchors);

impl ClientJudge {
    /// Believes whom a server of this trust believes.
    pub fn new(trust: &Trust) -> Result<Self, SetupError> {
        Anchors::new(trust).map(Self)
    }

    /// Judges the chain that a client has shown, leaf first, as its handshake would be judged now.
    pub fn judge(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Identity, Refusal> {
        let (leaf, intermediates) = split(Presenter::Client, chain)?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.0.verify_client(leaf, intermediates, UnixTime::since_unix_epoch(since))
    }
}

/// The client side of port 15012: the server must prove the dialled name (such as
/// `istiod.istio-system.svc`) by one of the given roots; `own` is shown if asked for.
pub fn discovery_client(roots_pem: &str, own: Option<&Credential>) -> Result<Arc<ClientConfig>, SetupError> {
    client(roots_pem, own, &[H2])
}

/// An HTTPS server. With `client_roots_pem`, a client may show a certificate by one of these
/// roots (a kubeconfig's user; [`maille_pki::client_subject`] reads who it is); one that does not
/// verify ends the handshake.
pub fn https_server(
    own: &Credential,
    client_roots_pem: Option<&str>,
) -> Result<Arc<ServerConfig>, SetupError> {
    let verifier = match client_roots_pem {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(pem) => client_verifier(pem, |builder| builder.allow_unauthenticated())?,
    };
    server(own, verifier)
}

/// An HTTPS server that demands of every client a certificate by one of the given roots; the handshake of one that
/// has none ends.
pub fn https_server_for_clients_of(
    own: &Credential,
    client_roots_pem: &str,
) -> Result<Arc<ServerConfig>, SetupError> {
    server(own, client_verifier(client_roots_pem, |builder| builder)?)
}

fn client_verifier(
    roots_pem: &str,
    adapt: impl FnOnce(ClientCertVerifierBuilder) -> ClientCertVerifierBuilder,
) -> Result<Arc<dyn ClientCertVerifier>, SetupError> {
    let builder = WebPkiClientVerifier::builder_with_provider(store(roots_pem)?, provider());
    let verifier = adapt(builder.clear_root_hint_subjects()).build();
    Ok(verifier.map_err(|e| rustls::Error::General(e.to_string()))?)
}

fn server(own: &Credential, verifier: Arc<dyn ClientCertVerifier>) -> Result<Arc<ServerConfig>, SetupError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier);
    let mut config = builder.with_cert_resolver(own.0.clone());
    config.alpn_protocols = owned(&[H2, HTTP_11]);
    without_resumption(&mut config);
    Ok(Arc::new(config))
}

/// An HTTPS client that trusts the given roots only, for HTTP/1.1 and HTTP/2 as the server likes.
pub fn https_client(roots_pem: &str, own: Option<&Credential>) -> Result<Arc<ClientConfig>, SetupError> {
    client(roots_pem, own, &[H2, HTTP_11])
}

fn client(
    roots_pem: &str,
    own: Option<&Credential>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, SetupError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(store(roots_pem)?, provider())
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_webpki_verifier(verifier);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own.0.clone()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = owned(alpn);
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn store(roots_pem: &str) -> Result<Arc<RootCertStore>, SetupError> {
    let mut store = RootCertStore::empty();
    for root in certificates_from_pem("root bundle", roots_pem)? {
        store.add(root)?;
    }
    Ok(Arc::new(store))
}
