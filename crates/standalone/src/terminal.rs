//! The outer side of a terminal whose inner side a command has.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a terminal takes for the end of input at the beginning of a line (VEOF in termios(3)).
const END_OF_INPUT: u8 = 0x04;
/// Device number of a terminal's outer side, whatever it is called (`Documentation/admin-guide/devices.txt` of Linux).
const PTMX: (u32, u32) = (5, 2);

/// One terminal; clones are the same.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Takes what a container handed out for its terminal's outer side, if it is one: a file of another kind could
    /// keep this process waiting, or take effect by being written to.
    #[expect(
        deprecated,
        reason = "only unsound for what does not own its descriptor; the sound one is unsafe to call"
    )]
    pub(crate) fn new(file: OwnedFd) -> io::Result<Self> {
        let device = rustix::fs::fstat(&file)?.st_rdev;
        if (rustix::fs::major(device), rustix::fs::minor(device)) != PTMX {
            return Err(io::Error::other("what the container gave is no terminal"));
        }
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
        Ok(Self(Arc::new(AsyncFd::new(file)?)))
    }

    /// Tells programs how large it is; those in its foreground get SIGWINCH.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        if let Err(error) = rustix::termios::tcsetwinsize(self.0.get_ref(), size) {
            tracing::debug!(%error, "a terminal does not take its size");
        }
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|file| Ok(rustix::io::read(file.get_ref(), &mut *unfilled)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has the inner side any more.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(done) = guard.try_io(|file| Ok(rustix::io::write(file.get_ref(), bytes)?)) {
                return Poll::Ready(done);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal cannot be closed halfway: its programs see the key that ends input.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write(context, &[END_OF_INPUT]).map_ok(drop)
    }
}
