//! One request over one connection, with the address, certificate and server name that the facts say.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maille_core::Identity;
use maille_testkit::Credential;
use maille_testkit::identity::rogue_client;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::lab::Lab;
use crate::requests::Facts;
use crate::wire::{Answer, exchange};

pub(crate) struct Client<'a> {
    lab: &'a Lab,
    credentials: RefCell<HashMap<String, Arc<ClientConfig>>>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        Self { lab, credentials: RefCell::default() }
    }

    /// Asks by HTTP; `more` are header lines that no policy is about.
    pub(crate) fn ask(&self, facts: &Facts, more: &str) -> Answer {
        let mut request =
            format!("{} {} HTTP/1.1\r\nHost: {}\r\n{more}", facts.method, facts.path, facts.host);
        if let Some(forwarded) = facts.forwarded {
            request.push_str(&format!("X-Forwarded-For: {forwarded}\r\n"));
        }
        for (name, value) in &facts.headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("Content-Length: 0\r\nConnection: close\r\n\r\n");
        let answer = self.connected(facts, 0, move |mut stream| exchange(&mut stream, request.as_bytes()));
        answer.unwrap_or_default()
    }

    /// Sends bytes from this port and returns what comes back before the other side closes or has sent as many.
    pub(crate) fn send(&self, facts: &Facts, port: u16, bytes: &'static [u8]) -> Vec<u8> {
        self.connected(facts, port, move |mut stream| {
            let mut answer = vec![0; bytes.len()];
            let mut count = 0;
            if stream.write_all(bytes).is_err() {
                return Vec::new();
            }
            while count < bytes.len() {
                match stream.read(&mut answer[count..]) {
                    Ok(0) | Err(_) => break,
                    Ok(more) => count += more,
                }
            }
            answer.truncate(count);
            answer
        })
    }

    fn connected<T: Send + 'static>(
        &self,
        facts: &Facts,
        port: u16,
        speak: impl FnOnce(Box<dyn Stream>) -> T + Send + 'static,
    ) -> T {
        let config = facts.identity.as_ref().map(|identity| self.config(identity));
        let name = facts.sni.clone();
        let (from, to) = (
            SocketAddr::new(facts.source_ip, port),
            SocketAddr::new(facts.destination_ip, facts.destination_port),
        );
        let spoken = self.lab.namespace.run(move || speak(connect(from, to, config, name)));
        spoken.expect("the namespace is there")
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

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

fn connect(
    from: SocketAddr,
    to: SocketAddr,
    config: Option<Arc<ClientConfig>>,
    name: Option<String>,
) -> Box<dyn Stream> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let socket = loop {
        match dial(from, to) {
            Ok(socket) => break socket,
            // A connection from the same port that Envoy ended first is remembered for a second.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => panic!("Envoy listens on {to}, for {from}: {error}"),
        }
    };
    let Some(config) = config else { return Box::new(socket) };
    let mut config = ClientConfig::clone(&config);
    config.enable_sni = name.is_some();
    let name = name.unwrap_or_else(|| "unnamed".to_owned());
    let name = ServerName::try_from(name).expect("a host name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    Box::new(StreamOwned::new(connection, socket))
}

fn dial(from: SocketAddr, to: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if from.port() != 0 {
        // The port is used again at once: it must not wait for the last connection's end.
        socket.set_reuse_address(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
    }
    socket.bind(&from.into())?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.set_tcp_nodelay(true)?;
    socket.connect(&to.into())?;
    Ok(socket)
}

/// One plain connection, kept as long as Envoy keeps it.
pub(crate) struct Caller<'a> {
    lab: &'a Lab,
    to: SocketAddr,
    stream: Option<TcpStream>,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(lab: &'a Lab, to: SocketAddr) -> Self {
        Self { lab, to, stream: None }
    }

    /// Sends these bytes and reads the answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Answer {
        for _ in 0..3 {
            let stream = self.stream.take().or_else(|| {
                let to = self.to;
                let stream =
                    self.lab.namespace.run(move || TcpStream::connect(to)).expect("a namespace").ok()?;
                stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
                stream.set_nodelay(true).expect("TCP");
                Some(stream)
            });
            let Some(mut stream) = stream else { continue };
            // A kept connection may have been closed after a bad request: again with a new one.
            let Some(answer) = exchange(&mut stream, request) else { continue };
            if answer.header("connection") != Some("close") {
                self.stream = Some(stream);
            }
            return answer;
        }
        panic!("Envoy does not answer to {:?}", String::from_utf8_lossy(request));
    }
}
