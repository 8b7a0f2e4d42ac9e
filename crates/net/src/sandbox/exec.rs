//! One more process in a running container, for whoever is not on its terminal: the stage `exec`.
//!
//! As the monitor of a container does, this process stays: it enters the container's namespaces, starts the stage
//! that becomes the program, and ends it when the other end of its standard input closes. That stage gets its streams
//! as open files, or opens a terminal inside the container and hands out the other side of it.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

use super::container::{self, JOIN_STAGE};
use super::descriptors::{receive_files, send_files};
use super::monitor::{self, Supervisor, Whole};
use super::spec::{ExecSpec, Report};
use crate::NetError;

/// Argument of this stage.
pub(super) const STAGE: &str = "exec";

/// The first byte of a message that hands out a terminal; no message for people begins so.
pub(super) const TERMINAL: u8 = 0;

/// Standard input is a socket: a line with the [`ExecSpec`] comes, with the program's standard streams as open files
/// unless it gets a terminal; [`Report`]s go back, the terminal with the first of them. Orders are taken as by the
/// monitor, and end the program with all of its process group.
pub(super) fn main() -> ExitCode {
    match exec() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("maille sandbox: {error}");
            ExitCode::from(125)
        }
    }
}

fn exec() -> Result<ExitCode, NetError> {
    let mut supervisor = Supervisor::on_stdin()?;
    let mut streams = Vec::new();
    let Some(line) = supervisor.read_line_and_files(&mut streams)? else {
        return Err(NetError::Invalid("the specification did not come".to_owned()));
    };
    let spec = serde_json::from_slice::<ExecSpec>(&line)
        .map_err(|e| NetError::Invalid(format!("unreadable specification: {e}")));
    match spec.and_then(|spec| start(&spec, streams)) {
        Ok(Joining::Running { child, terminal }) => {
            monitor::supervise(supervisor, child, Whole::Group, terminal)
        }
        Ok(Joining::Refused { message, code }) => {
            supervisor.report(&Report::Failed { message, code });
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(125)))
        }
        Err(error) => {
            supervisor.report(&Report::Failed { message: error.to_string(), code: 125 });
            Ok(ExitCode::from(125))
        }
    }
}

enum Joining {
    Running { child: std::process::Child, terminal: Option<OwnedFd> },
    Refused { message: String, code: i32 },
}

fn start(spec: &ExecSpec, streams: Vec<OwnedFd>) -> Result<Joining, NetError> {
    let expected = if spec.terminal { 0 } else { 3 };
    if streams.len() != expected {
        return Err(NetError::Invalid(format!("{} open files came in place of {expected}", streams.len())));
    }
    container::enter(&spec.container, monitor::join_set())?;
    let (ours, theirs) = UnixStream::pair().map_err(NetError::io("make a socket pair"))?;
    let mut child = Command::new("/proc/self/exe")
        .args(["sandbox", JOIN_STAGE])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(NetError::io("start a process in the container"))?;
    let (terminal, answer) =
        tell(&ours, spec, &streams).map_err(NetError::io("speak to the process in the container"))?;
    if answer.is_empty() && terminal.is_some() == spec.terminal {
        return Ok(Joining::Running { child, terminal });
    }
    let status = child.wait().map_err(NetError::io("wait for the process in the container"))?;
    let message = String::from_utf8_lossy(&answer).into_owned();
    Ok(Joining::Refused { message, code: status.code().unwrap_or(125) })
}

/// Hands the specification and the streams over, and takes the answer until the program runs or is refused.
fn tell(
    mut stage: &UnixStream,
    spec: &ExecSpec,
    streams: &[OwnedFd],
) -> io::Result<(Option<OwnedFd>, Vec<u8>)> {
    let text = serde_json::to_vec(spec)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_be_bytes();
    let streams: Vec<_> = streams.iter().map(OwnedFd::as_fd).collect();
    // Four bytes fit into any socket.
    send_files(stage, &length, &streams)?;
    io::Write::write_all(&mut stage, &text)?;
    let (mut first, mut files) = ([0; 1], Vec::new());
    let mut answer = Vec::new();
    if receive_files(stage, &mut first, &mut files)? > 0 {
        if first != [TERMINAL] {
            answer.extend(first);
        }
        stage.read_to_end(&mut answer)?;
    }
    Ok((files.pop(), answer))
}
