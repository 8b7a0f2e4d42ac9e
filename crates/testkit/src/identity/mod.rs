//! A certificate authority for tests: good SVIDs of any identity, and every kind of bad one.

mod flaw;
mod rogue;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_core::{Identity, TrustDomain};
use maille_pki::{
    Authority, CertificateDer, CertificateRequest, KeyPair, ROOT_TTL, Svid, TrustBundles, create_csr,
    generate_key,
};
use maille_tls::{TlsContext, Trust};

pub use flaw::Flaw;
pub use rogue::{rogue_client, rogue_server};

/// How long SVIDs of the test authority live.
const TTL: Duration = Duration::from_secs(3600);

/// One root with its trust domain.
pub struct TestAuthority {
    trust_domain: TrustDomain,
    authority: Authority,
}

impl Default for TestAuthority {
    fn default() -> Self {
        Self::new()
    }
}

impl TestAuthority {
    /// A fresh root of the trust domain `cluster.local`.
    pub fn new() -> Self {
        Self::of(maille_core::DEFAULT_TRUST_DOMAIN)
    }

    /// A fresh root of the given trust domain.
    pub fn of(trust_domain: &str) -> Self {
        let trust_domain = TrustDomain::parse(trust_domain).expect("valid trust domain");
        let authority = Authority::self_signed(&trust_domain, SystemTime::now(), ROOT_TTL).expect("new root");
        Self { trust_domain, authority }
    }

    /// The authority behind it.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root bundle in PEM.
    pub fn roots_pem(&self) -> String {
        self.authority.roots_pem()
    }

    /// Its root, as bundle of its trust domain.
    pub fn bundles(&self) -> TrustBundles {
        let mut bundles = TrustBundles::new();
        bundles
            .insert(self.trust_domain.clone(), self.authority.roots().to_vec())
            .expect("own root is a root");
        bundles
    }

    /// Trust in this authority alone.
    pub fn trust(&self) -> Trust {
        Trust::of_mesh(self.bundles(), &self.trust_domain, &[]).expect("own trust domain has a root")
    }

    /// An identity of its trust domain.
    pub fn identity(&self, namespace: &str, account: &str) -> Identity {
        Identity::new(self.trust_domain.clone(), namespace, account).expect("valid identity")
    }

    /// A good SVID that lives for an hour.
    pub fn svid(&self, namespace: &str, account: &str) -> Svid {
        self.svid_for(&self.identity(namespace, account), TTL)
    }

    /// A good SVID for any identity, also of another trust domain, and any lifetime.
    pub fn svid_for(&self, identity: &Identity, ttl: Duration) -> Svid {
        let key = generate_key().expect("new key");
        let csr = create_csr(&key, identity).expect("new request");
        let request = CertificateRequest::parse_pem(&csr).expect("own request");
        let issued = self.authority.issue(&request, identity, ttl, SystemTime::now()).expect("signed");
        Svid::from_pem(&issued.chain_pem, key).expect("own certificate is an SVID")
    }

    /// What a proxy of this workload holds: a good SVID and trust in this authority.
    pub fn context(&self, namespace: &str, account: &str) -> Arc<TlsContext> {
        Arc::new(TlsContext::new(self.svid(namespace, account), self.trust()).expect("good SVID and root"))
    }

    /// A certificate that is good but for one flaw.
    pub fn flawed(&self, flaw: Flaw, namespace: &str, account: &str) -> Credential {
        flaw::credential(self, flaw, &self.identity(namespace, account))
    }

    /// A server certificate for host names and addresses, signed by this authority.
    pub fn server(&self, dns_names: &[&str], addresses: &[std::net::IpAddr]) -> Credential {
        let key = generate_key().expect("new key");
        let public = key.public_key().expect("P-256 is accepted");
        let issued = self
            .authority
            .issue_server(&public, dns_names, addresses, TTL, SystemTime::now())
            .expect("signed");
        Credential::new(&issued.chain_text(), key)
    }

    /// A client certificate of a Kubernetes user.
    pub fn client(&self, user: &str, group: Option<&str>) -> Credential {
        let key = generate_key().expect("new key");
        let public = key.public_key().expect("P-256 is accepted");
        let issued =
            self.authority.issue_client(&public, user, group, TTL, SystemTime::now()).expect("signed");
        Credential::new(&issued.chain_text(), key)
    }

    /// Writes an SVID and the root bundle into a directory, as `<name>.crt`, `<name>.key` and
    /// `<name>-roots.pem`.
    pub fn write_svid(&self, directory: &Path, name: &str, svid: &Svid) -> PemFiles {
        self.write(directory, name, &svid.chain_pem().concat(), &svid.key().to_pem())
    }

    /// Writes any credential and the root bundle into a directory; see [`TestAuthority::write_svid`].
    pub fn write_credential(&self, directory: &Path, name: &str, credential: &Credential) -> PemFiles {
        self.write(directory, name, &credential.chain_pem(), &credential.key.to_pem())
    }

    fn write(&self, directory: &Path, name: &str, chain: &str, key: &str) -> PemFiles {
        let file = |suffix: &str, text: &str| {
            let path = directory.join(format!("{name}{suffix}"));
            std::fs::write(&path, text).expect("write into the test's directory");
            path
        };
        PemFiles {
            chain: file(".crt", chain),
            key: file(".key", key),
            roots: file("-roots.pem", &self.roots_pem()),
        }
    }
}

/// A chain with its key, of which nothing was checked.
#[derive(Debug)]
pub struct Credential {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: KeyPair,
}

impl Credential {
    fn new(chain_pem: &str, key: KeyPair) -> Self {
        let chain = maille_pki::certificates_from_pem("chain", chain_pem).expect("own PEM");
        Self { chain, key }
    }

    /// The chain in PEM.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(maille_pki::certificate_pem).collect()
    }

    /// The key in PEM.
    pub fn key_pem(&self) -> String {
        self.key.to_pem().to_string()
    }
}

impl From<&Svid> for Credential {
    fn from(svid: &Svid) -> Self {
        let key = KeyPair::from_pem(&svid.key().to_pem()).expect("own PEM");
        Self { chain: svid.chain().to_vec(), key }
    }
}

/// Where PEM files were written.
#[derive(Debug, Clone)]
pub struct PemFiles {
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The root bundle.
    pub roots: PathBuf,
}
