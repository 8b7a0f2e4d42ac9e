//! TLS to servers that are no workloads of the mesh, as a DestinationRule orders it (reference mtls 2.2, DR-3).
//!
//! Unlike in the mesh, the server is known by the name that was called, or by names that the rule lists, and its roots
//! come from a file or from the operating system. An [`Origin`] is what one set of files gives; changed files make a new
//! one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use maille_pki::{CertificateDer, KeyPair, Moment, certificates_from_pem, leaf_facts};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{verify_tls12_signature as check_tls12, verify_tls13_signature as check_tls13};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, OtherError,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateRevocationListDer, ServerName, UnixTime};

use crate::alpn::{H2, owned};
use crate::context::{VERSIONS, certified};
use crate::error::{SetupError, explain};
use crate::provider::provider;

/// Configurations kept per set of files; beyond it all are forgotten and made anew as needed.
const CONFIGS: usize = 256;

/// What the server must prove.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Proof {
    /// Nothing: `insecureSkipVerify`.
    Nothing,
    /// That a trusted root stands behind it, whatever its names.
    Chain,
    /// The name that the handshake is made for, besides.
    DialledName,
    /// One of these names, besides; a name is compared with names of any type, as in SN-5.
    OneOf(Arc<[String]>),
}

/// What one handshake asks for, besides the files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OriginRequest {
    /// What the server must prove.
    pub proof: Proof,
    /// Offers `h2`; no protocol is offered otherwise (DR-3).
    pub http2: bool,
    /// Tells the server the name.
    pub sends_name: bool,
}

/// A client certificate with its key, and when it is good.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    own: Arc<SingleCertAndKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl ClientCertificate {
    /// From PEM: the chain, leaf first, and the key. They must belong together; whether the certificate is good now is
    /// another question ([`ClientCertificate::check`]).
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, SetupError> {
        let chain = certificates_from_pem("client certificate", chain_pem)?;
        let facts = match chain.first() {
            Some(leaf) => leaf_facts(leaf)?,
            None => return Err(maille_pki::Error::Empty("client certificate").into()),
        };
        let own = certified(chain, &KeyPair::from_pem(key_pem)?).map_err(|e| match e {
            SetupError::Tls(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                maille_pki::Error::KeyMismatch { what: "client certificate" }.into()
            }
            other => other,
        })?;
        Ok(Self { own, not_before: facts.not_before, not_after: facts.not_after })
    }

    /// Says why the certificate is not good at `now`, if it is not.
    pub fn check(&self, now: SystemTime) -> Result<(), String> {
        if now >= self.not_after {
            return Err(format!(
                "it expired at {}, and it is {} here; put a renewed one in its place, it is taken up without a restart",
                Moment(self.not_after),
                Moment(now)
            ));
        }
        if now < self.not_before {
            return Err(format!(
                "it is not valid before {}, and it is {} here; the clock of this machine may be late",
                Moment(self.not_before),
                Moment(now)
            ));
        }
        Ok(())
    }

    /// The end of its validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// Roots that servers are verified against, and where they come from.
#[derive(Debug)]
pub struct ServerRoots {
    store: RootCertStore,
    source: String,
    /// With revocation lists: checks those, too.
    revoking: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerRoots {
    /// Every certificate of a PEM text; `source` names it in messages.
    pub fn from_pem(pem: &str, source: impl Into<String>) -> Result<Self, SetupError> {
        let mut store = RootCertStore::empty();
        for root in certificates_from_pem("root bundle", pem)? {
            store.add(root)?;
        }
        Ok(Self { store, source: source.into(), revoking: None })
    }

    /// Refuses certificates that one of the lists revokes. As Envoy has it, there must be a current list of every
    /// authority in a server's chain.
    pub fn with_revocation_lists(mut self, pem: &str) -> Result<Self, SetupError> {
        let lists = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes());
        let lists: Vec<_> = lists.collect::<Result<_, _>>().map_err(|e| general(&e))?;
        if lists.is_empty() {
            return Err(maille_pki::Error::Empty("revocation list").into());
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(self.store.clone()), provider())
            .with_crls(lists)
            .enforce_revocation_expiration()
            .build()
            .map_err(|e| general(&e))?;
        self.revoking = Some(verifier);
        Ok(self)
    }

    /// As [`ServerRoots::from_pem`] for the bundle of an operating system, of which single certificates may be of
    /// kinds that are not known here.
    pub fn of_system(pem: &str, source: impl Into<String>) -> Result<Self, SetupError> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates_from_pem("root bundle", pem)?);
        if store.is_empty() {
            return Err(maille_pki::Error::Empty("root bundle").into());
        }
        Ok(Self { store, source: source.into(), revoking: None })
    }
}

fn general(error: &dyn fmt::Display) -> SetupError {
    Error::General(error.to_string()).into()
}

/// TLS of one set of files; immutable.
pub struct Origin {
    certificate: Option<ClientCertificate>,
    /// None where no server is verified.
    roots: Option<Arc<ServerRoots>>,
    configs: RwLock<HashMap<OriginRequest, Arc<ClientConfig>>>,
}

impl Origin {
    /// Without a certificate the client shows none; without roots only [`Proof::Nothing`] can be asked for.
    pub fn new(certificate: Option<ClientCertificate>, roots: Option<ServerRoots>) -> Self {
        Self { certificate, roots: roots.map(Arc::new), configs: RwLock::default() }
    }

    /// The certificate that is shown to servers.
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref()
    }

    /// The configuration for a handshake. Kept per request, so that it costs a lookup.
    pub fn client_config(&self, request: &OriginRequest) -> Result<Arc<ClientConfig>, SetupError> {
        if let Some(config) = self.configs.read().unwrap_or_else(PoisonError::into_inner).get(request) {
            return Ok(config.clone());
        }
        let roots = match (&request.proof, &self.roots) {
            (Proof::Nothing, _) => None,
            (_, Some(roots)) => Some(roots.clone()),
            (_, None) => return Err(Error::General("no roots to verify the server by".to_owned()).into()),
        };
        let verifier = OriginVerifier { roots, proof: request.proof.clone() };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.certificate {
            Some(certificate) => builder.with_client_cert_resolver(certificate.own.clone()),
            None => builder.with_no_client_auth(),
        };
        if request.http2 {
            config.alpn_protocols = owned(&[H2]);
        }
        config.enable_sni = request.sends_name;
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        let mut configs = self.configs.write().unwrap_or_else(PoisonError::into_inner);
        if configs.len() >= CONFIGS {
            configs.clear();
        }
        configs.insert(request.clone(), config.clone());
        Ok(config)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin")
            .field("not_after", &self.certificate.as_ref().map(|c| Moment(c.not_after).to_string()))
            .field("roots", &self.roots.as_ref().map(|roots| &roots.source))
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct OriginVerifier {
    /// None only with [`Proof::Nothing`].
    roots: Option<Arc<ServerRoots>>,
    proof: Proof,
}

/// Why a server was refused, for our log; the server is told less.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unproved(String);

fn unproved(why: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Unproved(why)))))
}

/// Whether no list revokes a certificate of the chain. Names are another question, which is asked last.
fn not_revoked(
    revoking: &WebPkiServerVerifier,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    dialled: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    match revoking.verify_server_cert(leaf, intermediates, dialled, &[], now) {
        Ok(_) => Ok(()),
        Err(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => Ok(()),
        Err(error) => Err(error),
    }
}

impl OriginVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        dialled: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let Some(roots) = &self.roots else { return Ok(()) };
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, algorithms)
            .and_then(|()| match &roots.revoking {
                Some(revoking) => not_revoked(revoking, leaf, intermediates, dialled, now),
                None => Ok(()),
            })
            .map_err(|e| match e {
                // A root of the same name as the right one is found, and the signature is not its own.
                Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                    let (count, source) = (roots.store.len(), &roots.source);
                    unproved(format!(
                        "none of the {count} roots of {source} stands behind it; it comes from another authority"
                    ))
                }
                Error::InvalidCertificate(why) => unproved(explain(&why)),
                Error::InvalidCertRevocationList(why) => {
                    unproved(format!("a revocation list of its authority in caCrl cannot be used: {why:?}"))
                }
                other => other,
            })?;
        let is_dialled = || verify_server_name(&parsed, dialled).is_ok();
        let shown = || {
            let names = leaf_facts(leaf).map(|facts| facts.names().take(8).collect::<Vec<_>>().join(", "));
            names.ok().filter(|names| !names.is_empty()).unwrap_or_else(|| "nobody by name".to_owned())
        };
        match &self.proof {
            Proof::Nothing | Proof::Chain => Ok(()),
            Proof::DialledName if is_dialled() => Ok(()),
            Proof::DialledName => {
                Err(unproved(format!("it is for {}, and not for {}", shown(), dialled.to_str())))
            }
            Proof::OneOf(names) => {
                let facts = leaf_facts(leaf).map_err(|e| unproved(e.to_string()))?;
                // Wildcards of the certificate count, as in Envoy's exact matcher for DNS names.
                let fits = |name: &String| {
                    facts.is_named(name)
                        || ServerName::try_from(name.as_str())
                            .is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
                };
                if names.iter().any(fits) {
                    return Ok(());
                }
                let expected = names.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
                Err(unproved(format!("it is for {}, and for none of subjectAltNames ({expected})", shown())))
            }
        }
    }
}

impl ServerCertVerifier for OriginVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        dialled: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, dialled, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_tls12(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_tls13(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
