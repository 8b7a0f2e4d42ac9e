//! Opens a stream to where an upstream is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::Duration;

use maille_core::ports::is_sidecars;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;

use super::{Security, Upstream};
use crate::pacing;

/// When the other address is tried beside the first (Envoy's happy eyeballs; RFC 8305 section 5 recommends 250 ms).
const HEAD_START: Duration = Duration::from_millis(300);

/// Opens a stream, from an address of choice.
pub(super) async fn open(to: &Upstream, from: Option<IpAddr>) -> io::Result<TcpStream> {
    if let Some(path) = &to.socket {
        let stream = UnixStream::connect(&**path).await?;
        refuse_own(path, stream.peer_cred()?.uid())?;
        // Once connected, the calls are the same for any stream socket, and so is the type.
        return TcpStream::from_std(OwnedFd::from(stream.into_std()?).into());
    }
    let Some(other) = to.other else { return open_at(to, to.address, from).await };
    // Boxed, since every connection's future would carry both.
    Box::pin(open_either(to, SocketAddr::new(other, to.address.port()))).await
}

/// Opens a stream to whichever address of a workload answers; the first has a head start.
async fn open_either(to: &Upstream, other: SocketAddr) -> io::Result<TcpStream> {
    let mut first = pin!(open_at(to, to.address, None));
    let mut other = pin!(open_at(to, other, None));
    let failed = match timeout(HEAD_START, &mut first).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => error,
        Err(_) => tokio::select! {
            opened = &mut first => match opened {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            },
            opened = &mut other => match opened {
                Ok(stream) => return Ok(stream),
                Err(_) => return first.await,
            },
        },
    };
    // What is wrong with the address that counts is what people look for.
    other.await.map_err(|_| failed)
}

async fn open_at(to: &Upstream, address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    if to.security != Security::Deliver {
        refuse_own_port(address)?;
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if pacing::stays_here(address.ip()) || from.is_some_and(pacing::stays_here) {
        pacing::spare(&socket);
    }
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    if let Some(keepalive) = to.terms.as_ref().and_then(|terms| terms.pool.keepalive) {
        let mut wanted = TcpKeepalive::new();
        if let Some(time) = keepalive.time {
            wanted = wanted.with_time(time);
        }
        if let Some(interval) = keepalive.interval {
            wanted = wanted.with_interval(interval);
        }
        if let Some(probes) = keepalive.probes {
            wanted = wanted.with_retries(probes);
        }
        SockRef::from(&socket).set_tcp_keepalive(&wanted)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Keeps the application from talking as the proxy to what listens for nobody but the proxy, such as its successor: a
/// ServiceEntry may name any path. `listener` is the user of the process that listens, as the connection has it: what is at
/// the path may have been exchanged meanwhile.
fn refuse_own(path: &str, listener: u32) -> io::Result<()> {
    if is_own(rustix::process::geteuid().as_raw(), listener) {
        let why =
            format!("{path} belongs to the proxy's own user; a socket of an application is another user's");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// The same for ports: a ServiceEntry may name any address, and so may a name server, or an application that dials one.
/// Towards its admin port, the proxy would be taken for the operator.
fn refuse_own_port(address: SocketAddr) -> io::Result<()> {
    if pacing::stays_here(address.ip()) && is_sidecars(address.port()) {
        let why = format!(
            "port {} of this host is the proxy's own; an endpoint on the loopback must be of a port of the application",
            address.port()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// As root, everything is; that is no sidecar's user.
fn is_own(own: u32, owner: u32) -> bool {
    own != 0 && own == owner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_the_proxys_own_user_are_no_endpoints() {
        for (own, owner, is_refused) in
            [(1337, 1337, true), (1337, 1000, false), (1337, 0, false), (0, 0, false)]
        {
            assert_eq!(is_own(own, owner), is_refused, "{own} {owner}");
        }
        let own = rustix::process::geteuid().as_raw();
        let denied = if own == 0 { Ok(()) } else { Err(io::ErrorKind::PermissionDenied) };
        assert_eq!(refuse_own("/run/a.sock", own).map_err(|e| e.kind()), denied);
        assert!(refuse_own("/run/a.sock", own.wrapping_add(1)).is_ok());
    }

    fn outbound(address: &str, security: Security) -> Upstream {
        Upstream::at(address.parse().expect("an address"), security)
    }

    /// Whatever listens there, also the admin port of another test's agent, nothing is dialled.
    #[tokio::test]
    async fn the_proxys_own_ports_are_no_endpoints_however_the_loopback_is_written() {
        for address in [
            "127.0.0.1:15000",
            "127.9.9.9:15020",
            "0.0.0.0:15000",
            "[::1]:15000",
            "[::]:15090",
            "[::6]:15020",
            "[::ffff:127.0.0.1]:15000",
            "[::ffff:0.0.0.0]:15000",
        ] {
            let error = open(&outbound(address, Security::Plain), None).await.map(drop).expect_err(address);
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{address}: {error}");
            assert!(error.to_string().contains("is the proxy's own"), "{address}: {error}");
        }
        for allowed in ["127.0.0.1:8080", "[::1]:9090", "10.0.0.1:15000", "192.0.2.1:15020"] {
            assert!(refuse_own_port(allowed.parse().expect("an address")).is_ok(), "{allowed}");
        }
    }

    /// Both of IPv4, which every machine has.
    fn of_two(first: SocketAddr, other: [u8; 4]) -> Upstream {
        Upstream { other: Some(other.into()), ..Upstream::at(first, Security::Plain) }
    }

    #[tokio::test]
    async fn the_other_address_is_connected_to_where_the_first_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("a port");
        let at = listener.local_addr().expect("bound");
        let to = of_two(SocketAddr::from(([127, 0, 0, 3], at.port())), [127, 0, 0, 2]);
        let stream = open(&to, None).await.expect("connected");
        assert_eq!(stream.peer_addr().expect("connected"), at);
        drop((listener, stream));
        let error = open(&to, None).await.expect_err("nobody listens any more");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn the_first_address_is_preferred_and_not_waited_for_when_it_is_silent() {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).expect("a port");
        let silent = socket.listen(1).expect("a socket");
        let first = silent.local_addr().expect("bound");
        let other = SocketAddr::from(([127, 0, 0, 3], first.port()));
        let _listener = tokio::net::TcpListener::bind(other).await.expect("the same port");
        let to = of_two(first, [127, 0, 0, 3]);
        let stream = open(&to, None).await.expect("connected");
        assert_eq!(stream.peer_addr().expect("connected"), first);
        // Who does not accept drops what no longer fits in its queue.
        let mut queue = vec![stream];
        while let Ok(Ok(stream)) = timeout(HEAD_START, TcpStream::connect(first)).await {
            queue.push(stream);
        }
        let stream = open(&to, None).await.expect("connected");
        assert_eq!(stream.peer_addr().expect("connected"), other);
    }

    #[test]
    fn the_own_ends_family_says_which_address_was_reached() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let other = Some("2001:db8::1".parse().expect("an address"));
        let to = Upstream { other, ..outbound("10.0.0.1:80", Security::Plain) };
        for (local, reached) in [
            (Some("10.0.0.9:5"), "10.0.0.1:80"),
            (Some("[2001:db8::9]:5"), "[2001:db8::1]:80"),
            (None, "10.0.0.1:80"),
        ] {
            assert_eq!(to.reached_from(local.map(address)), address(reached));
        }
    }
}
