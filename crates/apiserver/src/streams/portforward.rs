//! `pods/x/portforward?ports=…`: connections to ports inside a Pod.
//!
//! Each port has two channels: data (even) and errors (odd), in the order of the ports asked for. The server's first
//! message on each is the port's number, two bytes, little-endian.
//!
//! Source: kubelet `pkg/cri/streaming/portforward/websocket.go`; the `kube` crate's `Portforwarder`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::websocket::{self, Gone, Receiver, Sender};
use crate::api::{Api, Caller};
use crate::json;
use crate::pods::PodStreams;
use crate::request::{Query, Target};
use crate::respond::Body;
use crate::status::{ApiError, ApiResult};

const PROTOCOL: &str = "v4.channel.k8s.io";
/// Ports of one request: their channels are numbered in one byte, and 255 has a meaning of its own.
const MAX_PORTS: usize = 64;
/// How long a connection inside the Pod may take to open.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);
/// How long a port may refuse to take what the client sends: meanwhile nobody sees whether the client is still there.
const STALL: Duration = Duration::from_secs(300);
/// Pieces that may wait for a slow port.
const QUEUE: usize = 4;
const PIECE: usize = 32 << 10;

/// Answers the request: 101, and the streams.
pub(super) fn answer(
    api: &Arc<Api>,
    caller: &Caller,
    target: &Target,
    query: &Query,
    parts: &Parts,
) -> ApiResult<Response<Body>> {
    let pods = super::runner(api)?;
    let pod = super::running_pod(api, target, "forward port")?;
    if !websocket::offers(parts, PROTOCOL) {
        return Err(ApiError::bad_request(format!(
            "this API forwards ports over WebSocket with the subprotocol {PROTOCOL}, as client libraries do, but not \
             over SPDY, as `kubectl port-forward` does; `kubectl get --raw \
             /api/v1/namespaces/{}/pods/{}:PORT/proxy/PATH` reaches an HTTP port, and `kubectl exec` runs a client in \
             a container",
            target.ns(),
            target.name.as_deref().unwrap_or_default()
        )));
    }
    let ports = ports(query)?;
    let (response, switch) = websocket::switch(parts, &[PROTOCOL])?;
    let session = api.sessions.take(&caller.name)?;
    let uid = json::uid(&pod).to_owned();
    tracing::info!(
        user = caller.name,
        namespace = target.ns(),
        pod = target.name.as_deref().unwrap_or_default(),
        ?ports,
        "forwarding ports"
    );
    tokio::spawn(async move {
        match switch.done().await {
            Ok((sender, receiver)) => serve(pods, &uid, &ports, sender, receiver).await,
            Err(error) => tracing::debug!(%error, "a client asked for a stream and went away"),
        }
        drop(session);
    });
    Ok(response)
}

/// `ports=80,443` and `ports=80&ports=443` mean the same.
fn ports(query: &Query) -> ApiResult<Vec<u16>> {
    let invalid = |text: &str| ApiError::bad_request(format!("unable to parse \"{text}\" as a port"));
    let mut ports = Vec::new();
    for text in query.all("ports").flat_map(|list| list.split(',')).filter(|text| !text.is_empty()) {
        let port = text.parse().ok().filter(|port| *port != 0).ok_or_else(|| invalid(text))?;
        ports.push(port);
    }
    match ports.len() {
        0 => Err(ApiError::bad_request("query parameter \"ports\" is required")),
        1..=MAX_PORTS => Ok(ports),
        many => Err(ApiError::bad_request(format!("{many} ports are too many: at most {MAX_PORTS}"))),
    }
}

async fn serve<S>(
    pods: Arc<dyn PodStreams>,
    uid: &str,
    ports: &[u16],
    sender: Sender,
    mut receiver: Receiver<S>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut queues = Vec::new();
    // Dropped at the end, and every connection with it.
    let mut forwarding = JoinSet::new();
    for (port, data) in ports.iter().copied().zip((0_u8..).step_by(2)) {
        let (queue, pieces) = mpsc::channel::<Bytes>(QUEUE);
        queues.push(queue);
        forwarding.spawn(forward(pods.clone(), uid.to_owned(), port, data, sender.clone(), pieces));
    }
    loop {
        tokio::select! {
            message = receiver.next() => {
                let Some((channel, bytes)) = message else { return };
                // Nothing comes on the channels of errors.
                let queue = queues.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0);
                if let Some(queue) = queue && !bytes.is_empty() {
                    // A port that has ended takes nothing any more; one that takes nothing for long holds everything up.
                    if tokio::time::timeout(STALL, queue.send(bytes)).await.is_err() {
                        return;
                    }
                }
            }
            ended = forwarding.join_next() => if ended.is_none() {
                sender.close().await;
                // The client closes in turn; one that does not is left.
                let _ = tokio::time::timeout(DIAL_PATIENCE, async { while receiver.next().await.is_some() {} }).await;
                return;
            },
        }
    }
}

/// One port, until either side ends.
async fn forward(
    pods: Arc<dyn PodStreams>,
    uid: String,
    port: u16,
    data: u8,
    sender: Sender,
    pieces: mpsc::Receiver<Bytes>,
) -> Result<(), Gone> {
    for channel in [data, data + 1] {
        sender.send(channel, &port.to_le_bytes()).await?;
    }
    let connection = match tokio::time::timeout(DIAL_PATIENCE, pods.dial(uid, port)).await {
        Ok(Ok(connection)) => connection,
        failed => {
            let why = failed.map_or_else(
                |_| "the connection timed out".to_owned(),
                |tried| match tried {
                    Err(error) => error.to_string(),
                    Ok(_) => String::new(),
                },
            );
            let message = format!("failed to connect to 127.0.0.1:{port} inside the pod: {why}");
            return sender.send(data + 1, message.as_bytes()).await;
        }
    };
    copy(connection, data, &sender, pieces).await
}

async fn copy(
    connection: TcpStream,
    data: u8,
    sender: &Sender,
    mut pieces: mpsc::Receiver<Bytes>,
) -> Result<(), Gone> {
    let (mut from_pod, mut to_pod) = connection.into_split();
    // Ends with this function: nobody can say in this protocol that it has only finished writing.
    let mut writing = JoinSet::new();
    writing.spawn(async move {
        while let Some(piece) = pieces.recv().await {
            if to_pod.write_all(&piece).await.is_err() {
                break;
            }
        }
    });
    let mut buffer = vec![0; PIECE];
    loop {
        let read = tokio::select! {
            read = from_pod.read(&mut buffer) => read,
            () = sender.closed() => return Err(Gone),
        };
        match read {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => sender.send(data, buffer.get(..count).unwrap_or_default()).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_list_or_repeated() {
        let read = |text: &str| ports(&Query::parse(text)).map_err(|error| error.message);
        assert_eq!(read("ports=80%2C1234&ports=15000"), Ok(vec![80, 1234, 15000]));
        for wrong in ["", "ports=", "ports=x", "ports=0", "ports=65536"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let many: Vec<String> = (1..=65).map(|port| port.to_string()).collect();
        assert!(read(&format!("ports={}", many.join(","))).unwrap_err().contains("too many"));
    }
}
