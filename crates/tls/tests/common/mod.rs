//! Two TLS ends in memory.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use maille_tls::HandshakeError;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

/// Both ends after everything they had to say was said.
pub(crate) struct Ends {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
    pub(crate) client_error: Option<HandshakeError>,
    pub(crate) server_error: Option<HandshakeError>,
}

impl Ends {
    /// Both ends, which must have succeeded.
    pub(crate) fn established(self) -> (ClientConnection, ServerConnection) {
        assert!(self.client_error.is_none(), "client: {}", self.client_error.expect("an error"));
        assert!(self.server_error.is_none(), "server: {}", self.server_error.expect("an error"));
        assert!(!self.client.is_handshaking() && !self.server.is_handshaking());
        (self.client, self.server)
    }
}

pub(crate) fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ends {
    handshake_with("outbound_.80_._.web.shop.svc.cluster.local", client, server)
}

pub(crate) fn handshake_with(dialled: &str, client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ends {
    let name = ServerName::try_from(dialled.to_owned()).expect("a name");
    let mut ends = Ends {
        client: ClientConnection::new(client, name).expect("client"),
        server: ServerConnection::new(server).expect("server"),
        client_error: None,
        server_error: None,
    };
    exchange(&mut ends);
    ends
}

/// Carries bytes until neither end has any to send.
pub(crate) fn exchange(ends: &mut Ends) {
    loop {
        let mut moved = false;
        while ends.client.wants_write() {
            let mut wire = Vec::new();
            ends.client.write_tls(&mut wire).expect("memory");
            moved = true;
            if ends.server_error.is_none() {
                ends.server_error = deliver(&mut ends.server, &wire);
            }
        }
        while ends.server.wants_write() {
            let mut wire = Vec::new();
            ends.server.write_tls(&mut wire).expect("memory");
            moved = true;
            if ends.client_error.is_none() {
                ends.client_error = deliver(&mut ends.client, &wire);
            }
        }
        if !moved {
            return;
        }
    }
}

fn deliver<D>(
    connection: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<D>>,
    mut wire: &[u8],
) -> Option<HandshakeError> {
    while !wire.is_empty() {
        connection.read_tls(&mut wire).expect("memory");
        if let Err(error) = connection.process_new_packets() {
            return Some(HandshakeError::from(error));
        }
    }
    None
}

pub(crate) fn names<const N: usize>(names: [&str; N]) -> Arc<[String]> {
    names.into_iter().map(str::to_owned).collect()
}
