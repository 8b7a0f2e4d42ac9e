//! The token by which the control plane is known to the API server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::util::MapRequestLayer;

/// How long a token that was read is taken for the one in the file. The client's own minute is too long for one that had
/// ended before it was read: after a sleep of the machine, the kubelet needs a moment to renew it, and until the control
/// plane has seen that it can review nobody else's.
const FRESH: Duration = Duration::from_secs(1);

/// A client of the API server as every Kubernetes client finds it: the Pod's ServiceAccount, else the kubeconfig.
pub(crate) async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context("no way to reach a Kubernetes API server")?;
    let Some(path) = config.auth_info.token_file.take() else { return Ok(Client::try_from(config)?) };
    let bearer = Arc::new(Bearer::new(PathBuf::from(path)));
    let authorize = MapRequestLayer::new(move |request| bearer.authorize(request));
    Ok(ClientBuilder::try_from(config)?.with_layer(&authorize).build())
}

/// A token that somebody keeps fresh in a file.
struct Bearer {
    path: PathBuf,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    read: Option<Instant>,
    header: Option<HeaderValue>,
}

impl Bearer {
    fn new(path: PathBuf) -> Self {
        Self { path, last: Mutex::default() }
    }

    fn authorize(&self, mut request: Request<Body>) -> Request<Body> {
        let mut last = self.last.lock();
        if last.read.is_none_or(|read| read.elapsed() >= FRESH) {
            last.read = Some(Instant::now());
            match header(&self.path) {
                Ok(header) => last.header = Some(header),
                // The one before may still be good.
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        // Without one the API server says what it lacks.
        if let Some(header) = &last.header {
            request.headers_mut().insert(AUTHORIZATION, header.clone());
        }
        request
    }
}

fn header(path: &Path) -> anyhow::Result<HeaderValue> {
    let token = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the own token {}", path.display()))?;
    let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim()))
        .with_context(|| format!("{} holds no token", path.display()))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_that_was_renewed_is_used_within_a_second_and_one_that_is_gone_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let bearer = Bearer::new(path.clone());
        let sent = || {
            let request = bearer.authorize(Request::new(Body::empty()));
            let header = request.headers().get(AUTHORIZATION)?;
            assert!(header.is_sensitive(), "it would be logged");
            header.to_str().ok().map(str::to_owned)
        };
        assert_eq!(sent(), None);
        tokio::time::advance(FRESH).await;
        std::fs::write(&path, "old\n").expect("writable");
        assert_eq!(sent().as_deref(), Some("Bearer old"));
        std::fs::write(&path, "new").expect("writable");
        assert_eq!(sent().as_deref(), Some("Bearer old"), "it is not read for each request");
        tokio::time::advance(FRESH).await;
        assert_eq!(sent().as_deref(), Some("Bearer new"));
        std::fs::remove_file(&path).expect("there");
        tokio::time::advance(FRESH).await;
        assert_eq!(sent().as_deref(), Some("Bearer new"));
        std::fs::write(&path, "two\nlines").expect("writable");
        tokio::time::advance(FRESH).await;
        assert_eq!(sent().as_deref(), Some("Bearer new"));
    }
}
