//! The byte streams that connections are made of.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use maille_tls::Binding;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::relay::{Pieces, Side};
use crate::sniff::Prefixed;
use crate::tunnel::ByteStream;

/// One end of a connection, with or without TLS.
pub(crate) enum Stream {
    /// As the peer sent it.
    Plain(Prefixed<TcpStream>),
    /// TLS that this proxy accepted.
    Accepted(Box<server::TlsStream<Prefixed<TcpStream>>>),
    /// TLS that this proxy opened.
    Connected(Box<Prefixed<client::TlsStream<TcpStream>>>),
    /// One of the streams of a connection between two proxies.
    Carried(Box<ByteStream>),
}

impl Stream {
    /// The own end.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        let socket = match self {
            Self::Plain(io) => io.get_ref(),
            Self::Accepted(tls) => tls.get_ref().0.get_ref(),
            Self::Connected(io) => io.get_ref().get_ref().0,
            Self::Carried(stream) => return stream.local_addr(),
        };
        socket.local_addr().ok()
    }

    /// Whether TLS was opened for many streams.
    pub(crate) fn is_of_many(&self) -> bool {
        let chosen = match self {
            Self::Plain(_) | Self::Carried(_) => None,
            Self::Accepted(tls) => tls.get_ref().1.alpn_protocol(),
            Self::Connected(io) => io.get_ref().get_ref().1.alpn_protocol(),
        };
        chosen == Some(maille_tls::alpn::MAILLE_1)
    }

    /// What ties a renewed certificate to this connection.
    pub(crate) fn binding(&self) -> Option<Binding> {
        match self {
            Self::Plain(_) | Self::Carried(_) => None,
            Self::Accepted(tls) => Binding::of_server(tls.get_ref().1),
            Self::Connected(io) => Binding::of_client(io.get_ref().get_ref().1),
        }
    }

    /// Waits until the server at the other end has sent something, which is still to be read then; false if it closed.
    /// Under TLS, the server's own words count.
    pub(crate) async fn is_spoken_to(&mut self) -> bool {
        match self {
            Self::Plain(io) => io.get_ref().peek(&mut [0]).await.is_ok_and(|count| count > 0),
            Self::Connected(io) => io.is_spoken_to().await,
            Self::Carried(stream) => stream.is_spoken_to().await,
            Self::Accepted(_) => false,
        }
    }
}

/// Calls the same method on whichever stream it is.
macro_rules! each {
    ($this:expr, $io:ident => $call:expr) => {
        match $this.get_mut() {
            Stream::Plain($io) => $call,
            Stream::Accepted($io) => $call,
            Stream::Connected($io) => $call,
            Stream::Carried($io) => $call,
        }
    };
}

impl Side for Stream {
    fn has_buffers(&self) -> bool {
        matches!(self, Self::Carried(_))
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<io::Result<usize>> {
        match self {
            Self::Carried(stream) => stream.poll_take(cx, pieces),
            Self::Plain(_) | Self::Accepted(_) | Self::Connected(_) => {
                Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
            }
        }
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<io::Result<usize>> {
        match self {
            Self::Carried(stream) => stream.poll_give(cx, pieces),
            Self::Plain(_) | Self::Accepted(_) | Self::Connected(_) => pieces.poll_write(cx, self),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, out))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Accepted(io) => io.is_write_vectored(),
            Self::Connected(io) => io.is_write_vectored(),
            Self::Carried(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
