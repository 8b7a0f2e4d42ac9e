use zeroize::Zeroizing;

use super::Authority;
use crate::crl::RevocationList;
use crate::error::{Error, Result};
use crate::pem::certificate_pem;

impl Authority {
    /// From the entries of the Secret `istio-ca-secret` or `cacerts`, or the files of `/etc/cacerts` (reference
    /// mtls 5.5).
    ///
    /// If there is a `tls.crt`, it is a Secret of type TLS: `tls.crt` (signing certificate, then its chain), `tls.key`,
    /// `ca.crt`. Else `ca-cert.pem`, `ca-key.pem` and `root-cert.pem` must be there (CA-20), and `cert-chain.pem`
    /// may be missing or empty. `ca-crl.pem`, if there is one, must be signed by a certificate of these.
    pub fn from_secret<'a>(entry: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self> {
        let text = |name: &'static str| match entry(name).map(std::str::from_utf8) {
            Some(Ok(text)) => Ok(text),
            Some(Err(e)) => Err(Error::Pem { what: name, reason: e.to_string() }),
            None => Err(Error::Pem { what: name, reason: "the Secret has no such entry".to_owned() }),
        };
        let optional = |name: &'static str| if entry(name).is_some() { text(name) } else { Ok("") };
        let mut authority = if entry("tls.crt").is_some() {
            Self::from_pem(text("tls.crt")?, text("tls.key")?, "", text("ca.crt")?)?
        } else {
            let chain = optional("cert-chain.pem")?;
            Self::from_pem(text("ca-cert.pem")?, text("ca-key.pem")?, chain, text("root-cert.pem")?)?
        };
        let revoked = optional("ca-crl.pem")?;
        if !revoked.trim().is_empty() {
            authority.revoked = RevocationList::from_pem(revoked, &authority.own_certificates())?;
        }
        Ok(authority)
    }

    /// The entries of the Secret `istio-ca-secret`; `from_secret` reads them back. Its own roots only: what else is
    /// trusted for a time is kept by whoever rotates.
    pub fn to_secret(&self) -> [(&'static str, Zeroizing<String>); 5] {
        let chain: String = self.intermediates.iter().map(certificate_pem).collect();
        let roots: String = self.own_roots.iter().map(certificate_pem).collect();
        [
            ("ca-cert.pem", Zeroizing::new(certificate_pem(&self.certificate))),
            ("ca-key.pem", self.key_pem()),
            ("root-cert.pem", Zeroizing::new(roots)),
            ("cert-chain.pem", Zeroizing::new(chain)),
            ("key.pem", Zeroizing::new(String::new())),
        ]
    }
}
