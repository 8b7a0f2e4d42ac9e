//! The stages that become the container's program.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::FdFlags;
use rustix::process::{Gid, Pid, PidfdFlags, Uid};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};

use super::descriptors::receive_files;
use super::spec::{Capabilities, ExecSpec, FileTree, Joined, Process, SandboxSpec, Start};
use super::{privileges, terminal, tree};
use crate::{NetError, mounts};

/// Argument of the stage that builds a new container.
pub(super) const STAGE: &str = "container";
/// Argument of the stage that joins a running one.
pub(super) const JOIN_STAGE: &str = "join";

/// Where programs are looked for when the Pod does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A refusal with the exit code a shell would give.
pub(super) struct Refusal {
    pub(super) code: u8,
    pub(super) message: String,
}

impl From<NetError> for Refusal {
    fn from(error: NetError) -> Self {
        Refusal { code: 125, message: error.to_string() }
    }
}

/// A new container: standard input is a socket to the monitor, on which the specification comes; silence
/// until it closes means that the program runs.
pub(super) fn main() -> ExitCode {
    let (monitor, spec) = match take_stdin().and_then(read_spec) {
        Ok(both) => both,
        Err(error) => {
            eprintln!("maille sandbox: no specification: {error}");
            return ExitCode::from(125);
        }
    };
    finish(monitor, start(&spec))
}

/// One more process in a running container: standard input is a socket to the stage `exec`, on which the specification
/// comes together with the program's streams, unless it gets a terminal.
pub(super) fn join_main() -> ExitCode {
    let received = take_stdin().and_then(|monitor| {
        let mut streams = Vec::new();
        let spec: ExecSpec = serde_json::from_slice(&read_message(&monitor, &mut streams)?)?;
        Ok((monitor, spec, streams))
    });
    let (monitor, spec, streams) = match received {
        Ok(all) => all,
        // Nobody hears: the other end is gone.
        Err(_) => return ExitCode::from(125),
    };
    let result = join(&spec.container, &spec.process, Streams::Given { monitor: &monitor, streams });
    finish(monitor, result)
}

/// Where a program's standard streams come from.
enum Streams<'a> {
    /// Those of the process that starts it, but for an empty input.
    Inherited,
    /// Input, output and errors, or a terminal if there are none.
    Given { monitor: &'a UnixStream, streams: Vec<OwnedFd> },
}

fn start(spec: &SandboxSpec) -> Result<std::convert::Infallible, Refusal> {
    match &spec.start {
        Start::New { hostname, tree, .. } => create(spec, hostname, tree),
        Start::Join(joined) => join(joined, &spec.process, Streams::Inherited),
    }
}

fn create(spec: &SandboxSpec, hostname: &str, tree: &FileTree) -> Result<std::convert::Infallible, Refusal> {
    check_capabilities(&spec.process)?;
    rustix::system::sethostname(hostname.as_bytes()).map_err(NetError::sys("set the host name"))?;
    mounts::unshare(UnshareFlags::NEWNS)?;
    tree::build(tree)?;
    execute(&spec.process, Streams::Inherited)
}

fn join(
    joined: &Joined,
    process: &Process,
    streams: Streams<'_>,
) -> Result<std::convert::Infallible, Refusal> {
    check_capabilities(process)?;
    // By path and not by number: this process is in the container's PID namespace already, where the
    // number means another process, but still sees the host's `/proc`.
    let path = PathBuf::from(format!("/proc/{}/ns/mnt", joined.container.pid));
    let handle = std::fs::File::open(&path).map_err(NetError::io(path.display().to_string()))?;
    if !joined.container.is_alive() {
        return Err(not_running().into());
    }
    rustix::thread::move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(NetError::sys("enter the container's mount namespace"))?;
    execute(process, streams)
}

/// Moves the calling thread into namespaces of a running container.
pub(super) fn enter(joined: &Joined, which: ThreadNameSpaceType) -> Result<(), NetError> {
    let pid = Pid::from_raw(joined.container.pid).ok_or_else(not_running)?;
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|_| not_running())?;
    if !joined.container.is_alive() {
        return Err(not_running());
    }
    rustix::thread::move_into_thread_name_spaces(handle.as_fd(), which)
        .map_err(NetError::sys("enter the container's namespaces"))
}

fn not_running() -> NetError {
    NetError::Invalid("the container is not running any more".to_owned())
}

/// Only the redirection's installer may keep a capability, whoever wrote the specification.
fn check_capabilities(process: &Process) -> Result<(), Refusal> {
    if process.capabilities == Capabilities::None {
        return Ok(());
    }
    let own = std::env::current_exe().map_err(NetError::io("find the own binary"))?;
    let program = process.command.first().map(PathBuf::from);
    let verb = process.command.get(1).map(String::as_str);
    if program.as_ref() == Some(&own) && verb == Some("intercept") {
        return Ok(());
    }
    Err(NetError::Invalid(format!(
        "only `{} intercept` may have CAP_NET_ADMIN, not {:?}",
        own.display(),
        process.command
    ))
    .into())
}

fn execute(process: &Process, streams: Streams<'_>) -> Result<std::convert::Infallible, Refusal> {
    // Whoever has the administrator's terminal as its controlling one can put words into that terminal's input
    // (`TIOCSTI` in ioctl_tty(2)), which root's shell reads next.
    rustix::process::setsid().map_err(NetError::sys("start a session"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    match &streams {
        Streams::Inherited => {
            give(rustix::stdio::stdout(), process)?;
            give(rustix::stdio::stderr(), process)?;
        }
        Streams::Given { streams, .. } => {
            streams.iter().try_for_each(|stream| give(stream.as_fd(), process))?;
        }
    }
    privileges::drop_all(process)?;
    take_signals_as_usual();
    match streams {
        Streams::Inherited => {
            let null = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty())
                .map_err(NetError::sys("/dev/null"))?;
            rustix::stdio::dup2_stdin(null).map_err(NetError::sys("close standard input"))?;
        }
        Streams::Given { monitor, streams } => match streams.as_slice() {
            [input, output, errors] => rustix::stdio::dup2_stdin(input)
                .and_then(|()| rustix::stdio::dup2_stdout(output))
                .and_then(|()| rustix::stdio::dup2_stderr(errors))
                .map_err(NetError::sys("set the standard streams"))?,
            _ => terminal::take(monitor.as_fd())?,
        },
    }
    let directory = process.directory.as_deref().unwrap_or(Path::new("/"));
    std::env::set_current_dir(directory).map_err(|error| Refusal {
        code: 125,
        message: format!("working directory {}: {error}", directory.display()),
    })?;
    keep_streams_only()?;
    let (name, args) = process
        .command
        .split_first()
        .ok_or_else(|| Refusal { code: 125, message: "no command specified".to_owned() })?;
    let program = find(name, &process.env)?;
    let error = Command::new(&program)
        .arg0(name)
        .args(args)
        .env_clear()
        .envs(process.env.iter().map(|(key, value)| (key, value)))
        .exec();
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    Err(Refusal { code, message: format!("exec: {:?}: {error}", program.display()) })
}

/// Makes a pipe the container's own, as container runtimes do: programs that open `/dev/stdout` by name (a stock
/// nginx does) are asked for their right to the pipe, which whoever made it has otherwise. Other files are left alone.
fn give(stream: BorrowedFd<'_>, process: &Process) -> Result<(), NetError> {
    let metadata = rustix::fs::fstat(stream).map_err(NetError::sys("look at a standard stream"))?;
    if FileType::from_raw_mode(metadata.st_mode) != FileType::Fifo {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    rustix::fs::fchown(stream, Some(uid), Some(gid)).map_err(NetError::sys("hand a standard stream over"))
}

/// Whoever starts the mesh in the background of a script hands its ignored signals on (POSIX sh, "Signals and Error
/// Handling"), and a shell cannot even trap what was ignored when it began.
#[expect(unsafe_code, reason = "no safe crate of ours sets a signal's disposition")]
fn take_signals_as_usual() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: no handler is installed, so nothing of ours runs in a signal's context; a number the system does not
        // know leaves things as they are.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Marks all but the standard streams to be closed by the program's start: whoever started the mesh may have left
/// descriptors open, of directories even, and each would be a way out of the container.
#[expect(unsafe_code, reason = "descriptors are known by number only")]
fn keep_streams_only() -> Result<(), NetError> {
    let list = "/proc/self/fd";
    for entry in std::fs::read_dir(list).map_err(NetError::io(list))? {
        let entry = entry.map_err(NetError::io(list))?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let Some(number) = number.filter(|number| *number > 2) else { continue };
        // SAFETY: the descriptor is borrowed for one call that neither closes nor reads it, and this process has one
        // thread, so that it is open: the kernel has just listed it.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC)
            .map_err(NetError::sys(format!("close descriptor {number}")))?;
    }
    Ok(())
}

/// Looks a program up as `execvp` would, in the environment it is going to have.
fn find(name: &str, env: &[(String, String)]) -> Result<PathBuf, Refusal> {
    let hint = "a container sees the host's /usr, /bin, /sbin, /lib, /opt and /etc; mount others with a hostPath volume";
    let missing = |what: &str| Refusal { code: 127, message: format!("exec: {name:?}: {what} ({hint})") };
    if name.is_empty() {
        return Err(missing("empty command"));
    }
    if name.contains('/') {
        let path = PathBuf::from(name);
        return if path.exists() { Ok(path) } else { Err(missing("no such file or directory")) };
    }
    let path = env.iter().rev().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    path.split(':')
        .map(|directory| Path::new(directory).join(name))
        .find(|candidate| {
            candidate.is_file() && rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
        })
        .ok_or_else(|| missing("executable file not found in $PATH"))
}

/// Moves standard input out of the way, closed on exec.
fn take_stdin() -> io::Result<UnixStream> {
    let copy: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    Ok(UnixStream::from(copy))
}

fn read_spec(monitor: UnixStream) -> io::Result<(UnixStream, SandboxSpec)> {
    let text = read_message(&monitor, &mut Vec::new())?;
    Ok((monitor, serde_json::from_slice(&text)?))
}

/// A message behind its length, and the open files that came with it.
fn read_message(mut monitor: &UnixStream, files: &mut Vec<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut length = [0_u8; 4];
    let mut came = 0;
    while came < length.len() {
        match receive_files(monitor, length.get_mut(came..).unwrap_or_default(), files)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => came += more,
        }
    }
    let mut text = vec![0; u32::from_be_bytes(length) as usize];
    monitor.read_exact(&mut text)?;
    Ok(text)
}

fn finish(mut monitor: UnixStream, result: Result<std::convert::Infallible, Refusal>) -> ExitCode {
    let Err(refusal) = result;
    // If the monitor is gone there is nobody to tell, and the exit code has to do.
    let _ = monitor.write_all(refusal.message.as_bytes());
    ExitCode::from(refusal.code)
}
