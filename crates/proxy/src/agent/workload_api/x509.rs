//! Messages about X.509.

use maille_pki::CertificateDer;
use maille_proto::spiffe::{X509BundlesResponse, X509svid, X509svidResponse};

use super::believed::{Believed, domain_id};
use crate::agent::state::Credential;

/// The whole state for `FetchX509SVID`; `None` while the roots of the own domain are not known.
pub(super) fn svids(credential: &Credential, believed: &Believed) -> Option<X509svidResponse> {
    let svid = &credential.svid;
    let own = svid.identity().trust_domain();
    let roots = believed.roots.get(own).filter(|roots| !roots.is_empty())?;
    let others = believed.roots.iter().filter(|(domain, _)| *domain != own);
    Some(X509svidResponse {
        svids: vec![X509svid {
            spiffe_id: svid.identity().uri(),
            x509_svid: concatenated(svid.chain()),
            // Made here, and so PKCS#8.
            x509_svid_key: svid.key().to_der().secret_der().to_vec(),
            bundle: concatenated(roots),
            hint: String::new(),
        }],
        crl: crls(believed),
        federated_bundles: others.map(|(domain, roots)| (domain_id(domain), concatenated(roots))).collect(),
    })
}

/// The whole state for `FetchX509Bundles`; `None` while there is nothing.
pub(super) fn bundles(believed: &Believed) -> Option<X509BundlesResponse> {
    let bundles = believed.roots.iter().map(|(domain, roots)| (domain_id(domain), concatenated(roots)));
    (!believed.roots.is_empty())
        .then(|| X509BundlesResponse { crl: crls(believed), bundles: bundles.collect() })
}

fn crls(believed: &Believed) -> Vec<Vec<u8>> {
    believed.crls.iter().map(|crl| crl.to_vec()).collect()
}

fn concatenated(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|certificate| certificate.iter().copied()).collect()
}
