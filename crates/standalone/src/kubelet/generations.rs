//! A container's program, and the one that takes its place while it runs.
//!
//! An injected sidecar can be replaced in place: a second process of what is now the binary starts beside the first, in the
//! same network and over the same volumes, takes its listening sockets, and the first ends when its last connection has.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use maille_core::ports::READINESS;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::container::PodContext;
use crate::sandbox::{Exit, Sandboxed};

/// Annotation of a Pod: when its value changes, the sidecar is replaced by a process of the binary as it is then.
pub(crate) const REPLACE: &str = "maille.dev/replace-sidecar";
/// Tells a sidecar which of its lives it is; it says so with each answer about readiness.
pub(crate) const LIFE: &str = "MAILLE_LIFE";

/// How long a successor may take until it serves.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Who is to be replaced now, by the Pod's annotation.
pub(crate) fn wish(pod: &Pod) -> Option<String> {
    pod.metadata.annotations.as_ref()?.get(REPLACE).cloned()
}

/// A program with the name of its life.
pub(crate) struct Instance {
    pub(crate) life: String,
    pub(crate) running: Sandboxed,
    /// Copies its output.
    pub(crate) output: JoinSet<()>,
}

/// The programs of one container.
pub(crate) struct Generations {
    pub(crate) current: Instance,
    newcomer: Option<Newcomer>,
    elders: Vec<Instance>,
}

struct Newcomer {
    instance: Instance,
    serves: JoinSet<bool>,
}

/// What became of one of them.
#[derive(Debug)]
pub(crate) enum Event {
    /// The current one ended, and there is no other.
    Ended(Exit),
    /// The newcomer is the current one now.
    Replaced,
    /// The newcomer did not make it, for this reason.
    NotReplaced(String),
    /// One that was replaced has ended.
    Finished,
}

impl Generations {
    pub(crate) fn new(first: Instance) -> Self {
        Self { current: first, newcomer: None, elders: Vec::new() }
    }

    /// Whether one is on its way to take the current one's place.
    pub(crate) fn is_being_replaced(&self) -> bool {
        self.newcomer.is_some()
    }

    /// Lets `instance` take the place of the current one when it serves.
    pub(crate) fn replace_by(&mut self, instance: Instance, context: &Arc<PodContext>) {
        let mut serves = JoinSet::new();
        serves.spawn(serves_as(context.clone(), instance.life.clone()));
        self.newcomer = Some(Newcomer { instance, serves });
    }

    /// The next thing that happens. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Event {
        let Self { current, newcomer, elders } = self;
        let coming = async {
            match newcomer {
                Some(Newcomer { instance, serves }) => tokio::select! {
                    exit = instance.running.wait() => Err(format!("it ended with exit code {}", exit.code)),
                    serves = serves.join_next() => match serves {
                        Some(Ok(true)) => Ok(()),
                        _ => Err(format!("it did not serve within {} s", PATIENCE.as_secs())),
                    },
                },
                None => std::future::pending().await,
            }
        };
        let leaving = async {
            if elders.is_empty() {
                return std::future::pending().await;
            }
            let waits = elders.iter_mut().map(|elder| Box::pin(elder.running.wait()));
            futures::future::select_all(waits).await.1
        };
        tokio::select! {
            exit = current.running.wait() => match newcomer.take() {
                None => Event::Ended(exit),
                // It finds nobody to ask for sockets, and opens its own.
                Some(newcomer) => {
                    *current = newcomer.instance;
                    Event::Replaced
                }
            },
            outcome = coming => {
                let Some(newcomer) = newcomer.take() else { return std::future::pending().await };
                match outcome {
                    Ok(()) => {
                        elders.push(std::mem::replace(current, newcomer.instance));
                        Event::Replaced
                    }
                    // Dropped, and so ended, if it still runs.
                    Err(reason) => Event::NotReplaced(reason),
                }
            }
            index = leaving => {
                elders.swap_remove(index);
                Event::Finished
            }
        }
    }

    /// Asks all of them to end.
    pub(crate) async fn terminate(&mut self) {
        self.newcomer = None;
        for elder in &mut self.elders {
            elder.running.terminate().await;
        }
        self.current.running.terminate().await;
    }

    /// Waits until the last has ended; the answer is the current one's.
    pub(crate) async fn wait(&mut self) -> Exit {
        let exit = self.current.running.wait().await;
        while let Some(elder) = self.elders.last_mut() {
            elder.running.wait().await;
            self.elders.pop();
        }
        exit
    }

    /// Ends all of them.
    pub(crate) async fn kill(&mut self) {
        for elder in &mut self.elders {
            elder.running.kill().await;
        }
        self.current.running.kill().await;
    }
}

/// Waits until the process of this life answers for the Pod.
async fn serves_as(context: Arc<PodContext>, life: String) -> bool {
    let address = SocketAddr::new(context.address.into(), READINESS);
    let look = async {
        loop {
            let asked = context.kubelet.node.run(async move { answering(address).await.ok() }).await;
            if asked.flatten().as_deref() == Some(life.as_str()) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.is_ok()
}

/// The life of the process that answers about readiness.
async fn answering(address: SocketAddr) -> std::io::Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: sidecar\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.take(4 << 10).read_to_string(&mut answer).await?;
        let mut lines = answer.lines().take_while(|line| !line.is_empty());
        let header = lines.find_map(|line| line.strip_prefix("x-maille-life: ")).unwrap_or_default();
        Ok(header.to_owned())
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await?
}
