//! HTTP/1.1 by hand, so that requests go out byte for byte and answers come back the same way.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use maille_net::netns::NetNs;

/// An answer, read to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The first header of that name (lower case).
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends a request and reads the answer; nothing if the connection ends before one is there.
pub(crate) fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Option<Answer> {
    stream.write_all(request).ok()?;
    let (start, headers, mut body) = head(stream)?;
    let status = start.split(' ').nth(1)?.parse().ok()?;
    fill(stream, &headers, &mut body)?;
    Some(Answer { status, headers, body })
}

type Head = (String, Vec<(String, String)>, Vec<u8>);

/// Start line, headers (names in lower case) and what follows them so far.
fn head(stream: &mut impl Read) -> Option<Head> {
    let mut bytes = Vec::new();
    let mut part = [0; 2048];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
        }
    };
    let rest = bytes.split_off(end + 4);
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = text.split("\r\n");
    let start = lines.next()?.to_owned();
    let pair = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    Some((start, lines.map(pair).collect(), rest))
}

fn fill(stream: &mut impl Read, headers: &[(String, String)], body: &mut Vec<u8>) -> Option<()> {
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.map_or(Some(0), |(_, value)| value.parse().ok())?;
    let mut part = [0; 2048];
    while body.len() < length {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return None,
            Ok(count) => body.extend_from_slice(&part[..count]),
        }
    }
    Some(())
}

/// A request as an upstream sees it.
pub(crate) struct Seen {
    /// The start line.
    pub(crate) start: String,
    /// Names in lower case, in order of arrival.
    pub(crate) headers: Vec<(String, String)>,
}

/// Serves HTTP/1.1 inside the namespace until the test ends: `answer` gives status and body.
pub(crate) fn serve(
    namespace: &NetNs,
    port: u16,
    answer: impl Fn(&Seen) -> (u16, Vec<u8>) + Send + Sync + 'static,
) {
    let bound = namespace.run(move || TcpListener::bind(("127.0.0.1", port)));
    let listener = bound.expect("the namespace is there").expect("the port is free");
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                while let Some((start, headers, mut body)) = head(&mut stream) {
                    if fill(&mut stream, &headers, &mut body).is_none() {
                        return;
                    }
                    let (status, body) = answer(&Seen { start, headers });
                    let head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\n\r\n", body.len());
                    if stream.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                        return;
                    }
                }
            });
        }
    });
}
