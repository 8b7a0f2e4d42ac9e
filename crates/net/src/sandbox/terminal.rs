//! A terminal for a process in a container: made inside, by the container's user, so that it has a name there.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

use super::descriptors::send_files;
use super::exec::TERMINAL;
use crate::NetError;

/// Opens a terminal, makes it the controlling one of the calling session and its standard streams, and hands its
/// other side out.
///
/// To be called as the container's user, inside its mount namespace: what stands at `/dev/ptmx` there is opened with
/// no more rights than the container has.
pub(super) fn take(monitor: BorrowedFd<'_>) -> Result<(), NetError> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let outside: OwnedFd = openpt(flags).map_err(NetError::sys("open a terminal (/dev/ptmx)"))?;
    unlockpt(&outside).map_err(NetError::sys("unlock the terminal"))?;
    let inside =
        ioctl_tiocgptpeer(&outside, flags).map_err(NetError::sys("open the terminal's inner side"))?;
    rustix::process::ioctl_tiocsctty(&inside).map_err(NetError::sys("take the terminal"))?;
    rustix::stdio::dup2_stdin(&inside)
        .and_then(|()| rustix::stdio::dup2_stdout(&inside))
        .and_then(|()| rustix::stdio::dup2_stderr(&inside))
        .map_err(NetError::sys("make the terminal the standard streams"))?;
    send_files(monitor, &[TERMINAL], &[outside.as_fd()])
        .map(drop)
        .map_err(NetError::io("hand the terminal out"))
}
