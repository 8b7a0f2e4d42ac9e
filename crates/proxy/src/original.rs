//! Where a connection was meant to go before it was redirected here.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::snapshot::{ListenerSpec, Target};

/// The address that the caller dialled; `None` for connections to the capture port itself, which
/// would be forwarded to themselves for ever (reference mtls PA-16, OT-5).
pub(crate) fn destination(stream: &TcpStream, spec: &ListenerSpec) -> Option<SocketAddr> {
    match spec.target {
        Target::Address(address) => Some(address),
        Target::Host(..) => None,
        Target::Redirected => {
            let local = stream.local_addr().ok()?;
            let socket = SockRef::from(stream);
            let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
            // Without an entry in the kernel's table, nobody redirected it.
            let original = original.ok()?.as_socket()?;
            (original != local && original.port() != spec.address.port()).then_some(original)
        }
    }
}
