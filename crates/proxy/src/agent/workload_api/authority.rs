//! What gRPC's C core says about the name of a Unix socket.
//!
//! Its clients (Python, C++, Ruby, PHP) send the percent-encoded path of the socket as `:authority`, which is no authority
//! by RFC 3986, and which the HTTP/2 library of this server therefore refuses (a protocol error, before any service is
//! asked). Nothing here looks at the authority of a request. So where a header block gives it as a literal, another is put
//! in its place on the way in. The substitute is the shortest there is: whatever the compression remembers of it is then no
//! larger than the caller believes, and nothing that the caller still refers to is forgotten for it (RFC 7541 section 4.4).

use bytes::{Buf as _, BytesMut};

/// The client's first bytes (RFC 9113 section 3.4).
const PREFACE: usize = 24;
/// A frame's head (section 4.1).
const HEAD: usize = 9;
/// Longest frame that anybody may send without leave (section 4.2), which is never given here.
const MAX_FRAME: usize = 16 << 10;
/// Type of frames with a header block (section 6.2), and their flags.
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// As a literal, which is how the C core has it.
const NAME: &[u8] = b"\x0a:authority";
/// A literal of one octet.
const SUBSTITUTE: [u8; 2] = [1, b'w'];

/// Takes what a client sends, and gives what the server is to read.
pub(super) struct Authority {
    /// A frame's head, or a whole frame with headers, as far as it has come.
    held: BytesMut,
    /// How much of what comes is none of our business.
    passing: usize,
    ready: BytesMut,
}

impl Authority {
    pub(super) fn new() -> Self {
        Self { held: BytesMut::new(), passing: PREFACE, ready: BytesMut::new() }
    }

    /// What may be read now, at most `limit` bytes.
    pub(super) fn take(&mut self, limit: usize) -> BytesMut {
        self.ready.split_to(limit.min(self.ready.len()))
    }

    /// Takes bytes in. What is held back is bounded by a frame.
    pub(super) fn feed(&mut self, mut input: &[u8]) {
        while !input.is_empty() {
            if self.passing > 0 {
                let (now, later) = input.split_at(self.passing.min(input.len()));
                self.ready.extend_from_slice(now);
                self.passing -= now.len();
                input = later;
                continue;
            }
            let missing = self.wanted() - self.held.len();
            let (now, later) = input.split_at(missing.min(input.len()));
            self.held.extend_from_slice(now);
            input = later;
            if self.held.len() < HEAD || self.held.len() < self.wanted() {
                continue;
            }
            let frame = self.held.split();
            match head(&frame) {
                // A frame of other types, or one that cannot be looked into at once.
                Some((length, _, _)) if frame.len() == HEAD && length > 0 => {
                    self.passing = length;
                    self.ready.extend_from_slice(&frame);
                }
                _ => match rewritten(&frame) {
                    Some(other) => self.ready.extend_from_slice(&other),
                    None => self.ready.extend_from_slice(&frame),
                },
            }
        }
    }

    /// How many bytes make up what is held.
    fn wanted(&self) -> usize {
        match head(&self.held) {
            Some((length, HEADERS, flags)) if flags & END_HEADERS != 0 && length <= MAX_FRAME => {
                HEAD + length
            }
            _ => HEAD,
        }
    }
}

/// Length, type and flags of a frame.
fn head(frame: &[u8]) -> Option<(usize, u8, u8)> {
    let [a, b, c, kind, flags, ..] = *frame.get(..HEAD)? else { return None };
    Some((usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c), kind, flags))
}

/// A frame with a whole header block, with another authority and without padding; `None`: it stays as it is.
fn rewritten(frame: &[u8]) -> Option<Vec<u8>> {
    let (_, _, flags) = head(frame)?;
    let mut payload = frame.get(HEAD..)?;
    if flags & PADDED != 0 {
        let padding = usize::from(*payload.first()?);
        payload = payload.get(1..payload.len().checked_sub(padding)?)?;
    }
    let (priority, block) = payload.split_at_checked(if flags & PRIORITY != 0 { 5 } else { 0 })?;
    let block = with_substitute(block)?;
    let length = u32::try_from(priority.len() + block.len()).ok()?;
    let mut other = Vec::with_capacity(HEAD + priority.len() + block.len());
    other.extend_from_slice(length.to_be_bytes().get(1..)?);
    other.extend_from_slice(&[HEADERS, flags & !PADDED]);
    other.extend_from_slice(frame.get(5..HEAD)?);
    other.extend_from_slice(priority);
    other.extend_from_slice(&block);
    Some(other)
}

/// A header block (RFC 7541 section 6) whose literal of `:authority` is another; `None` if it has none.
fn with_substitute(block: &[u8]) -> Option<Vec<u8>> {
    let mut other = Vec::with_capacity(block.len());
    let mut rest = block;
    let mut is_changed = false;
    while let Some(first) = rest.first() {
        let entry = rest;
        let (index, after) = match first {
            // Indexed, and a change of the table's size.
            0x80.. => (None, integer(rest, 7)?.1),
            0x20..0x40 => (None, integer(rest, 5)?.1),
            // Literals, which the table remembers or not.
            0x40.. => integer(rest, 6).map(|(index, after)| (Some(index), after))?,
            _ => integer(rest, 4).map(|(index, after)| (Some(index), after))?,
        };
        let Some(index) = index else {
            other.extend_from_slice(entry.get(..entry.len() - after.len())?);
            rest = after;
            continue;
        };
        let at_value = if index == 0 { string(after)? } else { after };
        rest = string(at_value)?;
        let is_authority = index == AUTHORITY || (index == 0 && after.starts_with(NAME));
        // An empty one is shorter.
        if is_authority && at_value.first() != Some(&0) {
            other.extend_from_slice(entry.get(..entry.len() - at_value.len())?);
            other.extend_from_slice(&SUBSTITUTE);
            is_changed = true;
        } else {
            other.extend_from_slice(entry.get(..entry.len() - rest.len())?);
        }
    }
    is_changed.then_some(other)
}

/// An integer with a prefix of so many bits (section 5.1), and what follows it.
fn integer(mut from: &[u8], bits: u32) -> Option<(usize, &[u8])> {
    let most = (1_usize << bits) - 1;
    let prefix = usize::from(*from.first()?) & most;
    from.advance(1);
    if prefix < most {
        return Some((prefix, from));
    }
    let mut value = most;
    // Nothing in a frame is longer than three octets can say.
    for shift in [0, 7, 14] {
        let octet = *from.first()?;
        from.advance(1);
        value += (usize::from(octet) & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Some((value, from));
        }
    }
    None
}

/// What follows a string (section 5.2).
fn string(from: &[u8]) -> Option<&[u8]> {
    let (length, after) = integer(from, 7)?;
    after.get(length..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn through(input: &[u8], piece: usize) -> Vec<u8> {
        let mut authority = Authority::new();
        let mut out = Vec::new();
        for piece in input.chunks(piece) {
            authority.feed(piece);
            out.extend_from_slice(&authority.take(usize::MAX));
        }
        out
    }

    /// POST, `:authority` as a literal that is remembered, a header of a literal name.
    fn block(authority: &[u8]) -> Vec<u8> {
        let length = u8::try_from(authority.len()).expect("short");
        [&[0x83, 0x41, length][..], authority, &[0x00, 1, b'a', 2, b'b', b'c', 0xbe]].concat()
    }

    #[test]
    fn the_authority_of_a_socket_is_another_and_all_else_is_as_it_came() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = frame(4, 0, &[0; 12]);
        let (path, short) = (block(b"dev%2Fshm%2Fsocket"), block(b"w"));
        let named = |value: &[u8]| [&[0x83, 0x40], NAME, &[value.len() as u8], value].concat();
        let padded = [&[3_u8][..], &[0, 0, 0, 0, 16], &path, &[0, 0, 0]].concat();
        let plain = [&[0, 0, 0, 0, 16][..], &short].concat();
        let data = frame(0, 1, b"message");
        let sent = [
            preface.clone(),
            settings.clone(),
            frame(HEADERS, END_HEADERS, &path),
            frame(4, 1, &[]),
            data.clone(),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY | 1, &padded),
            frame(HEADERS, END_HEADERS, &named(b"dev%2Fshm%2Fsocket")),
            // Split, without a literal, or none at all.
            frame(HEADERS, 0, &path),
            frame(9, END_HEADERS, &[]),
            frame(HEADERS, END_HEADERS, &[0x83, 0xbe]),
        ]
        .concat();
        let expected = [
            preface,
            settings,
            frame(HEADERS, END_HEADERS, &short),
            frame(4, 1, &[]),
            data,
            frame(HEADERS, END_HEADERS | PRIORITY | 1, &plain),
            frame(HEADERS, END_HEADERS, &named(b"w")),
            frame(HEADERS, 0, &path),
            frame(9, END_HEADERS, &[]),
            frame(HEADERS, END_HEADERS, &[0x83, 0xbe]),
        ]
        .concat();
        for piece in [1, 2, 7, 64, 4096] {
            assert_eq!(through(&sent, piece), expected, "in pieces of {piece}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics_or_is_held_without_bound(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400),
            blocks in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..60), 0..5),
            piece in 1..50_usize,
        ) {
            let frames = blocks.iter().enumerate();
            let frames: Vec<u8> =
                frames.flat_map(|(i, block)| frame(HEADERS, END_HEADERS | (i as u8 * 8), block)).collect();
            let sent = [vec![0; PREFACE], frames, bytes].concat();
            let out = through(&sent, piece);
            proptest::prop_assert!(out.len() <= sent.len());
            proptest::prop_assert!(out.len() + HEAD + MAX_FRAME >= sent.len() / 2);
        }
    }
}
