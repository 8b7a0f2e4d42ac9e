//! Connections to where key sets are.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::address::forbidden;

/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;

/// For one of them; the whole fetch has its own limit.
const PER_ADDRESS: Duration = Duration::from_secs(3);

/// A stream of bytes to a server.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection on its way; an error says why there is none.
pub type Dialled<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Connection>, String>> + Send + 'a>>;

/// How servers are reached.
pub trait Dial: Send + Sync {
    /// Connects to a host, which is a name or an address.
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Dialled<'a>;
}

/// By the operating system's resolver, which in a Pod is the cluster's DNS. [`forbidden`] addresses are passed over,
/// whatever the name was: what is checked is what is connected to.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDial;

impl Dial for SystemDial {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Dialled<'a> {
        Box::pin(async move {
            let found =
                lookup_host((host, port)).await.map_err(|_| format!("the name {host} does not resolve"))?;
            let stream = connect(found.collect()).await?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

async fn connect(addresses: Vec<SocketAddr>) -> Result<TcpStream, String> {
    let mut problem = "its name has no address".to_owned();
    let mut tried = 0;
    for address in addresses {
        if let Some(kind) = forbidden(address.ip()) {
            problem = format!("{} is {kind}; nothing is fetched from there", address.ip());
            continue;
        }
        tried += 1;
        if tried > MAX_ADDRESSES {
            break;
        }
        problem = match timeout(PER_ADDRESS, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => format!("cannot connect to {address}: {}", kind_of(&error)),
            Err(_) => format!("{address} does not answer"),
        };
    }
    Err(problem)
}

/// Without numbers and quirks of the operating system.
fn kind_of(error: &io::Error) -> String {
    error.kind().to_string()
}
