//! Whose process is at the other end of a connection within this host.
//!
//! The admin port shows what the application has no need to know (policies, other workloads), so that loopback alone is
//! not enough: the application shares it. The kernel knows each socket's owner and lists it in `/proc/net/tcp`
//! (proc_net_tcp.rst in the kernel's documentation).

use std::net::{IpAddr, SocketAddr};

/// The user that owns the socket from `peer` to `local`; `None` if the kernel does not say, which is no permission.
pub(crate) async fn peer_user(local: SocketAddr, peer: SocketAddr) -> Option<u32> {
    // A client may use an IPv6 socket for an IPv4 address.
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(text) = tokio::fs::read_to_string(table).await else { continue };
        if let Some(user) = text.lines().skip(1).find_map(|line| owner(line, local, peer)) {
            return Some(user);
        }
    }
    None
}

/// The owner, if the line is of the peer's socket: its local address is our peer's, its remote address ours.
fn owner(line: &str, local: SocketAddr, peer: SocketAddr) -> Option<u32> {
    let mut fields = line.split_whitespace();
    let own = address(fields.nth(1)?)?;
    let remote = address(fields.next()?)?;
    // After them: state, queues, timer, retransmits, uid.
    let user = fields.nth(4)?.parse().ok()?;
    (canonical(own) == canonical(peer) && canonical(remote) == canonical(local)).then_some(user)
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

/// `0100007F:3A98`: words of the address as the machine's integers, in hexadecimal, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (digits, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for start in (0..digits.len()).step_by(8) {
        let word = u32::from_str_radix(digits.get(start..start + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_names_the_owner_of_a_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let local = listener.local_addr().expect("address");
        let client = tokio::net::TcpStream::connect(local).await.expect("connected");
        let (_server, peer) = listener.accept().await.expect("accepted");
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(peer_user(local, peer).await, Some(own));
        drop(client);
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(peer_user(local, nobody).await, None);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn addresses_of_both_families_are_read() {
        assert_eq!(address("0100007F:3A98"), Some(SocketAddr::from(([127, 0, 0, 1], 15000))));
        let mapped = address("0000000000000000FFFF00000100007F:0050").expect("valid");
        assert_eq!(canonical(mapped), (IpAddr::from([127, 0, 0, 1]), 80));
        for bad in ["", "0100007F", "0100007:1", "zzzzzzzz:1", "0100007F:123456"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }
}
