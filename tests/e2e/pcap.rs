//! Reads a capture: enough of pcap, Ethernet, IPv4 and TCP to put streams together.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// One direction of a TCP connection.
pub(crate) struct Stream {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// The capture has its beginning, so that records can be told apart.
    pub(crate) starts_at_syn: bool,
}

/// Every direction of every TCP connection in a little-endian pcap file with Ethernet frames.
pub(crate) fn tcp_streams(file: &[u8]) -> Result<Vec<Stream>> {
    ensure!(file.get(..4) == Some(&[0xd4, 0xc3, 0xb2, 0xa1]), "no pcap file yet");
    let mut flows: BTreeMap<String, (Option<u32>, Chunks)> = BTreeMap::new();
    let mut rest = file.get(24..).context("a truncated pcap header")?;
    while let Some(header) = rest.get(..16) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some(frame) = rest.get(16..16 + length) else { break };
        rest = &rest[16 + length..];
        if let Some(segment) = Segment::read(frame) {
            let (start, chunks) = flows.entry(segment.name).or_default();
            if segment.syn {
                *start = Some(segment.sequence.wrapping_add(1));
            } else if !segment.payload.is_empty() {
                chunks.entry(segment.sequence).or_insert(segment.payload);
            }
        }
    }
    Ok(flows.into_iter().map(|(name, (start, chunks))| assemble(name, start, chunks)).collect())
}

/// Payloads by sequence number.
type Chunks = BTreeMap<u32, Vec<u8>>;

fn assemble(name: String, start: Option<u32>, chunks: Chunks) -> Stream {
    let mut bytes = Vec::new();
    match start {
        Some(start) => {
            let mut ordered: Vec<_> = chunks.into_iter().map(|(s, c)| (s.wrapping_sub(start), c)).collect();
            ordered.sort_by_key(|(offset, _)| *offset);
            for (offset, chunk) in ordered {
                let offset = offset as usize;
                if offset > bytes.len() {
                    break;
                }
                let known = bytes.len() - offset;
                bytes.extend_from_slice(chunk.get(known..).unwrap_or_default());
            }
            Stream { name, bytes, starts_at_syn: true }
        }
        None => {
            chunks.into_values().for_each(|chunk| bytes.extend(chunk));
            Stream { name, bytes, starts_at_syn: false }
        }
    }
}

struct Segment {
    name: String,
    sequence: u32,
    syn: bool,
    payload: Vec<u8>,
}

impl Segment {
    fn read(frame: &[u8]) -> Option<Self> {
        if frame.get(12..14)? != [0x08, 0x00] {
            return None;
        }
        let packet = frame.get(14..)?;
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        if *packet.get(9)? != 6 {
            return None;
        }
        let address =
            |at: usize| packet.get(at..at + 4).map(|a| format!("{}.{}.{}.{}", a[0], a[1], a[2], a[3]));
        let (source, destination) = (address(12)?, address(16)?);
        let tcp = packet.get(header..total)?;
        let port = |at: usize| tcp.get(at..at + 2).map(|p| u16::from_be_bytes([p[0], p[1]]));
        let offset = usize::from(tcp.get(12)? >> 4) * 4;
        let sequence = tcp.get(4..8)?;
        Some(Self {
            name: format!("{source}:{} > {destination}:{}", port(0)?, port(2)?),
            sequence: u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]),
            syn: tcp.get(13)? & 0x02 != 0,
            payload: tcp.get(offset..)?.to_vec(),
        })
    }
}

/// Whether the bytes are a sequence of TLS records, the last one perhaps not complete; application
/// data must be TLS 1.3's (RFC 8446 section 5.1).
pub(crate) fn only_tls_records(mut bytes: &[u8]) -> Result<()> {
    while let Some(header) = bytes.get(..5) {
        ensure!(
            (20..=23).contains(&header[0]) && header[1] == 3 && (1..=3).contains(&header[2]),
            "a record begins with {header:02x?}"
        );
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        ensure!(length <= (1 << 14) + 256, "a record of {length} bytes");
        match bytes.get(5 + length..) {
            Some(rest) => bytes = rest,
            None => break,
        }
    }
    Ok(())
}
