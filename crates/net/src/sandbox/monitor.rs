//! The process that stands between the supervisor and a container.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_send_signal};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use super::container::{self, STAGE};
use super::descriptors::{receive_files, send_files};
use super::spec::{Order, Report, SandboxSpec, Start};
use crate::process::ProcessRef;
use crate::{NetError, mounts, netns, process};

/// The longest specification read; a larger one is a mistake, not a Pod.
const MAX_SPEC: usize = 16 << 20;

/// Reads the specification, starts the container, forwards orders, reports.
pub(super) fn main() -> ExitCode {
    match monitor() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("maille sandbox: {error}");
            ExitCode::from(125)
        }
    }
}

fn monitor() -> Result<ExitCode, NetError> {
    process::die_with_parent().map_err(NetError::io("set the parent-death signal"))?;
    let mut supervisor = Supervisor::on_stdin()?;
    let Some(line) = supervisor.read_line()? else {
        return Err(NetError::Invalid("the specification did not come".to_owned()));
    };
    let result = serde_json::from_slice::<SandboxSpec>(&line)
        .map_err(|e| NetError::Invalid(format!("unreadable specification: {e}")))
        .and_then(|spec| start(&spec));
    match result {
        Ok(Started::Running(child)) => supervise(supervisor, child, Whole::Namespace, None),
        Ok(Started::Refused { message, code }) => {
            supervisor.report(&Report::Failed { message, code });
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(125)))
        }
        Err(error) => {
            supervisor.report(&Report::Failed { message: error.to_string(), code: 125 });
            Ok(ExitCode::from(125))
        }
    }
}

enum Started {
    Running(Child),
    Refused { message: String, code: i32 },
}

/// Enters or leaves namespaces and starts the container stage in them; comes back when the program runs.
fn start(spec: &SandboxSpec) -> Result<Started, NetError> {
    match &spec.start {
        Start::New { network, .. } => {
            let handle = std::fs::File::open(network)
                .map_err(|source| NetError::Namespace { path: network.clone(), source })?;
            netns::enter_file(&handle, network)?;
            mounts::unshare(UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
        }
        Start::Join(joined) => container::enter(joined, join_set())?,
    }
    let (mut ours, theirs) = UnixStream::pair().map_err(NetError::io("make a socket pair"))?;
    let mut child = Command::new("/proc/self/exe")
        .args(["sandbox", STAGE])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(NetError::io("start the container stage"))?;
    let text = serde_json::to_vec(spec).map_err(|e| NetError::Invalid(e.to_string()))?;
    let length = u32::try_from(text.len()).map_err(|e| NetError::Invalid(e.to_string()))?;
    let mut answer = Vec::new();
    ours.write_all(&length.to_be_bytes())
        .and_then(|()| ours.write_all(&text))
        .and_then(|()| ours.read_to_end(&mut answer))
        .map_err(NetError::io("speak to the container stage"))?;
    if answer.is_empty() {
        return Ok(Started::Running(child));
    }
    let status = child.wait().map_err(NetError::io("wait for the container stage"))?;
    Ok(Started::Refused {
        message: String::from_utf8_lossy(&answer).into_owned(),
        code: status.code().unwrap_or(125),
    })
}

/// All but the mount namespace, which the child enters last: it needs the host's `/proc` until then.
pub(super) fn join_set() -> ThreadNameSpaceType {
    ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::PROCESS_ID
}

/// What ends with a program that is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    /// Everything in its PID namespace, whose process 1 it is.
    Namespace,
    /// Its process group, which it leads.
    Group,
}

/// Reports that the program runs, its terminal along with it, and then its end; forwards orders meanwhile.
pub(super) fn supervise(
    mut supervisor: Supervisor,
    mut child: Child,
    whole: Whole,
    terminal: Option<OwnedFd>,
) -> Result<ExitCode, NetError> {
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    // The child is not reaped before this function does it, so its number is its own until then.
    let handle =
        Pid::from_raw(pid).ok_or_else(|| NetError::Invalid("no process number".to_owned())).and_then(
            |pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(NetError::sys("pidfd_open")),
        )?;
    if let Ok(process) = ProcessRef::of(pid) {
        supervisor.report_with(&Report::Started { process }, terminal.as_ref());
    }
    // Whoever got it alone decides when it hangs up.
    drop(terminal);
    let mut listening = true;
    loop {
        let interest = if listening { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(&handle, PollFlags::IN),
            PollFd::from_borrowed_fd(supervisor.socket.as_fd(), interest),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(NetError::sys("poll")(errno)),
        }
        let ended = !fds[0].revents().is_empty();
        let spoke = !fds[1].revents().is_empty();
        if ended {
            let status = child.wait().map_err(NetError::io("wait for the container"))?;
            let (code, signal) = code_of(status);
            supervisor.report(&Report::Exited { code, signal });
            return Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(125)));
        }
        if spoke && listening {
            match supervisor.read_line() {
                Ok(Some(line)) => match serde_json::from_slice(&line) {
                    Ok(Order::Terminate) => terminate(pid, &handle),
                    Ok(Order::Kill) | Err(_) => kill(pid, &handle, whole),
                },
                // The supervisor is gone; nobody would restart or stop this container.
                Ok(None) | Err(_) => {
                    kill(pid, &handle, whole);
                    listening = false;
                }
            }
        }
    }
}

fn kill(pid: i32, handle: &OwnedFd, whole: Whole) {
    // The group's leader is not reaped yet, so that the number is the group's.
    if whole == Whole::Group
        && let Some(group) = Pid::from_raw(pid)
    {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    send(handle, Signal::KILL);
}

fn send(handle: &OwnedFd, signal: Signal) {
    // ESRCH: it has just ended, which the next poll reports.
    let _ = pidfd_send_signal(handle, signal);
}

/// SIGTERM to process 1 of a PID namespace reaches it only if it handles the signal (pid_namespaces(7)).
fn terminate(pid: i32, handle: &OwnedFd) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bit = 1_u64 << (Signal::TERM.as_raw() - 1);
    let has = |field: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(field)).map(str::trim);
        mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & bit != 0)
    };
    let default_action = !has("SigCgt:") && !has("SigIgn:") && !has("SigBlk:");
    send(handle, if default_action { Signal::KILL } else { Signal::TERM });
}

/// What a shell would call it: the exit code, or 128 and the signal.
fn code_of(status: ExitStatus) -> (i32, Option<i32>) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (code, None),
        (None, Some(signal)) => (128 + signal, Some(signal)),
        (None, None) => (255, None),
    }
}

/// Whoever started this process, behind the socket that is its standard input.
pub(super) struct Supervisor {
    socket: UnixStream,
    pending: Vec<u8>,
}

impl Supervisor {
    /// Keeps the socket from being inherited.
    pub(super) fn on_stdin() -> Result<Self, NetError> {
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
            .map_err(NetError::sys("standard input"))?;
        Ok(Self { socket: UnixStream::from(socket), pending: Vec::new() })
    }

    /// The next line; `None` at the end.
    fn read_line(&mut self) -> Result<Option<Vec<u8>>, NetError> {
        // Nobody sends files with an order; those that came would be closed here.
        self.read_line_and_files(&mut Vec::new())
    }

    /// The next line, and the open files that came with it; `None` at the end.
    pub(super) fn read_line_and_files(
        &mut self,
        files: &mut Vec<OwnedFd>,
    ) -> Result<Option<Vec<u8>>, NetError> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(Some(line));
            }
            let mut buffer = [0; 8192];
            match receive_files(&self.socket, &mut buffer, files) {
                Ok(0) => return Ok(None),
                Ok(n) => self.pending.extend(buffer.iter().take(n)),
                Err(e) => return Err(NetError::io("read from the supervisor")(e)),
            }
            if self.pending.len() > MAX_SPEC {
                return Err(NetError::Invalid("the specification is too long".to_owned()));
            }
        }
    }

    pub(super) fn report(&mut self, report: &Report) {
        self.report_with(report, None);
    }

    /// A report with an open file.
    fn report_with(&mut self, report: &Report, file: Option<&OwnedFd>) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            let files: Vec<_> = file.into_iter().map(OwnedFd::as_fd).collect();
            // A supervisor that is gone needs no report.
            if let Ok(sent) = send_files(&self.socket, &line, &files) {
                let _ = self.socket.write_all(line.get(sent..).unwrap_or_default());
            }
        }
    }
}
