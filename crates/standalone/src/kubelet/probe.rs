//! Probes, dialled from the node namespace as a kubelet dials them from its node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use maille_net::sandbox::SandboxSpec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::grpc;
use crate::node::Node;
use crate::sandbox;

/// A status line and headers longer than this are no answer to a probe.
const MAX_HEAD: usize = 16 << 10;

/// Why a probe failed; the text is what an event says.
pub(crate) type Failure = String;

/// Who is probed.
pub(crate) struct Target<'a> {
    pub(crate) node: &'a Node,
    pub(crate) binary: &'a Path,
    pub(crate) address: Ipv4Addr,
    pub(crate) container: &'a Container,
    /// How to run a command in the container, without the command.
    pub(crate) exec: &'a SandboxSpec,
}

/// Runs a probe once, within its time.
pub(crate) async fn check(probe: &Probe, target: &Target<'_>) -> Result<(), Failure> {
    let seconds = u64::try_from(probe.timeout_seconds.unwrap_or(1).max(1)).unwrap_or(1);
    let limit = Duration::from_secs(seconds);
    match tokio::time::timeout(limit, act(probe, target)).await {
        Ok(result) => result,
        Err(_) => Err(format!("timed out after {seconds} s")),
    }
}

/// Runs a probe once, for as long as it takes.
pub(crate) async fn act(probe: &Probe, target: &Target<'_>) -> Result<(), Failure> {
    if let Some(action) = &probe.http_get {
        return http(action, target).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let address = address(action.host.as_deref(), &action.port, target)?;
        return on_node(target, async move {
            TcpStream::connect(address).await.map(drop).map_err(|e| format!("dial tcp {address}: {e}"))
        })
        .await;
    }
    if let Some(action) = &probe.exec {
        return exec(action.command.clone().unwrap_or_default(), target).await;
    }
    if let Some(action) = &probe.grpc {
        let port = u16::try_from(action.port).map_err(|_| format!("invalid port {}", action.port))?;
        let address = SocketAddr::from((target.address, port));
        let service = action.service.clone().unwrap_or_default();
        return on_node(target, async move { grpc::check(address, &service).await }).await;
    }
    Err("the probe names no action".to_owned())
}

async fn on_node<F>(target: &Target<'_>, work: F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    target.node.run(work).await.unwrap_or_else(|| Err("the node is stopping".to_owned()))
}

/// An HTTP request as a hook or a probe makes it.
async fn http(action: &HTTPGetAction, target: &Target<'_>) -> Result<(), Failure> {
    if action.scheme.as_deref() == Some("HTTPS") {
        return Err("httpGet with scheme HTTPS is not supported; use tcpSocket or exec".to_owned());
    }
    let address = address(action.host.as_deref(), &action.port, target)?;
    let request = request(action, address)?;
    on_node(target, async move { exchange(address, request).await }).await
}

fn request(action: &HTTPGetAction, address: SocketAddr) -> Result<String, Failure> {
    let headers = action.http_headers.as_deref().unwrap_or_default();
    let has = |name: &str| headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    for (name, value) in [
        ("Host", address.to_string()),
        ("User-Agent", "kube-probe/1.37".to_owned()),
        ("Accept", "*/*".to_owned()),
    ] {
        if !has(name) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for header in headers {
        request.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    request.push_str("Connection: close\r\n\r\n");
    let lines = request.matches("\r\n").count();
    if lines != request.matches('\n').count() || path.contains([' ', '\r', '\n']) {
        return Err("path and headers must not contain line breaks, nor the path blanks".to_owned());
    }
    Ok(request)
}

async fn exchange(address: SocketAddr, request: String) -> Result<(), Failure> {
    let say = |e: std::io::Error| format!("Get \"http://{address}\": {e}");
    let mut stream = TcpStream::connect(address).await.map_err(say)?;
    stream.write_all(request.as_bytes()).await.map_err(say)?;
    let mut head = Vec::new();
    while !head.contains(&b'\n') && head.len() < MAX_HEAD {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer).await.map_err(say)? {
            0 => break,
            n => head.extend(buffer.iter().take(n)),
        }
    }
    let line =
        String::from_utf8_lossy(head.split(|&byte| byte == b'\n').next().unwrap_or_default()).into_owned();
    let status =
        line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
    match status {
        // A redirect counts as an answer, as it does to a kubelet that may not follow it to another host.
        Some(200_u16..400) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!("Get \"http://{address}\": malformed HTTP response {:?}", line.trim())),
    }
}

async fn exec(command: Vec<String>, target: &Target<'_>) -> Result<(), Failure> {
    let mut spec = target.exec.clone();
    spec.process.command = command;
    let mut running = sandbox::start(target.binary, &spec).await.map_err(|e| e.message)?;
    let output = running.output.take();
    let exit = running.wait().await;
    if exit.code == 0 {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some((stdout, stderr)) = output {
        let _ = stdout.take(1024).read_to_end(&mut said).await;
        let _ = stderr.take(1024).read_to_end(&mut said).await;
    }
    Err(format!("command exited with {}: {}", exit.code, String::from_utf8_lossy(&said).trim()))
}

fn address(host: Option<&str>, port: &IntOrString, target: &Target<'_>) -> Result<SocketAddr, Failure> {
    let ip = match host {
        None | Some("") => IpAddr::V4(target.address),
        Some(host) => host.parse().map_err(|_| format!("host {host:?} is not an IP address"))?,
    };
    let port =
        port_number(port, target.container).ok_or_else(|| format!("no container port named {port:?}"))?;
    Ok(SocketAddr::new(ip, port))
}

/// A port by its number or by its name in the container.
pub(crate) fn port_number(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|&port| port != 0),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .and_then(|port| u16::try_from(port.container_port).ok())
            .or_else(|| name.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_cannot_smuggle_a_second_request() {
        let action = |path: &str| HTTPGetAction { path: Some(path.to_owned()), ..Default::default() };
        let address = SocketAddr::from(([10, 244, 1, 1], 80));
        assert!(
            request(&action("/healthz"), address)
                .unwrap()
                .starts_with("GET /healthz HTTP/1.1\r\nHost: 10.244.1.1:80")
        );
        assert!(request(&action("/a\r\nX: y"), address).is_err());
        assert!(request(&action("/a b"), address).is_err());
    }
}
