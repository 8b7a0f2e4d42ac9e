//! Pods that are processes of this machine, in place of a mesh's.

use std::io;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use maille_apiserver::{ExecCommand, PodStreams, Running, StartError};
use tokio::net::TcpStream;

use crate::support::Server;

/// Connects to this machine's loopback.
#[derive(Debug)]
pub(crate) struct LocalPods;

impl PodStreams for LocalPods {
    fn exec(&self, command: ExecCommand) -> BoxFuture<'static, Result<Running, StartError>> {
        async move { Err(StartError::NotRunning(command.container)) }.boxed()
    }

    fn dial(&self, _pod_uid: String, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        TcpStream::connect(("127.0.0.1", port)).boxed()
    }
}

/// An API whose Pod `default/one` runs, with the containers `a` and `b`.
pub(crate) fn server() -> Server {
    let server = Server::start_with(|options| options.pods = Some(Arc::new(LocalPods)));
    server.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: default}, spec: {containers: [{name: a, image: x}, {name: b, image: x}]}}",
    );
    server.apply("{apiVersion: v1, kind: Pod, metadata: {name: waiting, namespace: default}, spec: {containers: [{name: a, image: x}]}}");
    let status = r#"{"status":{"phase":"Running","podIP":"127.0.0.1","containerStatuses":[{"name":"a","ready":true,"restartCount":0,"image":"x","imageID":"","state":{"running":{}}}]}}"#;
    server.kubectl(&["patch", "pod", "one", "--subresource=status", "--type=merge", "-p", status]);
    server
}
