//! `pods/x/exec`: a command in a running container, its streams on channels of a WebSocket.
//!
//! Source: kubelet `pkg/cri/streaming/remotecommand`; KEP-4006 for version 5, which can close a channel.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::websocket::{self, Gone, Receiver, Sender};
use crate::api::{Api, Caller};
use crate::logs;
use crate::pods::{ExecCommand, Running, StartError, TerminalSize};
use crate::request::{Query, Target};
use crate::respond::Body;
use crate::status::{ApiError, ApiResult};
use crate::verbs::read;
use crate::{json, streams};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// Names a channel that ends, in version 5.
const CLOSE: u8 = 255;

/// Pieces of input that may wait for the program. Many, because some clients (the `kube` crate) do not read while they
/// cannot write: such a one and a program that does the same would wait for each other.
const QUEUE: usize = 64;
const PIECE: usize = 32 << 10;
/// How long output may pause after the program's end before nothing more is expected of it: a process that it left
/// behind may hold its streams open for ever.
const QUIET: Duration = Duration::from_millis(500);
/// How long a client may take to close in its turn.
const GOODBYE: Duration = Duration::from_secs(10);

/// What the client wants of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wish {
    fn read(query: &Query) -> ApiResult<Self> {
        let tty = query.flag("tty");
        // A terminal has one output.
        let wish = Self {
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr") && !tty,
            tty,
        };
        if !(wish.stdin || wish.stdout || wish.stderr) {
            return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(wish)
    }

    /// Where people are told what went wrong.
    fn complaints(self) -> Option<u8> {
        if self.stderr { Some(STDERR) } else { self.stdout.then_some(STDOUT) }
    }
}

/// Answers the request: 101, and the streams.
pub(super) async fn answer(
    api: &Arc<Api>,
    caller: &Caller,
    target: &Target,
    query: &Query,
    parts: &Parts,
) -> ApiResult<Response<Body>> {
    let pods = streams::runner(api)?;
    let pod = read::object(&api.store, target)?;
    let container = logs::container(target, &pod, query)?;
    if let phase @ ("Succeeded" | "Failed") = json::text(&pod, &["status", "phase"]) {
        return Err(ApiError::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let wish = Wish::read(query)?;
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    let Some(program) = command.first().cloned() else {
        return Err(ApiError::bad_request("you must specify at least one command for the container"));
    };
    let (response, switch) = websocket::switch(parts, &[V5, V4])?;
    let session = api.sessions.take(&caller.name)?;
    tracing::info!(
        user = caller.name,
        namespace = target.ns(),
        pod = target.name.as_deref().unwrap_or_default(),
        container,
        program,
        tty = wish.tty,
        "running a command"
    );
    let pod_uid = json::uid(&pod).to_owned();
    let order = ExecCommand { pod_uid, container, command, stdin: wish.stdin, tty: wish.tty };
    let started = pods.exec(order).await;
    tokio::spawn(async move {
        let closes = switch.protocol == V5;
        match switch.done().await {
            Ok((sender, mut receiver)) => {
                let done = match started {
                    Ok(running) => serve(running, wish, closes, &sender, &mut receiver).await.map(ended),
                    Err(error) => complain(error, wish, &sender).await,
                };
                if let Ok(status) = done {
                    finish(&status, &sender, &mut receiver).await;
                }
            }
            Err(error) => tracing::debug!(%error, "a client asked for a command and went away"),
        }
        drop(session);
    });
    Ok(response)
}

/// Carries the streams until the command has ended and all of its output is sent; answers its exit code.
async fn serve<S>(
    running: Running,
    wish: Wish,
    closes: bool,
    sender: &Sender,
    receiver: &mut Receiver<S>,
) -> Result<i32, Gone>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Running { stdin, stdout, stderr, resize, mut ended } = running;
    let (over, ending) = watch::channel(false);
    // Both end with this function, and with the client.
    let mut outputs = JoinSet::new();
    let mut inputs = JoinSet::new();
    // What is not wanted must be read all the same: the program would wait for ever.
    outputs.spawn(pump(stdout, wish.stdout.then_some(STDOUT), sender.clone(), ending.clone()));
    if let Some(stderr) = stderr {
        outputs.spawn(pump(stderr, wish.stderr.then_some(STDERR), sender.clone(), ending));
    }
    // Tells the client that the streams are there.
    sender.send(wish.complaints().unwrap_or(STATUS), b"").await?;
    let mut input = stdin.map(|stdin| {
        let (queue, pieces) = mpsc::channel(QUEUE);
        inputs.spawn(feed(stdin, pieces));
        queue
    });
    // What has come and does not fit into the queue: nothing more is read meanwhile.
    let mut waiting: Option<Bytes> = None;
    let mut code = None;
    loop {
        if let (Some(code), true) = (code, outputs.is_empty()) {
            return Ok(code);
        }
        tokio::select! {
            exit = &mut ended, if code.is_none() => {
                code = Some(exit);
                (input, waiting) = (None, None);
                over.send_replace(true);
            }
            Some(output) = outputs.join_next() => if matches!(output, Ok(Err(Gone))) {
                return Err(Gone);
            },
            () = sender.closed() => return Err(Gone),
            () = fits(input.as_ref()), if waiting.is_some() => {
                if let (Some(queue), Some(piece)) = (&input, waiting.take()) {
                    // A program that reads no more takes nothing more.
                    let _ = queue.try_send(piece);
                }
            }
            message = take(receiver, waiting.is_none()) => match message.ok_or(Gone)? {
                (STDIN, piece) if !piece.is_empty() && input.is_some() => waiting = Some(piece),
                (RESIZE, size) => match (serde_json::from_slice::<TerminalSize>(&size), &resize) {
                    (Ok(size), Some(resize)) => resize(size),
                    (Err(error), _) => tracing::debug!(%error, "a client sent an unreadable size"),
                    (Ok(_), None) => {}
                },
                (CLOSE, channel) if closes && channel.first() == Some(&STDIN) => input = None,
                _ => {}
            }
        }
    }
}

/// The next message, if it may be taken; else only keeps the connection alive.
async fn take<S>(receiver: &mut Receiver<S>, may: bool) -> Option<(u8, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if may { receiver.next().await } else { match receiver.keep_alive().await {} }
}

/// Waits until another piece of input fits, or none is taken any more.
async fn fits(input: Option<&mpsc::Sender<Bytes>>) {
    if let Some(queue) = input {
        let _ = queue.reserve().await;
    }
}

/// Hands the client's input to the program, and its end.
async fn feed(mut stdin: Box<dyn AsyncWrite + Send + Unpin>, mut pieces: mpsc::Receiver<Bytes>) {
    while let Some(piece) = pieces.recv().await {
        if let Err(error) = stdin.write_all(&piece).await {
            tracing::debug!(%error, "a command reads no more");
            return;
        }
    }
    let _ = stdin.shutdown().await;
}

/// Hands the program's output to the client, until its end or until it is quiet after the program's end.
async fn pump(
    mut output: Box<dyn AsyncRead + Send + Unpin>,
    channel: Option<u8>,
    sender: Sender,
    mut over: watch::Receiver<bool>,
) -> Result<(), Gone> {
    let mut buffer = vec![0; PIECE];
    loop {
        let quiet = async {
            // Whoever would tell is gone only when this is.
            let _ = over.wait_for(|over| *over).await;
            tokio::time::sleep(QUIET).await;
        };
        let read = tokio::select! {
            read = output.read(&mut buffer) => read,
            () = quiet => return Ok(()),
        };
        let count = match read {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => {
                tracing::debug!(%error, "the output of a command cannot be read");
                return Ok(());
            }
        };
        if let Some(channel) = channel {
            sender.send(channel, buffer.get(..count).unwrap_or_default()).await?;
        }
    }
}

/// Tells why a command did not start, and answers the Status for it. The container's fault is told as a shell would:
/// in words for people, and as an exit code.
///
/// Not as an answer of HTTP: for any but 101, kubectl asks again in the protocol that WebSocket replaced, and shows
/// what it hears then.
async fn complain(error: StartError, wish: Wish, sender: &Sender) -> Result<Value, Gone> {
    match error {
        StartError::Command { message, code } => {
            if let Some(channel) = wish.complaints() {
                let end = if wish.tty { "\r\n" } else { "\n" };
                sender.send(channel, format!("{message}{end}").as_bytes()).await?;
            }
            Ok(ended(code))
        }
        error @ StartError::NotRunning(_) => Ok(ApiError::new(404, "NotFound", error.to_string()).to_value()),
        StartError::Failed(why) => {
            Ok(ApiError::internal(format!("error executing command in container: {why}")).to_value())
        }
    }
}

/// Sends how the command ended, and closes.
async fn finish<S>(status: &Value, sender: &Sender, receiver: &mut Receiver<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if sender.send(STATUS, status.to_string().as_bytes()).await.is_ok() {
        sender.close().await;
        let closed = async { while receiver.next().await.is_some() {} };
        let _ = tokio::time::timeout(GOODBYE, closed).await;
    }
}

/// The Status of a command's end. Source: apimachinery `util/remotecommand.NonZeroExitCodeReason`.
fn ended(code: i32) -> Value {
    if code == 0 {
        return json!({ "metadata": {}, "status": "Success" });
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_output_and_a_command_at_least_one_stream() {
        let read = |text: &str| Wish::read(&Query::parse(text));
        let wish = read("stdin=true&stdout=true&stderr=true&tty=true").unwrap();
        assert!(wish.stdout && !wish.stderr && wish.complaints() == Some(STDOUT));
        assert_eq!(read("stderr=1").unwrap().complaints(), Some(STDERR));
        assert_eq!(read("stdin=true").unwrap().complaints(), None);
        for none in ["", "tty=true", "tty=true&stderr=true", "stdout=false"] {
            assert!(read(none).unwrap_err().message.contains("at least 1 of stdin"), "{none}");
        }
    }
}
