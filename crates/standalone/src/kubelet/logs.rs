//! Container output, written as container runtimes write it.
//!
//! One file per container, `<timestamp> stdout|stderr F|P <line>`: `F` ends a line, `P` is part of a longer one.
//! The output of the previous instance is kept as `<container>.log.1`. A file that grows beyond its bound
//! is set aside as `<container>.log.old`, replacing an older one.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::task::JoinSet;

/// Kubernetes' `containerLogMaxSize`.
const MAX_FILE: u64 = 10 << 20;
/// Where runtimes cut a line.
const MAX_LINE: usize = 16 << 10;

struct Log {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    fn open(path: PathBuf) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size })
    }

    fn write(&mut self, stream: &str, tag: char, line: &[u8]) -> std::io::Result<()> {
        if self.size > MAX_FILE {
            let mut old = self.path.clone().into_os_string();
            old.push(".old");
            std::fs::rename(&self.path, old)?;
            *self = Self::open(std::mem::take(&mut self.path))?;
        }
        let mut record = format!("{} {stream} {tag} ", timestamp()).into_bytes();
        record.extend_from_slice(line);
        record.push(b'\n');
        self.size += record.len() as u64;
        self.file.write_all(&record)
    }
}

/// RFC 3339 with nanoseconds, as CRI demands.
fn timestamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

/// Sets the output of the last instance aside.
pub(crate) fn rotate(path: &Path) {
    let mut previous = path.as_os_str().to_owned();
    previous.push(".1");
    // Missing on the first start.
    let _ = std::fs::rename(path, previous);
}

/// Writes both streams to `path` until they end.
pub(crate) fn copy(path: &Path, stdout: ChildStdout, stderr: ChildStderr) -> std::io::Result<JoinSet<()>> {
    let log = Arc::new(Mutex::new(Log::open(path.to_owned())?));
    let mut tasks = JoinSet::new();
    tasks.spawn(copy_stream(log.clone(), "stdout", stdout));
    tasks.spawn(copy_stream(log, "stderr", stderr));
    Ok(tasks)
}

async fn copy_stream(log: Arc<Mutex<Log>>, name: &'static str, mut stream: impl AsyncRead + Unpin) {
    let mut pending: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 8 << 10];
    loop {
        let read = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        pending.extend(buffer.iter().take(read));
        let mut written = 0;
        let mut log = log.lock();
        while let Some(rest) = pending.get(written..)
            && !rest.is_empty()
        {
            let window = rest.get(..MAX_LINE).unwrap_or(rest);
            let result = match window.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    written += end + 1;
                    log.write(name, 'F', window.get(..end).unwrap_or_default())
                }
                None if window.len() == MAX_LINE => {
                    written += MAX_LINE;
                    log.write(name, 'P', window)
                }
                None => break,
            };
            if let Err(error) = result {
                // The disk is full, perhaps; the program must not block on its output for that.
                tracing::debug!(%error, "container output lost");
            }
        }
        drop(log);
        pending.drain(..written);
    }
    if !pending.is_empty() {
        let _ = log.lock().write(name, 'F', &pending);
    }
}
