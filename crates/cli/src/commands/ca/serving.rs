//! The certificate that the control plane serves with, as a proxy sees it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use maille_pki::Description;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsConnector;

use super::asking::Asked;
use crate::commands::admin::PodRef;

/// For the port-forward and the handshake.
const TIMEOUT: Duration = Duration::from_secs(15);
/// For the other side to close.
const GOODBYE: Duration = Duration::from_secs(1);

/// Shakes hands with a Pod of the control plane on its port 15012, trusting `roots_pem` only; the chain that it shows,
/// its own certificate first, then the authority's up to, and without, the root.
///
/// An error says what a proxy would say that tried the same.
pub(crate) async fn chain(asked: &Asked, pod: &PodRef, roots_pem: &str) -> Result<Vec<Description>> {
    match tokio::time::timeout(TIMEOUT, handshake(asked, pod, roots_pem)).await {
        Ok(chain) => chain,
        Err(_) => bail!("no answer within {} s", TIMEOUT.as_secs()),
    }
}

async fn handshake(asked: &Asked, pod: &PodRef, roots_pem: &str) -> Result<Vec<Description>> {
    let port = maille_core::ports::DISCOVERY;
    let pods: kube::Api<Pod> = kube::Api::namespaced(asked.api.client().clone(), &pod.namespace);
    let mut forwarder = pods.portforward(&pod.name, &[port]).await?;
    let stream = forwarder.take_stream(port).context("the port-forward has no stream")?;
    let config = maille_tls::control::discovery_client(roots_pem, None)?;
    let name = format!("istiod.{}.svc", asked.namespace);
    let name = ServerName::try_from(name.clone()).map_err(|_| anyhow!("'{name}' is no host name"))?;
    let mut stream = TlsConnector::from(Arc::clone(&config)).connect(name, stream).await?;
    // To the end, which has come once the other side closes, too: what is still in the port-forward is lost with it, and the
    // control plane takes that for a handshake that failed.
    stream.shutdown().await?;
    let _ = tokio::time::timeout(GOODBYE, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    ensure!(!chain.is_empty(), "it shows no certificate");
    Ok(chain.iter().map(maille_pki::describe).collect::<Result<_, _>>()?)
}
