//! Streams into Pods, as kubectl and the `kube` client ask for them.

#[path = "support/pods.rs"]
mod pods;
mod support;

use std::net::TcpListener;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use support::{Server, kubectl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn pods_api(server: &Server) -> Api<Pod> {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("a kubeconfig");
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config");
    Api::namespaced(Client::try_from(config).expect("a client"), "default")
}

fn wait_for<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let limit = std::time::Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(limit, work).await.expect("in time") })
}

/// A server inside the Pod that sends back what it got, in capitals, when the client has sent 300 kB.
fn shouting_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut text = vec![0; 300_000];
                stream.read_exact(&mut text).expect("read");
                text.make_ascii_uppercase();
                stream.write_all(&text).expect("written");
            });
        }
    });
    port
}

#[test]
fn ports_are_forwarded_to_the_kube_client_both_ways_and_end_when_the_pod_ends_them() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let (first, second) = (shouting_port(), shouting_port());
    wait_for(async {
        let mut forward =
            pods_api(&server).await.portforward("one", &[first, second]).await.expect("forwarded");
        let mut streams = Vec::new();
        for port in [second, first] {
            let mut stream = forward.take_stream(port).expect("a stream");
            let sent = vec![b'x'; 300_000];
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let mut got = vec![0; sent.len()];
            let (written, came) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
            written.expect("written");
            came.expect("read");
            assert!(got.iter().all(|byte| *byte == b'X'));
            // Kept: closing one would close all in this protocol.
            streams.push(stream);
        }
        for stream in &mut streams {
            let rest = stream.read(&mut [0; 8]).await.expect("an end");
            assert_eq!(rest, 0, "both have ended inside the Pod, hence the whole");
        }
    });
}

#[test]
fn a_port_that_nobody_listens_on_is_told_on_its_own_channel() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    wait_for(async {
        let mut forward = pods_api(&server).await.portforward("one", &[closed]).await.expect("forwarded");
        let error = forward.take_error(closed).expect("a channel").await.expect("a message");
        assert!(
            error.contains(&format!("127.0.0.1:{closed} inside the pod")) && error.contains("refused"),
            "{error}"
        );
    });
}

#[test]
fn pods_that_do_not_run_are_not_reached() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    wait_for(async {
        let pods = pods_api(&server).await;
        for (pod, code, part) in
            [("waiting", 400, "Current status=Pending"), ("none", 404, "\"none\" not found")]
        {
            match pods.portforward(pod, &[80]).await.map(drop) {
                Err(kube::Error::Api(status)) => {
                    assert_eq!(status.code, code);
                    assert!(status.message.contains(part), "{}", status.message);
                }
                other => panic!("{pod}: {other:?}"),
            }
        }
    });
}
