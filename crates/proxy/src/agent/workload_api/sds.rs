//! Envoy's secret discovery, state of the world, for an Envoy among the applications (reference mtls 6.5).
//!
//! `default` is the applications' certificate and key, `ROOTCA` the roots of the own trust domain, `spiffe://<trust domain>`
//! those of any domain, and `file-cert:`, `file-root:` come from files. Roots of other domains are not part of `ROOTCA`: Envoy
//! would believe them about names of the own domain too.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, stream};
use maille_core::TrustDomain;
use maille_pki::{CertificateDer, certificate_pem};
use maille_proto::secret::secret_discovery_service_server::SecretDiscoveryService;
use maille_proto::secret::{
    CertificateValidationContext, DataSource, DiscoveryRequest, DiscoveryResponse, Secret, TlsCertificate,
    data_source, secret,
};
use prost::Message as _;
use prost_types::Any;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::Sources;
use super::believed::{Believed, BelievedWatch};
use super::file_secrets::{FileSecret, FromFiles};
use super::socket::Caller;
use super::supply::{Held, Want};
use crate::agent::state::Credential;

/// The one type there is.
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// The applications' certificate.
const OWN_CERTIFICATE: &str = "default";
/// The roots of the own trust domain.
const OWN_ROOTS: &str = "ROOTCA";
/// Names that one stream may ask for; Envoy has a stream per name.
const MAX_NAMES: usize = 32;
/// How often files are read again while somebody holds what is in them.
const READ_EVERY: Duration = Duration::from_secs(2);

/// See the module's text.
pub(super) struct SecretService(pub(super) Sources);

#[tonic::async_trait]
impl SecretDiscoveryService for SecretService {
    type StreamSecretsStream = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let place = self.0.place()?;
        let caller = request.extensions().get::<Caller>().copied();
        let caller = caller.ok_or_else(|| Status::internal("the caller is not known"))?;
        let session = Session {
            caller,
            requests: request.into_inner(),
            held: self.0.supply.watch(),
            believed: self.0.believed.clone(),
            sources: self.0.clone(),
            names: BTreeSet::new(),
            sent: None,
            count: 0,
            want: None,
            _place: place,
        };
        // An error ends the stream; Envoy comes back.
        let answers = stream::unfold(Some(session), |session| async move {
            let mut session = session?;
            match session.next().await {
                Ok(Some(answer)) => Some((Ok(answer), Some(session))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

struct Session {
    caller: Caller,
    requests: Streaming<DiscoveryRequest>,
    held: watch::Receiver<Held>,
    believed: BelievedWatch,
    sources: Sources,
    names: BTreeSet<String>,
    /// The last answer.
    sent: Option<Vec<Any>>,
    /// Answers so far: version and nonce.
    count: u64,
    /// As long as the certificate is asked for.
    want: Option<Want>,
    _place: OwnedSemaphorePermit,
}

impl Session {
    /// The next answer; `None` when the caller has gone.
    async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        loop {
            if !self.names.is_empty() {
                let secrets = self.secrets().await?;
                if !secrets.is_empty() && self.sent.as_ref() != Some(&secrets) {
                    return Ok(Some(self.answer(secrets)));
                }
            }
            let reads_files = self.names.iter().any(|name| FileSecret::parse(name).is_some());
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.requested(request)?,
                    None => return Ok(None),
                },
                changed = self.held.changed() => if changed.is_err() { return Ok(None) },
                changed = self.believed.changed() => if changed.is_err() { return Ok(None) },
                () = tokio::time::sleep(READ_EVERY), if reads_files => {}
            }
        }
    }

    fn requested(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        if !request.type_url.is_empty() && request.type_url != SECRET {
            return Err(Status::invalid_argument(format!(
                "'{}' is not served here, but {SECRET}",
                request.type_url
            )));
        }
        if let Some(refusal) = request.error_detail {
            warn!(reason = %refusal.message, names = ?request.resource_names, "a secret was refused by who asked for it");
        }
        // An answer to an older one of ours says nothing about what is wanted now.
        let is_stale = !request.response_nonce.is_empty() && request.response_nonce != self.count.to_string();
        if is_stale {
            return Ok(());
        }
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        if names.len() > MAX_NAMES {
            return Err(Status::resource_exhausted(format!("more than {MAX_NAMES} names on one stream")));
        }
        if names != self.names {
            self.sent = None;
            self.want = names.contains(OWN_CERTIFICATE).then(|| self.sources.supply.want());
            self.names = names;
        }
        Ok(())
    }

    fn answer(&mut self, secrets: Vec<Any>) -> DiscoveryResponse {
        self.count += 1;
        self.sent = Some(secrets.clone());
        let number = self.count.to_string();
        DiscoveryResponse {
            version_info: number.clone(),
            resources: secrets,
            type_url: SECRET.to_owned(),
            nonce: number,
        }
    }

    /// Everything that is asked for.
    async fn secrets(&mut self) -> Result<Vec<Any>, Status> {
        let mut secrets = Vec::with_capacity(self.names.len());
        for name in &self.names {
            let kind = if let Some(file) = FileSecret::parse(name) {
                from_files(file?.read(&self.sources.options, self.caller).await?)
            } else if name == OWN_CERTIFICATE {
                let held = self.held.borrow_and_update().credential.clone();
                let credential = match held {
                    Some(credential) => credential,
                    None => self.sources.supply.first().await?,
                };
                certificate(&credential)
            } else {
                let believed = self.believed.borrow_and_update().clone();
                let domain = match name.strip_prefix("spiffe://") {
                    Some(domain) => {
                        TrustDomain::parse(domain).map_err(|e| Status::invalid_argument(e.to_string()))?
                    }
                    None if name == OWN_ROOTS => self.sources.own_domain()?,
                    None => return Err(Status::not_found(format!("there is no secret '{name}'"))),
                };
                let roots = believed.roots.get(&domain);
                roots_of(roots.ok_or_else(|| unknown(&domain))?, &believed)
            };
            let secret = Secret { name: name.clone(), r#type: Some(kind) };
            secrets.push(Any { type_url: SECRET.to_owned(), value: secret.encode_to_vec() });
        }
        Ok(secrets)
    }
}

impl Sources {
    /// The trust domain of the own certificate.
    fn own_domain(&self) -> Result<TrustDomain, Status> {
        let credential = self.credential.borrow();
        let credential = credential.as_ref();
        let credential = credential.ok_or_else(|| Status::unavailable("the proxy has no certificate yet"))?;
        Ok(credential.svid.identity().trust_domain().clone())
    }
}

fn unknown(domain: &TrustDomain) -> Status {
    Status::unavailable(format!("no roots of trust domain {domain} are known"))
}

fn certificate(credential: &Credential) -> secret::Type {
    let chain = credential.svid.chain_pem().concat();
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: inline(chain.as_bytes()),
        private_key: inline(credential.svid.key().to_pem().as_bytes()),
    })
}

fn roots_of(roots: &[CertificateDer<'_>], believed: &Believed) -> secret::Type {
    let pem: String = roots.iter().map(certificate_pem).collect();
    let crls: String = believed.crls.iter().map(|crl| crl_pem(crl)).collect();
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: inline(pem.as_bytes()),
        crl: (!crls.is_empty()).then(|| inline(crls.as_bytes())).flatten(),
    })
}

fn from_files(found: FromFiles) -> secret::Type {
    match found {
        FromFiles::Pair { chain, key } => secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(chain.as_bytes()),
            private_key: inline(key.as_bytes()),
        }),
        FromFiles::Roots(pem) => secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(pem.as_bytes()),
            crl: None,
        }),
    }
}

fn inline(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource { specifier: Some(data_source::Specifier::InlineBytes(bytes.to_vec())) })
}

/// RFC 7468 section 6.
fn crl_pem(der: &[u8]) -> String {
    maille_pki::certificate_pem(&CertificateDer::from(der)).replace("CERTIFICATE", "X509 CRL")
}
