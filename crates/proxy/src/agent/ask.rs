//! What a Pod's hooks ask of the sidecar that runs beside them: `maille proxy --wait` and `maille proxy --drain`.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use maille_core::ports;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Istio asks every 500 ms, for a minute (reference mtls 7.7).
const WAIT_LIMIT: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Waits until the sidecar of this Pod is ready, as `holdApplicationUntilProxyStarts` wants it; an error after a minute.
pub fn wait_until_ready() -> anyhow::Result<()> {
    wait(local(ports::READINESS), WAIT_LIMIT)
}

/// Tells the sidecar of this Pod to send its callers elsewhere, and comes back at once.
pub fn begin_drain() -> anyhow::Result<()> {
    drain(local(ports::STATUS))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn wait(at: SocketAddr, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let said = match ask(at, "GET /healthz/ready") {
            Ok((200, _)) => return Ok(()),
            Ok((_, reason)) => reason,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= deadline {
            bail!("the sidecar is not ready after {} s: {}", limit.as_secs(), said.trim());
        }
        std::thread::sleep(ASK_EVERY);
    }
}

fn drain(at: SocketAddr) -> anyhow::Result<()> {
    match ask(at, "POST /drain").context("is there a sidecar here?")? {
        (200, _) => Ok(()),
        (status, reason) => bail!("the sidecar answered {status}: {}", reason.trim()),
    }
}

/// Status and body of an answer.
fn ask(at: SocketAddr, request: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&at, ANSWER).with_context(|| at.to_string())?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(4 << 10).read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status.with_context(|| format!("{at} does not speak HTTP"))?, body))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers each request with the next of these.
    fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind(local(0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for (answer, stream) in answers.iter().zip(listener.incoming().flatten()) {
                let mut stream = stream;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("a request");
                    head.extend(byte);
                }
                write!(stream, "HTTP/1.1 {answer}").expect("answered");
            }
        });
        address
    }

    #[test]
    fn waits_as_long_as_it_takes_and_tells_what_is_missing() {
        let late = server(&["503 no\r\n\r\nnot ready: waiting for listeners\n", "200 OK\r\n\r\nready\n"]);
        wait(late, ANSWER).expect("ready in the end");
        let never = server(&["503 no\r\n\r\nnot ready: waiting for listeners\n"]);
        let error = wait(never, Duration::ZERO).expect_err("not ready").to_string();
        assert!(error.contains("waiting for listeners"), "{error}");
    }

    #[test]
    fn a_refused_drain_is_an_error() {
        drain(server(&["200 OK\r\n\r\nok\n"])).expect("drains");
        let error = drain(server(&["403 no\r\n\r\nonly from this host\n"])).expect_err("refused").to_string();
        assert!(error.contains("only from this host"), "{error}");
        assert!(drain(local(1)).is_err());
    }
}
