//! An application that reads requests by the letter of RFC 9112, and keeps what it read.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// One request as the application understands it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Read1 {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Read1 {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for Read1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.field("host").unwrap_or("-");
        write!(f, "[{} host={host} body={:?}", self.line, String::from_utf8_lossy(&self.body))?;
        if !self.trailers.is_empty() {
            write!(f, " trailers={:?}", self.trailers)?;
        }
        f.write_str("]")
    }
}

/// What was read so far, and what could not be.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<Result<Read1, String>>>>);

impl Heard {
    pub(crate) fn take(&self) -> Vec<Result<Read1, String>> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }

    fn push(&self, request: Result<Read1, String>) {
        self.0.lock().expect("no panic").push(request);
    }
}

/// Answers every request it can read with `answer`, on connections that stay open.
pub(crate) fn application(answer: &'static str) -> (SocketAddr, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let heard = Heard::default();
    let all = heard.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let heard = all.clone();
            thread::spawn(move || serve(stream, &heard, answer));
        }
    });
    (address, heard)
}

fn serve(stream: TcpStream, heard: &Heard, answer: &str) {
    let mut write = stream.try_clone().expect("a socket");
    let mut reader = Reader { stream, buffer: Vec::new() };
    loop {
        match reader.request() {
            Ok(Some(request)) => {
                heard.push(Ok(request));
                if write.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(why) => return heard.push(Err(why)),
        }
    }
}

struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Reader {
    /// `Ok(None)` between requests, and when a request's sender goes away in its middle: that is nobody's request.
    fn request(&mut self) -> Result<Option<Read1>, String> {
        let Some(line) = self.line()? else { return Ok(None) };
        let parts: Vec<&str> = line.split(' ').collect();
        let is_method = |text: &str| !text.is_empty() && text.bytes().all(is_token);
        match parts[..] {
            [method, target, "HTTP/1.1"] if is_method(method) && !target.is_empty() => {}
            _ => return Err(format!("request line {line:?}")),
        }
        let Some(fields) = self.fields()? else { return Ok(None) };
        let all = |name: &str| {
            fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>()
        };
        if all("host").len() != 1 {
            return Err(format!("hosts {:?}", all("host")));
        }
        let (mut body, mut trailers) = (Vec::new(), Vec::new());
        match (&all("transfer-encoding")[..], &all("content-length")[..]) {
            ([], []) => {}
            (["chunked"], []) => loop {
                let Some(size) = self.line()? else { return Ok(None) };
                let is_hex =
                    !size.is_empty() && size.len() <= 8 && size.bytes().all(|b| b.is_ascii_hexdigit());
                let size = usize::from_str_radix(&size, 16).ok().filter(|_| is_hex);
                let size = size.ok_or("a chunk's size")?;
                if size == 0 {
                    let Some(fields) = self.fields()? else { return Ok(None) };
                    trailers = fields;
                    break;
                }
                let Some(bytes) = self.bytes(size) else { return Ok(None) };
                body.extend_from_slice(&bytes);
                if self.line()? != Some(String::new()) {
                    return Err("the end of a chunk".to_owned());
                }
            },
            ([], [length]) if length.bytes().all(|b| b.is_ascii_digit()) => {
                let length = length.parse().map_err(|_| "content-length".to_owned())?;
                let Some(bytes) = self.bytes(length) else { return Ok(None) };
                body = bytes;
            }
            (codings, lengths) => return Err(format!("framing {codings:?} {lengths:?}")),
        }
        Ok(Some(Read1 { line, fields, body, trailers }))
    }

    fn fields(&mut self) -> Result<Option<Vec<(String, String)>>, String> {
        let mut fields = Vec::new();
        loop {
            let Some(line) = self.line()? else { return Ok(None) };
            if line.is_empty() {
                return Ok(Some(fields));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| format!("field {line:?}"))?;
            if name.is_empty() || !name.bytes().all(is_token) {
                return Err(format!("field name {name:?}"));
            }
            fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    /// Up to CR LF; neither may stand alone, and NUL not at all.
    fn line(&mut self) -> Result<Option<String>, String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                if line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
                    return Err(format!("line {:?}", String::from_utf8_lossy(&line)));
                }
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            if !self.more() {
                return Ok(None);
            }
        }
    }

    fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.more() {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    fn more(&mut self) -> bool {
        let mut chunk = [0; 8192];
        match self.stream.read(&mut chunk) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
