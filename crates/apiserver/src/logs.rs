//! `pods/x/log`: what a container wrote, from the file the supervisor keeps of it.
//!
//! Lines of the file are `<RFC 3339 time> stdout|stderr F|P <text>` as container runtimes write them (CRI
//! logging); clients see the text alone unless they ask for times.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::Api;
use crate::json;
use crate::request::{Query, Target};
use crate::respond::{self, Body};
use crate::status::{ApiError, ApiResult};
use crate::verbs::read;

/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(200);
const CHUNK: usize = 64 << 10;
/// A line longer than this is sent in parts.
const MAX_LINE: usize = 256 << 10;

struct Wish {
    path: PathBuf,
    follow: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    tail: Option<u64>,
    limit: Option<u64>,
}

/// Answers with the log as a stream.
pub(crate) async fn answer(api: &Arc<Api>, target: &Target, query: &Query) -> ApiResult<Response<Body>> {
    let pod = read::object(&api.store, target)?;
    let container = container(target, &pod, query)?;
    let count = |name: &str| -> ApiResult<Option<u64>> {
        query
            .number(name)?
            .map(|n| {
                u64::try_from(n)
                    .map_err(|_| ApiError::bad_request(format!("{name}: must be greater than or equal to 0")))
            })
            .transpose()
    };
    let since = match (query.number("sinceSeconds")?, query.text("sinceTime")) {
        (Some(seconds), _) => Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
        (None, Some(text)) => Some(text.parse().map_err(|_| {
            ApiError::bad_request(format!("sinceTime: '{text}' is not a time as in RFC 3339"))
        })?),
        (None, None) => None,
    };
    let previous = query.flag("previous");
    let suffix = if previous { "log.1" } else { "log" };
    let path = api.settings.pod_log_dir.join(json::uid(&pod)).join(format!("{container}.{suffix}"));
    let wish = Wish {
        path,
        follow: query.flag("follow") && !previous,
        timestamps: query.flag("timestamps"),
        since,
        tail: count("tailLines")?,
        limit: count("limitBytes")?,
    };
    if !wish.path.exists() {
        if previous {
            return Err(ApiError::bad_request(format!(
                "previous terminated container \"{container}\" in pod \"{}\" not found",
                json::name(&pod)
            )));
        }
        let waiting = status(&pod, &container)
            .map(|s| json::text(s, &["state", "waiting", "reason"]).to_owned())
            .filter(|r| !r.is_empty());
        if let Some(reason) = waiting
            && !wish.follow
        {
            return Err(ApiError::bad_request(format!(
                "container \"{container}\" in pod \"{}\" is waiting to start: {reason}",
                json::name(&pod)
            )));
        }
    }
    let (sender, receiver) = mpsc::channel(8);
    let (api, target) = (api.clone(), target.clone());
    let restarts = restart_count(&pod, &container);
    tokio::spawn(async move {
        let alive = move || {
            let now = read::object(&api.store, &target).ok();
            now.is_some_and(|p| {
                json::uid(&p) == json::uid(&pod)
                    && restart_count(&p, &container) == restarts
                    && status(&p, &container).is_none_or(|s| json::at(s, &["state", "terminated"]).is_none())
            })
        };
        if let Err(error) = send(wish, sender, alive).await {
            tracing::debug!(%error, "a log stream ended");
        }
    });
    let frames = ReceiverStream::new(receiver).map(|bytes| Ok(Frame::data(bytes)));
    let mut response = respond::text(200, Bytes::new());
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(response)
}

fn all_statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    ["containerStatuses", "initContainerStatuses"].into_iter().flat_map(|k| json::items(pod, &["status", k]))
}

fn status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    all_statuses(pod).find(|s| json::text(s, &["name"]) == container)
}

fn restart_count(pod: &Value, container: &str) -> i64 {
    status(pod, container).and_then(|s| s.get("restartCount")?.as_i64()).unwrap_or(0)
}

/// The container that is asked for, or the only one; of several, the one that the Pod's annotation names.
///
/// Source: `registry/core/pod.validateContainer`; the annotation is kubectl's, which names the container itself.
pub(crate) fn container(target: &Target, pod: &Value, query: &Query) -> ApiResult<String> {
    let names = |list: &str| -> Vec<String> {
        json::items(pod, &["spec", list]).iter().map(|c| json::text(c, &["name"]).to_owned()).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    let annotation = json::text(pod, &["metadata", "annotations", "kubectl.kubernetes.io/default-container"]);
    let default = main.iter().find(|name| *name == annotation).cloned();
    match query.text("container") {
        Some(asked) if main.iter().chain(&init).any(|n| n == asked) => Ok(asked.to_owned()),
        Some(asked) => Err(ApiError::bad_request(format!(
            "container {asked} is not valid for pod {}",
            target.name.as_deref().unwrap_or_default()
        ))),
        None => match (main.as_slice(), default) {
            ([only], _) => Ok(only.clone()),
            (_, Some(named)) => Ok(named),
            _ => Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]{}",
                target.name.as_deref().unwrap_or_default(),
                main.join(" "),
                if init.is_empty() {
                    String::new()
                } else {
                    format!(" or one of the init containers: [{}]", init.join(" "))
                },
            ))),
        },
    }
}

async fn send(wish: Wish, out: mpsc::Sender<Bytes>, alive: impl Fn() -> bool) -> std::io::Result<()> {
    let mut reader = LogReader::new(&wish)?;
    let mut left = wish.limit.unwrap_or(u64::MAX);
    loop {
        // What was written before the container ended must still be sent.
        let ended = !alive();
        loop {
            let (back, piece) = tokio::task::spawn_blocking(move || {
                let piece = reader.next();
                (reader, piece)
            })
            .await
            .map_err(std::io::Error::other)?;
            reader = back;
            let mut piece = piece?;
            if piece.is_empty() && !reader.more {
                break;
            }
            let fits = usize::try_from(left).unwrap_or(usize::MAX);
            piece.truncate(fits);
            left -= piece.len() as u64;
            if out.send(piece.into()).await.is_err() || left == 0 {
                return Ok(());
            }
        }
        if !wish.follow || ended {
            return Ok(());
        }
        tokio::select! {
            _ = tokio::time::sleep(POLL) => {}
            _ = out.closed() => return Ok(()),
        }
    }
}

/// Reads whole lines of a growing file.
struct LogReader {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
    timestamps: bool,
    since: Option<Timestamp>,
    tail: Option<u64>,
    /// Whether the last read found something.
    more: bool,
}

impl LogReader {
    fn new(wish: &Wish) -> std::io::Result<Self> {
        Ok(Self {
            path: wish.path.clone(),
            file: None,
            rest: Vec::new(),
            timestamps: wish.timestamps,
            since: wish.since,
            tail: wish.tail,
            more: false,
        })
    }

    fn next(&mut self) -> std::io::Result<Vec<u8>> {
        self.more = false;
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(mut file) => {
                    if let Some(lines) = self.tail {
                        seek_to_last(&mut file, lines)?;
                    }
                    self.file = Some(file);
                }
                // Not written yet.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        let mut buffer = vec![0; CHUNK];
        let read = file.read(&mut buffer)?;
        self.more = read > 0;
        self.rest.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let mut out = Vec::new();
        let mut start = 0;
        while let Some(at) = self.rest.iter().skip(start).position(|b| *b == b'\n') {
            let end = start + at + 1;
            show(self.rest.get(start..end).unwrap_or_default(), self.timestamps, self.since, &mut out);
            start = end;
        }
        self.rest.drain(..start);
        if self.rest.len() > MAX_LINE {
            show(&std::mem::take(&mut self.rest), self.timestamps, self.since, &mut out);
        }
        Ok(out)
    }
}

/// One line of the file as the client sees it.
fn show(line: &[u8], timestamps: bool, since: Option<Timestamp>, out: &mut Vec<u8>) {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, _stream, tag) = (parts.next(), parts.next(), parts.next());
    let (Some(time), Some(tag), Some(text)) = (time, tag, parts.next()) else {
        out.extend_from_slice(line);
        return;
    };
    if let Some(since) = since {
        let at = std::str::from_utf8(time).ok().and_then(|t| t.parse::<Timestamp>().ok());
        if at.is_some_and(|at| at < since) {
            return;
        }
    }
    if timestamps {
        out.extend_from_slice(time);
        out.push(b' ');
    }
    // A partial line goes on in the next one.
    let text = if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    out.extend_from_slice(text);
}

/// Places the file at the beginning of its last `lines` lines.
fn seek_to_last(file: &mut File, lines: u64) -> std::io::Result<()> {
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(());
    }
    let mut wanted = lines + 1;
    while end > 0 {
        let size = end.min(CHUNK as u64);
        let start = end - size;
        file.seek(SeekFrom::Start(start))?;
        let mut block = Vec::new();
        Read::by_ref(file).take(size).read_to_end(&mut block)?;
        for (at, byte) in block.iter().enumerate().rev() {
            if *byte == b'\n' {
                wanted -= 1;
                if wanted == 0 {
                    file.seek(SeekFrom::Start(start + at as u64 + 1))?;
                    return Ok(());
                }
            }
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str, tail: Option<u64>, timestamps: bool) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.log");
        std::fs::write(&path, text).expect("written");
        let wish = Wish { path, follow: false, timestamps, since: None, tail, limit: None };
        let mut reader = LogReader::new(&wish).expect("a reader");
        let mut out = Vec::new();
        loop {
            let piece = reader.next().expect("read");
            if piece.is_empty() && !reader.more {
                return String::from_utf8(out).expect("text");
            }
            out.extend(piece);
        }
    }

    #[test]
    fn lines_lose_their_prefix_and_tails_are_exact() {
        let text = "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr P tw\n2026-01-01T00:00:02Z stderr F o x\nodd\n";
        assert_eq!(read_all(text, None, false), "one\ntwo x\nodd\n");
        assert_eq!(read_all(text, Some(1), false), "odd\n");
        assert_eq!(read_all(text, Some(2), true), "2026-01-01T00:00:02Z o x\nodd\n");
        assert_eq!(read_all(text, Some(0), false), "");
        assert_eq!(read_all(text, Some(99), false), "one\ntwo x\nodd\n");
    }
}
