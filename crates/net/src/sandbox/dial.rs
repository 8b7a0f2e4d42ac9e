//! A connection from inside a container's network namespace.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::thread::ThreadNameSpaceType;

use super::container;
use super::spec::Joined;

/// Connects to an address as the container's network sees it.
///
/// Needs root. Blocks for up to `patience`. The socket belongs to the calling process's user, which programs in the
/// container can see in `/proc/net/tcp`.
pub fn dial(container: &Joined, address: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    // A thread that has entered a namespace cannot be used for anything else: this one ends with the call.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("dial".to_owned()).spawn_scoped(scope, || {
            container::enter(container, ThreadNameSpaceType::NETWORK).map_err(io::Error::other)?;
            TcpStream::connect_timeout(&address, patience)
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
