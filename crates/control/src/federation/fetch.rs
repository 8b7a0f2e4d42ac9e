//! One fetch of a bundle.

use std::sync::Arc;
use std::time::Duration;

use maille_pki::{BundleDocument, CertificateDer, Reading, certificate_pem};

use super::dial::OperatorDial;
use super::source::Source;
use crate::keys::{Fetcher, Roots};

/// Larger bundles are refused: every proxy of the mesh holds them, and the control plane keeps them.
const MAX_BUNDLE: usize = 128 << 10;

/// Fetches bundles.
#[derive(Debug, Clone)]
pub struct BundleFetcher {
    /// What endpoints prove their host names by.
    web: Roots,
}

impl Default for BundleFetcher {
    fn default() -> Self {
        Self::new(Roots::System)
    }
}

impl BundleFetcher {
    /// Endpoints without a bundle of their own prove their host names by these roots.
    pub fn new(web: Roots) -> Self {
        Self { web }
    }

    /// The bundle of a source, with the text it came as. `known` is the last good one.
    pub(super) async fn fetch(
        &self,
        source: &Source,
        known: Option<&BundleDocument>,
        limit: Duration,
    ) -> Result<(BundleDocument, String), String> {
        let dial = Arc::new(OperatorDial::new(&source.url));
        let fetcher = match &source.bootstrap {
            // SPIFFE Federation section 5.2.1.
            None => Fetcher::new(dial, self.web.clone()),
            // Section 5.2.2: by the last bundle, so that a root which the domain has withdrawn vouches for nobody.
            Some(bootstrap) => {
                let roots = known.map_or_else(|| bootstrap.clone(), |known| pem(&known.roots));
                Fetcher::new(dial, Roots::Pem(roots.into())).proving([source.endpoint_id.clone()].into())
            }
        };
        let answer = fetcher.document(&source.url, "spiffeBundleUrl", limit).await?;
        let named = |problem: &str| format!("{} is no trust bundle: {problem}", source.url);
        if answer.len() > MAX_BUNDLE {
            return Err(named(&format!("it has more than {MAX_BUNDLE} bytes")));
        }
        let document = BundleDocument::decode(&answer, Reading::Strict).map_err(|e| named(&e.to_string()))?;
        let text = std::str::from_utf8(&answer).map_err(|_| named("it is no text"))?;
        Ok((document, text.to_owned()))
    }
}

fn pem(roots: &[CertificateDer<'_>]) -> String {
    roots.iter().map(certificate_pem).collect()
}
