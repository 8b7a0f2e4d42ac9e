//! Reading a ClientHello before TLS begins.
//!
//! The choice of what to do with an inbound connection depends on whether it is TLS and which
//! protocols the client offers (reference mtls 1.3), and the answer may be "pass the bytes on", so
//! they are read from a prefix that is not consumed. This parser looks only as deep as that
//! needs; that the rest is well-formed is for the TLS library to check.

/// Longest prefix that is worth collecting: [`sniff`] never asks for more.
///
/// A ClientHello with post-quantum key shares has about 2 KiB. 32 KiB leave room for one of
/// `MAX_HELLO` in small records.
pub const MAX_HELLO_PREFIX: usize = 32 * 1024;

/// Longest ClientHello that is read.
const MAX_HELLO: usize = 16 * 1024;

/// Longest record (RFC 8446 section 5.1).
const MAX_RECORD: usize = 16 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniff {
    /// So far they may begin a ClientHello: read on.
    NeedMore,
    /// They cannot begin a ClientHello.
    NotTls,
    /// A complete ClientHello.
    ClientHello {
        /// The server name, as sent.
        sni: Option<String>,
        /// The offered protocols, in the client's order.
        alpn: Vec<Vec<u8>>,
    },
    /// They begin as a ClientHello does, but go on as none can, or it is longer than any sensible one.
    Malformed,
}

/// Says what the first bytes of a connection are; pure, and bounded in time and memory by
/// [`MAX_HELLO_PREFIX`].
///
/// The ClientHello may be spread over several TLS records (RFC 8446 section 5.1) and `prefix` may
/// end anywhere in it; bytes after it are ignored. Adding bytes to a prefix never changes an answer
/// other than `NeedMore`.
pub fn sniff(prefix: &[u8]) -> Sniff {
    match parse(prefix) {
        Ok(sniff) => sniff,
        Err(Stop::More) if prefix.len() >= MAX_HELLO_PREFIX => Sniff::Malformed,
        Err(Stop::More) => Sniff::NeedMore,
        Err(Stop::NotTls) => Sniff::NotTls,
        Err(Stop::Malformed) => Sniff::Malformed,
    }
}

/// Why reading ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    More,
    NotTls,
    Malformed,
}

fn parse(prefix: &[u8]) -> Result<Sniff, Stop> {
    // Decided byte by byte, so that a client that waits for the server is not held up by a
    // few bytes that cannot be TLS.
    let expected: [fn(u8) -> bool; 3] = [|b| b == RECORD_HANDSHAKE, |b| b == 3, |b| b <= 4];
    for (position, fits) in expected.iter().enumerate() {
        match prefix.get(position) {
            None => return Err(Stop::More),
            Some(byte) if !fits(*byte) => return Err(Stop::NotTls),
            Some(_) => {}
        }
    }
    match prefix.get(5) {
        None => return Err(Stop::More),
        Some(&HANDSHAKE_CLIENT_HELLO) => {}
        Some(_) => return Err(Stop::NotTls),
    }
    let mut joined = Vec::new();
    client_hello(message(prefix, &mut joined)?)
}

/// The body of the first handshake message, joined from records if it is spread over several.
fn message<'a>(prefix: &'a [u8], joined: &'a mut Vec<u8>) -> Result<&'a [u8], Stop> {
    let mut rest = prefix;
    loop {
        let [kind, major, _minor, high, low, body @ ..] = rest else {
            return Err(if plausible_header(rest) { Stop::More } else { Stop::Malformed });
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // RFC 8446 section 5.1: handshake records are neither empty nor interleaved with others.
        if *kind != RECORD_HANDSHAKE || *major != 3 || length == 0 || length > MAX_RECORD {
            return Err(Stop::Malformed);
        }
        let available = body.get(..length).unwrap_or(body);
        // The common case, one record with all of it, needs no copy.
        if joined.is_empty()
            && let Some(message) = handshake_body(available)?
        {
            return Ok(message);
        }
        joined.extend_from_slice(available);
        if available.len() < length {
            break;
        }
        rest = body.get(length..).unwrap_or_default();
        if handshake_body(joined)?.is_some() {
            break;
        }
    }
    handshake_body(joined)?.ok_or(Stop::More)
}

fn plausible_header(rest: &[u8]) -> bool {
    rest.first().is_none_or(|kind| *kind == RECORD_HANDSHAKE) && rest.get(1).is_none_or(|major| *major == 3)
}

/// The body of a handshake message if it is complete.
fn handshake_body(bytes: &[u8]) -> Result<Option<&[u8]>, Stop> {
    let [_kind, a, b, c, body @ ..] = bytes else { return Ok(None) };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    if length > MAX_HELLO {
        return Err(Stop::Malformed);
    }
    Ok(body.get(..length))
}

/// RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2.
fn client_hello(body: &[u8]) -> Result<Sniff, Stop> {
    let mut hello = Reader(body);
    let version = hello.u16()?;
    if version >> 8 != 3 {
        return Err(Stop::Malformed);
    }
    hello.take(32)?; // random
    hello.vector8()?; // legacy_session_id
    hello.vector16()?; // cipher_suites
    hello.vector8()?; // legacy_compression_methods
    let (mut sni, mut alpn) = (None, Vec::new());
    // TLS 1.2 allows a ClientHello without extensions.
    if !hello.0.is_empty() {
        let mut extensions = Reader(hello.vector16()?);
        if !hello.0.is_empty() {
            return Err(Stop::Malformed);
        }
        let (mut seen_name, mut seen_alpn) = (false, false);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = extensions.vector16()?;
            // RFC 8446 section 4.2: no extension twice; two answers to one question are an attack.
            match kind {
                EXTENSION_SERVER_NAME if std::mem::replace(&mut seen_name, true) => {
                    return Err(Stop::Malformed);
                }
                EXTENSION_ALPN if std::mem::replace(&mut seen_alpn, true) => return Err(Stop::Malformed),
                EXTENSION_SERVER_NAME => sni = server_name(data)?,
                EXTENSION_ALPN => alpn = protocols(data)?,
                _ => {}
            }
        }
    }
    Ok(Sniff::ClientHello { sni, alpn })
}

/// RFC 6066 section 3.
fn server_name(data: &[u8]) -> Result<Option<String>, Stop> {
    let mut extension = Reader(data);
    let mut names = Reader(extension.vector16()?);
    if !extension.0.is_empty() {
        return Err(Stop::Malformed);
    }
    let mut host = None;
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vector16()?;
        if kind == 0 && host.is_none() {
            let text = std::str::from_utf8(name).map_err(|_| Stop::Malformed)?;
            host = Some(text.to_owned());
        }
    }
    Ok(host)
}

/// RFC 7301 section 3.1.
fn protocols(data: &[u8]) -> Result<Vec<Vec<u8>>, Stop> {
    let mut extension = Reader(data);
    let mut list = Reader(extension.vector16()?);
    if !extension.0.is_empty() {
        return Err(Stop::Malformed);
    }
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.vector8()?;
        if protocol.is_empty() {
            return Err(Stop::Malformed);
        }
        protocols.push(protocol.to_vec());
    }
    Ok(protocols)
}

/// Takes fields off the front of a complete message; one that is cut short is malformed.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(Stop::Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        let (first, tail) = self.0.split_first().ok_or(Stop::Malformed)?;
        self.0 = tail;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from(self.u8()?) << 8 | u16::from(self.u8()?))
    }

    fn vector8(&mut self) -> Result<&'a [u8], Stop> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn vector16(&mut self) -> Result<&'a [u8], Stop> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests;
