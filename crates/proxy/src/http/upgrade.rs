//! Connections that stop being HTTP: both sides agreed to switch protocols (RFC 9110 section 7.8).

use std::any::Any;
use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::open::{Carries, Open, Upgraded};
use crate::relay::Side;
use crate::server_proof::ServerProof;
use crate::tcp;
use crate::worker::Worker;

/// A request that may turn into a stream.
pub(crate) struct Switching {
    /// The caller's side.
    pub(crate) downstream: OnUpgrade,
    /// By what an inbound stream is judged while it lives.
    pub(crate) judged_by: Option<Box<Upgraded>>,
    /// What must live as long as the stream does.
    pub(crate) keep: Rc<dyn Any>,
}

impl Side for TokioIo<hyper::upgrade::Upgraded> {}

impl Switching {
    /// Relays in the background as soon as both sides have switched.
    /// `server` is what the upstream's has proved.
    pub(crate) fn start(self, worker: Rc<Worker>, upstream: OnUpgrade, server: Option<Rc<ServerProof>>) {
        tokio::task::spawn_local(async move {
            let (Ok(downstream), Ok(upstream)) = futures::future::join(self.downstream, upstream).await
            else {
                return;
            };
            let entry = self.judged_by.map(|upgraded| {
                let facts = upgraded.facts();
                let policy = worker.snapshot().policy.on_connection(&facts.attributes());
                let open = Open::new(facts, Carries::Upgraded(upgraded), policy);
                let entry = worker.open.enter(open);
                // Facts may have changed between the request's decision and now.
                worker.open.judge_one(&worker, &entry.open);
                entry
            });
            let open = entry.as_ref().map(|entry| &*entry.open);
            let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
            tcp::run_upgraded(&worker, &mut downstream, &mut upstream, open, server.as_deref()).await;
            drop(self.keep);
        });
    }
}
