//! The node: a network namespace of its own with the bridge, and a thread that lives in it.

use std::future::Future;
use std::thread::JoinHandle;

use anyhow::Context as _;
use ipnet::IpNet;
use maille_net::{NetNs, egress, guard, link};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::address::{
    API_PORT, DNS_PORT, EGRESS_PORT, NODE_ADDRESS, NODE_ADDRESS_V6, POD_NETWORK, POD_NETWORK_V6,
    is_dual_stack, own_networks,
};

/// The node namespace of a mesh.
#[derive(Debug)]
pub(crate) struct Node {
    ns: NetNs,
    handle: Handle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Makes the namespace, the bridge and the guards; `way_out` says whether Pods reach the outside.
    pub(crate) fn create(ns_name: &str, way_out: bool) -> anyhow::Result<NetNs> {
        let ns = NetNs::create(ns_name)?;
        let mut addresses = vec![IpNet::new_assert(NODE_ADDRESS.into(), POD_NETWORK.prefix_len())];
        if is_dual_stack() {
            addresses.push(IpNet::new_assert(NODE_ADDRESS_V6.into(), POD_NETWORK_V6.prefix_len()));
        }
        link::create_bridge(&ns, NODE_ADDRESS, &addresses)?;
        guard::install(&ns, NODE_ADDRESS, &[API_PORT, DNS_PORT], &[DNS_PORT])?;
        egress::install(&ns, &own_networks(), way_out.then_some(EGRESS_PORT))?;
        Ok(ns)
    }

    /// Starts the thread that works in it, for everything that must be dialled from there.
    pub(crate) fn start(ns: NetNs) -> anyhow::Result<Self> {
        let (ready, started) = std::sync::mpsc::channel();
        let stop = CancellationToken::new();
        let thread = std::thread::Builder::new().name("node".to_owned()).spawn({
            let (ns, stop) = (ns.clone(), stop.clone());
            move || {
                let runtime = ns
                    .enter()
                    .map_err(anyhow::Error::from)
                    .and_then(|()| Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
                match runtime {
                    Ok(runtime) => {
                        let _ = ready.send(Ok(runtime.handle().clone()));
                        runtime.block_on(stop.cancelled());
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            }
        })?;
        let handle = started.recv().context("the node thread ended")??;
        Ok(Self { ns, handle, stop, thread: Some(thread) })
    }

    /// Its namespace.
    pub(crate) fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// Runs `work` on the node's thread; `None` if the node is stopping.
    pub(crate) async fn run<F>(&self, work: F) -> Option<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = AbortOnDrop(self.handle.spawn(work));
        task.await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A time-out that drops the future must also end the work on the other thread.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for AbortOnDrop<T> {
    type Output = Option<T>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(Result::ok)
    }
}
