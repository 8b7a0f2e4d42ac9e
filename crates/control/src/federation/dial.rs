//! How endpoints are reached.

use std::net::IpAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::keys::{Connection, Dial, Dialled, SystemDial};

/// As for other fetches.
const PER_ADDRESS: Duration = Duration::from_secs(3);

/// By names as all fetches, which pass over addresses that are nobody's endpoint; an address that the operator has written
/// into the mesh configuration is meant, whatever it is.
pub(super) struct OperatorDial {
    written: Option<IpAddr>,
}

impl OperatorDial {
    pub(super) fn new(url: &str) -> Self {
        let uri: Option<http::Uri> = url.parse().ok();
        let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
        Self { written: host.trim_start_matches('[').trim_end_matches(']').parse().ok() }
    }
}

impl Dial for OperatorDial {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Dialled<'a> {
        let Some(address) = host.parse().ok().filter(|address: &IpAddr| self.written == Some(*address))
        else {
            return SystemDial.dial(host, port);
        };
        Box::pin(async move {
            let connected = timeout(PER_ADDRESS, TcpStream::connect((address, port))).await;
            let connected = connected.map_err(|_| format!("{address} does not answer"))?;
            let stream = connected.map_err(|e| format!("cannot connect to {address}: {}", e.kind()))?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}
