//! Connections that never leave this machine are not paced.
//!
//! Where BBR is the default, as many a server's tuning has it, the kernel holds back every segment by a timer. That spares
//! queues on the way; on the loopback there are none, and the timers of what this proxy sends are a fifth of the CPU time
//! that moving bytes costs a pair of sidecars on one machine (`bench/`, bulk, Linux 6.18). What leaves the machine keeps
//! what its administrator chose.

use std::net::IpAddr;
use std::os::fd::AsFd;

use maille_core::ports::INBOUND_SOURCE_V6;
use rustix::net::sockopt::{set_tcp_congestion, tcp_congestion};

/// What paces, by the beginning of its name: `bbr`, and its later versions.
const PACED: &str = "bbr";
/// Every kernel has it, and lets everybody choose it unless its administrator says otherwise.
const UNPACED: &str = "reno";

/// Whether what is sent from or to this address stays on this machine.
pub(crate) fn stays_here(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified() || address == INBOUND_SOURCE_V6
}

/// Has the connections of a socket that listens, or that is about to connect, not paced. Later is too late: who once paced
/// does to its end.
pub(crate) fn spare(socket: impl AsFd) {
    if tcp_congestion(&socket).is_ok_and(|name| name.starts_with(PACED)) {
        // It works either way.
        let _ = set_tcp_congestion(&socket, UNPACED);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::net::{TcpSocket, TcpStream};

    use super::*;

    #[test]
    fn only_the_loopback_and_the_address_of_deliveries_stay_here() {
        for (address, stays) in [
            ("127.0.0.1", true),
            ("127.0.0.6", true),
            ("::1", true),
            ("::6", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
            ("::7", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(stays_here(address.parse().expect("an address")), stays, "{address}");
        }
    }

    fn paced() -> TcpSocket {
        let socket = TcpSocket::new_v4().expect("a socket");
        let _ = set_tcp_congestion(&socket, PACED);
        socket
    }

    fn chosen(socket: impl AsFd) -> String {
        tcp_congestion(socket).expect("TCP")
    }

    #[tokio::test]
    async fn what_stays_here_is_not_paced_and_nothing_else_changes() {
        let default = chosen(TcpSocket::new_v4().expect("a socket"));
        if chosen(paced()) != PACED {
            eprintln!("SKIPPED: this kernel does not have {PACED}, or does not let us choose it");
            return;
        }
        let listener = paced();
        spare(&listener);
        listener.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a port");
        let listener = listener.listen(1).expect("a listener");
        let at = listener.local_addr().expect("bound");
        let socket = paced();
        spare(&socket);
        let (connected, accepted) = tokio::join!(socket.connect(at), listener.accept());
        assert_eq!(chosen(connected.expect("connected")), UNPACED);
        assert_eq!(chosen(accepted.expect("accepted").0), UNPACED, "what is accepted is as its listener");
        let other = TcpStream::connect(at).await.expect("connected");
        assert_eq!(chosen(&other), default, "what was not asked for");
        let another = TcpSocket::new_v4().expect("a socket");
        let _ = set_tcp_congestion(&another, "cubic");
        let before = chosen(&another);
        if !before.starts_with(PACED) {
            spare(&another);
            assert_eq!(chosen(another), before);
        }
    }
}
