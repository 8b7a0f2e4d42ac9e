//! What a redirected connection was meant for.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use socket2::SockRef;

/// The destination before redirection (`SO_ORIGINAL_DST`, both address families).
///
/// `None` when the connection was not redirected: the kernel then knows no translation, or the
/// original destination is the socket's own local address.
pub fn original_dst(socket: &impl AsFd) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(socket);
    let local = canonical(socket.local_addr()?.as_socket());
    // A dual-stack listener gives IPv4 connections IPv6-mapped addresses, but the translation is IPv4's.
    let original = match local {
        Some(SocketAddr::V6(_)) => socket.original_dst_v6(),
        _ => socket.original_dst_v4(),
    };
    match original {
        Ok(address) => {
            let address = canonical(address.as_socket());
            Ok(address.filter(|address| Some(*address) != local))
        }
        Err(error) if is_untranslated(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// ENOENT: no translation; ENOPROTOOPT and EOPNOTSUPP: connection tracking is not loaded, so nothing was
/// redirected either.
fn is_untranslated(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOPROTOOPT | Errno::OPNOTSUPP))
}

fn canonical(address: Option<SocketAddr>) -> Option<SocketAddr> {
    address.map(|a| match a.ip() {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), a.port()),
            None => a,
        },
        IpAddr::V4(_) => a,
    })
}
