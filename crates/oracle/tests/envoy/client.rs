//! One request over one connection, with the address, certificate and server name that the facts say.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use maille_core::Identity;
use maille_testkit::Credential;
use maille_testkit::identity::rogue_client;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::lab::Lab;
use crate::requests::Facts;

pub(crate) struct Client<'a> {
    lab: &'a Lab,
    credentials: RefCell<HashMap<String, Arc<ClientConfig>>>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        Self { lab, credentials: RefCell::default() }
    }

    /// Status of the answer.
    pub(crate) fn ask(&self, set: usize, facts: &Facts) -> u16 {
        let mut request =
            format!("{} {} HTTP/1.1\r\nHost: {}\r\nx-set: {set}\r\n", facts.method, facts.path, facts.host);
        if let Some(forwarded) = facts.forwarded {
            request.push_str(&format!("X-Forwarded-For: {forwarded}\r\n"));
        }
        for (name, value) in &facts.headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("Content-Length: 0\r\nConnection: close\r\n\r\n");
        let config = facts.identity.as_ref().map(|identity| self.config(identity));
        let name = facts.sni.clone();
        let (from, to) = (
            SocketAddr::new(facts.source_ip, 0),
            SocketAddr::new(facts.destination_ip, facts.destination_port),
        );
        let answer = self.lab.namespace.run(move || exchange(from, to, config, name, request.as_bytes()));
        answer.expect("the namespace is there")
    }

    fn config(&self, identity: &Identity) -> Arc<ClientConfig> {
        let mut known = self.credentials.borrow_mut();
        let make = || {
            let svid = self.lab.authority.svid_for(identity, Duration::from_secs(3600));
            rogue_client(Some(&Credential::from(&svid)), &[])
        };
        known.entry(identity.to_string()).or_insert_with(make).clone()
    }
}

fn exchange(
    from: SocketAddr,
    to: SocketAddr,
    config: Option<Arc<ClientConfig>>,
    name: Option<String>,
    request: &[u8],
) -> u16 {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
    socket.bind(&from.into()).expect("the address is there");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    socket.set_tcp_nodelay(true).expect("TCP");
    socket.connect(&to.into()).expect("Envoy listens");
    let Some(config) = config else { return status(socket, request) };
    let mut config = ClientConfig::clone(&config);
    config.enable_sni = name.is_some();
    let name = name.unwrap_or_else(|| "unnamed".to_owned());
    let name = ServerName::try_from(name).expect("a host name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    status(StreamOwned::new(connection, socket), request)
}

fn status(mut stream: impl Read + Write, request: &[u8]) -> u16 {
    stream.write_all(request).expect("Envoy reads");
    let mut answer = Vec::new();
    let mut part = [0; 512];
    // The status line is enough, and Envoy closes only a while later.
    while !answer.contains(&b'\n') {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.extend_from_slice(part.get(..count).unwrap_or_default()),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}
