//! Looks at a connection's first bytes without losing one of them.
//!
//! The TLS inspector asks whether they are a ClientHello, the HTTP inspector whether they are an HTTP/1.1 request line
//! or the HTTP/2 preface (reference mtls 1.3, "Detection"). Both are pure functions of a prefix; [`Prefixed`] hands the
//! prefix back to whoever reads the connection next.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use maille_tls::Sniff;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::chain::Inspectors;
use crate::relay::Side;

/// Longest prefix kept while detecting; what is undecided then is opaque. Two full TLS records hold any ClientHello
/// that rustls would take, and Envoy's HTTP inspector gives up at the same size.
const MAX_PREFIX: usize = 64 * 1024;

/// The HTTP/2 connection preface (RFC 9113 section 3.4).
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Detected {
    /// A ClientHello.
    Tls { alpn: Vec<Vec<u8>>, sni: Option<String> },
    /// An HTTP/1.1 request line or the HTTP/2 preface.
    Http,
    /// Anything else, or nothing was asked.
    Raw,
    /// The peer closed before sending anything.
    Closed,
}

/// Reads into `prefix` until the inspectors agree. After `limit` the connection counts as opaque, and goes on
/// ("continue on timeout", reference mtls 1.3); without one the wait is endless.
pub(crate) async fn detect<R>(
    io: &mut R,
    prefix: &mut BytesMut,
    wanted: Inspectors,
    limit: Option<Duration>,
) -> io::Result<Detected>
where
    R: AsyncRead + Unpin,
{
    let inspection = inspect(io, prefix, wanted);
    match limit {
        None => inspection.await,
        Some(limit) => tokio::time::timeout(limit, inspection).await.unwrap_or(Ok(Detected::Raw)),
    }
}

async fn inspect<R>(io: &mut R, prefix: &mut BytesMut, wanted: Inspectors) -> io::Result<Detected>
where
    R: AsyncRead + Unpin,
{
    if !wanted.tls && !wanted.http {
        return Ok(Detected::Raw);
    }
    let mut hello = None;
    let mut is_tls = if wanted.tls { Finding::More } else { Finding::No };
    let mut is_http = if wanted.http { Finding::More } else { Finding::No };
    loop {
        if is_tls == Finding::More && !prefix.is_empty() {
            (is_tls, hello) = match maille_tls::sniff(prefix) {
                Sniff::NeedMore => (Finding::More, None),
                Sniff::ClientHello { sni, alpn } => (Finding::Yes, Some((alpn, sni))),
                _ => (Finding::No, None),
            };
        }
        if is_http == Finding::More && !prefix.is_empty() {
            is_http = inspect_http(prefix);
        }
        match (is_tls, is_http) {
            (Finding::Yes, _) => {
                let (alpn, sni) = hello.unwrap_or_default();
                return Ok(Detected::Tls { alpn, sni });
            }
            (Finding::No, Finding::Yes) => return Ok(Detected::Http),
            (Finding::No, Finding::No) => return Ok(Detected::Raw),
            _ if prefix.len() >= MAX_PREFIX => return Ok(Detected::Raw),
            _ => {}
        }
        prefix.reserve(2048);
        if io.read_buf(prefix).await? == 0 {
            return Ok(if prefix.is_empty() { Detected::Closed } else { Detected::Raw });
        }
    }
}

/// Reads on until the `Host` of an HTTP/1.1 request is known, and says what it is; `None` if the head ends without one.
pub(crate) async fn host<R>(io: &mut R, prefix: &mut BytesMut) -> io::Result<Option<String>>
where
    R: AsyncRead + Unpin,
{
    loop {
        let (is_complete, host) = inspect_host(prefix);
        if is_complete || host.is_some() || prefix.len() >= MAX_PREFIX {
            return Ok(host);
        }
        prefix.reserve(2048);
        if io.read_buf(prefix).await? == 0 {
            return Ok(None);
        }
    }
}

/// Whether a prefix holds a whole request head, and the value of the first complete `Host` line in it.
fn inspect_host(prefix: &[u8]) -> (bool, Option<String>) {
    let mut is_first = true;
    let mut rest = prefix;
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let line = rest.get(..end).unwrap_or_default().trim_ascii();
        rest = rest.get(end + 1..).unwrap_or_default();
        if line.is_empty() {
            // Empty lines before the request line are passed over.
            if is_first {
                continue;
            }
            return (true, None);
        }
        if !is_first
            && let Some(colon) = line.iter().position(|b| *b == b':')
            && line.get(..colon).is_some_and(|name| name.eq_ignore_ascii_case(b"host"))
        {
            let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
            return (false, std::str::from_utf8(value).ok().map(str::to_owned));
        }
        is_first = false;
    }
    (false, None)
}

/// What an inspector thinks so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    More,
    Yes,
    No,
}

/// The methods that Envoy's HTTP inspector knows. A prefix that none of them continues is decided at
/// once, so that an opaque protocol does not wait for a line end that never comes.
const METHODS: [&str; 34] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "COPY",
    "LOCK",
    "MKCOL",
    "MOVE",
    "PROPFIND",
    "PROPPATCH",
    "SEARCH",
    "UNLOCK",
    "BIND",
    "REBIND",
    "UNBIND",
    "ACL",
    "REPORT",
    "MKACTIVITY",
    "CHECKOUT",
    "MERGE",
    "M-SEARCH",
    "NOTIFY",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "PURGE",
    "MKCALENDAR",
    "LINK",
    "UNLINK",
    "SOURCE",
];

/// Whether Envoy's HTTP/1.1 knows a method; methods have case.
pub(crate) fn is_known_method(method: &str) -> bool {
    METHODS.contains(&method)
}

/// Whether a prefix begins an HTTP/1.1 request or an HTTP/2 connection. HTTP/1.0 is not in the match
/// list (reference mtls 1.3): it is forwarded as opaque bytes, which works.
pub(crate) fn inspect_http(prefix: &[u8]) -> Finding {
    if H2_PREFACE.starts_with(prefix) || prefix.starts_with(H2_PREFACE) {
        return if prefix.len() < H2_PREFACE.len() { Finding::More } else { Finding::Yes };
    }
    // Servers ignore empty lines before a request (RFC 9112 section 2.2).
    let line = match prefix.iter().position(|b| !matches!(b, b'\r' | b'\n')) {
        Some(start) => prefix.get(start..).unwrap_or_default(),
        None => return Finding::More,
    };
    let Some(space) = line.iter().position(|b| *b == b' ') else {
        let may_be = METHODS.iter().any(|method| method.as_bytes().starts_with(line));
        return if may_be { Finding::More } else { Finding::No };
    };
    let (method, rest) = line.split_at(space);
    if !METHODS.iter().any(|known| known.as_bytes() == method) {
        return Finding::No;
    }
    let Some(end) = rest.iter().position(|b| *b == b'\n') else {
        let is_text = rest.iter().all(|b| *b >= 0x20 && *b != 0x7f || *b == b'\r');
        return if is_text { Finding::More } else { Finding::No };
    };
    let rest = rest.get(..end).unwrap_or_default();
    let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
    if rest.ends_with(b" HTTP/1.1") && rest.len() > b"  HTTP/1.1".len() { Finding::Yes } else { Finding::No }
}

/// Whether the bytes after TLS are HTTP/2: decided as soon as they differ from the preface.
pub(crate) async fn is_http2<R: AsyncRead + Unpin>(io: &mut R, prefix: &mut BytesMut) -> io::Result<bool> {
    loop {
        if prefix.len() >= H2_PREFACE.len() || !H2_PREFACE.starts_with(prefix) {
            return Ok(prefix.starts_with(H2_PREFACE));
        }
        prefix.reserve(8192);
        if io.read_buf(prefix).await? == 0 {
            return Ok(false);
        }
    }
}

/// A connection whose first bytes were read already; they are read again first.
#[derive(Debug)]
pub(crate) struct Prefixed<S> {
    prefix: BytesMut,
    io: S,
}

impl<S> Prefixed<S> {
    pub(crate) fn new(prefix: BytesMut, io: S) -> Self {
        Self { prefix, io }
    }

    /// What is read once the prefix is.
    pub(crate) fn get_ref(&self) -> &S {
        &self.io
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Side for Prefixed<S> {}

impl<S: AsyncRead + Unpin> Prefixed<S> {
    /// Waits until there is something to read, without taking it away; false if the peer closed. Loses nothing when given
    /// up.
    pub(crate) async fn is_spoken_to(&mut self) -> bool {
        if self.prefix.is_empty() {
            self.prefix.reserve(2048);
            return self.io.read_buf(&mut self.prefix).await.is_ok_and(|count| count > 0);
        }
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let count = self.prefix.len().min(out.remaining());
            out.put_slice(&self.prefix.split_to(count));
            if self.prefix.is_empty() {
                self.prefix = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
