//! The Kubernetes API, as the page asks it.

use anyhow::ensure;
use futures::FutureExt;
use futures::future::BoxFuture;
use maille_dashboard::{MAX_ANSWER_BYTES, Upstream};
use tokio::sync::watch;

use crate::client::Api;

/// Asks the API with the credential of the moment.
pub(crate) struct ApiUpstream {
    api: watch::Receiver<Api>,
}

impl ApiUpstream {
    /// With one credential for good.
    pub(crate) fn new(api: Api) -> Self {
        Self::following(watch::channel(api).1)
    }

    /// With whatever credential was sent last.
    pub(crate) fn following(api: watch::Receiver<Api>) -> Self {
        Self { api }
    }
}

impl Upstream for ApiUpstream {
    fn get(&self, path: String) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        let api = self.api.borrow().clone();
        async move {
            let mut body = Vec::new();
            let taken = api.stream(&path, |bytes| {
                ensure!(body.len() + bytes.len() <= MAX_ANSWER_BYTES, "the answer to {path} is too large");
                body.extend_from_slice(bytes);
                Ok(())
            });
            taken.await.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
            Ok(body)
        }
        .boxed()
    }
}
