//! An HTTP/2 client that plays by no rules: it sends whatever frames it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::lab::dial;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields, none of them compressed or indexed.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // RFC 7541 section 5.1, a prefix of seven bits.
            match text.len() {
                short @ 0..127 => block.push(short as u8),
                long => {
                    block.push(127);
                    let mut rest = long - 127;
                    while rest >= 128 {
                        block.push((rest % 128) as u8 | 128);
                        rest /= 128;
                    }
                    block.push(rest as u8);
                }
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A request's fields.
pub(crate) fn request(method: &str, path: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)])
}

/// One frame that the other side sent.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
}

impl Client {
    /// The preface and these settings have been sent.
    pub(crate) fn connect(at: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        let mut client = Self { stream: dial(at) };
        client.send(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &payload)].concat());
        client
    }

    /// False if the other side does not listen any more.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame; none if the connection has ended.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let [a, b, c, kind, _flags, stream @ ..] = head;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Frame { kind, stream: u32::from_be_bytes(stream), payload })
    }

    /// Reads until a frame is what is looked for; `None` if the connection ends before.
    pub(crate) fn until(&mut self, is_it: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let next = self.next()?;
            if is_it(&next) {
                return Some(next);
            }
        }
    }
}
