//! The cluster's DNS server: names of Services and Pods; other names are asked of resolvers outside.
//!
//! Follows the Kubernetes DNS specification 1.1: `<service>.<namespace>.svc.<domain>`, headless
//! Services as the addresses of their endpoints, `<hostname>.<service>…` and `a-b-c-d.<service>…` for each of them,
//! SRV records of named ports, PTR records, `a-b-c-d.<namespace>.pod.<domain>`, ExternalName as CNAME. Names that Services ask for by
//! external-dns' annotation are answered as well; those of the cluster cannot be taken that way.

mod answer;
mod external;
mod forward;
mod server;
mod zone;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use arc_swap::ArcSwap;
use kube::Client;

pub use zone::Zone;

/// What the server needs; the sockets are made by the caller, each in its network namespace.
#[derive(Debug)]
pub struct DnsOptions {
    /// Where Pods ask.
    pub udp: UdpSocket,
    /// Where Pods ask for what does not fit a datagram.
    pub tcp: TcpListener,
    /// Where names from outside the cluster are asked: a socket of the host's namespace, and the host's resolvers.
    pub upstream: Option<(UdpSocket, Vec<SocketAddr>)>,
}

/// Serves until it is dropped. Names follow the Services and EndpointSlices that `client` shows.
///
/// # Errors
/// If a socket cannot be used.
pub async fn serve(options: DnsOptions, client: Client) -> std::io::Result<()> {
    let zone = Arc::new(ArcSwap::from_pointee(Zone::default()));
    let forwarder = match options.upstream {
        Some((socket, resolvers)) if !resolvers.is_empty() => {
            Some(forward::Forwarder::start(socket, resolvers)?)
        }
        _ => None,
    };
    let server = server::Server { zone: zone.clone(), forwarder };
    tokio::try_join!(server.udp(options.udp), server.tcp(options.tcp), async {
        zone::follow(client, &zone).await;
        Ok(())
    },)?;
    Ok(())
}
