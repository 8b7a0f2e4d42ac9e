//! Answers the application's DNS questions, which the redirection brings here (reference mtls 4.2).
//!
//! What the registry knows is answered from it: Services by their virtual addresses, ServiceEntries by their own or
//! allocated ones, so that two TCP hosts on one port are told apart by their addresses (SE-16, SE-17). The registry is
//! asked on demand, as it is for connections. Everything else is asked of the resolvers in `resolv.conf`. A name outside
//! of the cluster that is unknown only because the control plane is away gets SERVFAIL: its real address could lead
//! around what the mesh orders for it.

mod message;
mod names;
mod resolv;
mod server;
mod upstream;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use maille_telemetry::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tracing::{info, warn};

use crate::snapshot::Resolver;
use names::RegistryNames;
use resolv::ResolvConf;
use server::Server;
use upstream::Upstream;

/// Says the cluster's domain once there are facts.
pub(crate) type ClusterDomain = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What the server needs of the agent.
pub(crate) struct DnsOptions<'a> {
    /// Where the redirection leads: a loopback address.
    pub(crate) address: SocketAddr,
    /// Names the resolvers that the application would have asked.
    pub(crate) resolv_conf: &'a Path,
    /// Whom to ask about names.
    pub(crate) registry: Arc<dyn Resolver>,
    /// The cluster's domain, known with the first facts; until then every answer is SERVFAIL.
    pub(crate) cluster_domain: ClusterDomain,
    pub(crate) telemetry: Arc<Registry>,
}

/// A server with its sockets.
pub(crate) struct Dns {
    server: Arc<Server>,
    sockets: Vec<(UdpSocket, TcpListener)>,
}

impl Dns {
    /// Binds the sockets, in both families if the kernel has both. Must be called inside a runtime.
    pub(crate) fn bind(options: DnsOptions<'_>) -> io::Result<Self> {
        let mut sockets = vec![bind(options.address)?];
        let port = sockets.first().map_or(Ok(0), |(udp, _)| udp.local_addr().map(|at| at.port()))?;
        if options.address.is_ipv4() {
            // Where the loopback has no IPv6, nothing is redirected there either.
            sockets.extend(bind((Ipv6Addr::LOCALHOST, port).into()).ok());
        }
        let resolv = ResolvConf::read(options.resolv_conf).unwrap_or_else(|error| {
            warn!(path = %options.resolv_conf.display(), %error, "only names of the registry will be answered");
            ResolvConf::default()
        });
        info!(resolvers = ?resolv.servers, "answering the application's DNS questions");
        options.telemetry.gauges().dns_starts();
        let server = Server {
            names: RegistryNames::new(options.registry, options.cluster_domain, resolv.search),
            upstream: Upstream::new(resolv.servers, options.telemetry.clone()),
            telemetry: options.telemetry,
        };
        Ok(Self { server: Arc::new(server), sockets })
    }

    /// Where it listens.
    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.sockets[0].0.local_addr().expect("bound")
    }

    /// Answers for ever.
    pub(crate) async fn run(self) {
        let parts = self.sockets.into_iter().map(|(udp, tcp)| {
            let server = self.server.clone();
            async move {
                tokio::join!(server.clone().udp(udp), server.tcp(tcp));
            }
        });
        futures::future::join_all(parts).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let make = |address: SocketAddr, kind, protocol| {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // A new process takes over while the old one finishes. Ports are shared within one user only; addresses of
        // datagrams, which no connection's end lingers on, would be shared with anybody, who then gets them.
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        io::Result::Ok(socket)
    };
    let udp: std::net::UdpSocket = make(address, Type::DGRAM, Protocol::UDP)?.into();
    let tcp = make(udp.local_addr()?, Type::STREAM, Protocol::TCP)?;
    tcp.listen(128)?;
    Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp.into())?))
}
