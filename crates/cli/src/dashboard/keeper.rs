//! Keeps the dashboard of a standalone mesh running.
//!
//! The listener stays here, so that the address is the same for as long as the mesh runs and nobody else can take it while
//! the page's process is being started again.

use std::fs::{DirBuilder, File};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::config::Kubeconfig;
use maille_core::ROOT_NAMESPACE;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::credential::Credential;
use super::place::Place;
use crate::client::Api;

/// The account of the page (apiserver's table of grants says what it may).
const ACCOUNT: &str = "maille-dashboard";
/// Life of its tokens.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// A token is replaced at a third of its life, so that an API that is away for long does not outlast it.
const TOKEN_RENEWAL: Duration = Duration::from_secs(1200);
/// Between two tries, when the API or the page's process fails.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A dashboard that is to run as long as the mesh.
pub(crate) struct Keeper {
    listener: TcpListener,
    key: String,
    data_dir: PathBuf,
    kubeconfig: PathBuf,
    binary: PathBuf,
}

impl Keeper {
    /// Takes the address.
    pub(crate) fn open(data_dir: &Path, kubeconfig: &Path) -> Result<Self> {
        let (listener, key) = Place::listen(data_dir)?;
        let binary = std::env::current_exe().context("cannot tell where this program is")?;
        Ok(Self { listener, key, data_dir: data_dir.into(), kubeconfig: kubeconfig.into(), binary })
    }

    /// Runs the page's process, again when it ends, until dropped.
    pub(crate) async fn run(self) -> std::convert::Infallible {
        let mut pause = PAUSE;
        loop {
            let began = Instant::now();
            if let Err(error) = self.run_once().await {
                tracing::warn!(error = format!("{error:#}"), "the dashboard ended; it is started again");
            }
            // What ran for a while may come back at once.
            pause = if began.elapsed() > LONGEST_PAUSE { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            sleep(pause).await;
        }
    }

    async fn run_once(&self) -> Result<()> {
        let credential = self.credential().await?;
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut child = self.spawn(theirs.into())?;
        let mut control = UnixStream::from_std(ours)?;
        tell(&mut control, &credential).await?;
        tokio::select! {
            status = child.wait() => anyhow::bail!("its process ended ({})", status?),
            error = self.renew(&mut control) => error,
        }
    }

    async fn renew(&self, control: &mut UnixStream) -> Result<()> {
        let mut next = TOKEN_RENEWAL;
        loop {
            sleep(next).await;
            next = match self.credential().await {
                Ok(credential) => {
                    tell(control, &credential).await?;
                    TOKEN_RENEWAL
                }
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "no new token for the dashboard yet");
                    LONGEST_PAUSE
                }
            };
        }
    }

    fn spawn(&self, control: OwnedFd) -> Result<Child> {
        let root = self.data_dir.join("empty");
        match DirBuilder::new().mode(0o755).create(&root) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make {}", root.display()));
            }
            _ => {}
        }
        let log_path = self.data_dir.join("dashboard.log");
        let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
        let listener = OwnedFd::from(self.listener.try_clone()?);
        Command::new(&self.binary)
            .arg("dashboard-server")
            .arg("--root")
            .arg(&root)
            .arg("--whereabouts")
            .arg(format!("`maille status --data-dir {}` prints it, as root", self.data_dir.display()))
            .env_clear()
            .stdin(Stdio::from(listener))
            .stdout(Stdio::from(control))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the dashboard's process")
    }

    /// A fresh token of the page's own account, asked for as the administrator.
    async fn credential(&self) -> Result<Credential> {
        let api = Api::from_file(&self.kubeconfig).await?;
        let accounts = format!("/api/v1/namespaces/{ROOT_NAMESPACE}/serviceaccounts");
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "automountServiceAccountToken": false,
            "metadata": {"name": ACCOUNT, "namespace": ROOT_NAMESPACE}
        });
        if let Err(error) = api.get(&format!("{accounts}/{ACCOUNT}")).await {
            ensure!(error.is_not_found(), "cannot find the account {ACCOUNT}: {error}");
            api.create(&accounts, &account).await?;
        }
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_LIFE.as_secs()}
        });
        let granted = api.create(&format!("{accounts}/{ACCOUNT}/token"), &request).await?;
        let token = granted["status"]["token"].as_str().context("the API granted no token")?.to_owned();
        let (server, authority) = place_of_api(&self.kubeconfig)?;
        Ok(Credential { server, authority, token, key: self.key.clone() })
    }
}

async fn tell(control: &mut UnixStream, credential: &Credential) -> Result<()> {
    let mut line = serde_json::to_vec(credential)?;
    line.push(b'\n');
    control.write_all(&line).await.context("the dashboard's process does not listen")
}

/// Address and authority of the API, and nothing else of the administrator's kubeconfig.
fn place_of_api(kubeconfig: &Path) -> Result<(String, String)> {
    let read = Kubeconfig::read_from(kubeconfig)?;
    let cluster = read.clusters.into_iter().next().and_then(|named| named.cluster);
    let cluster = cluster.context("the kubeconfig names no cluster")?;
    let server = cluster.server.context("the kubeconfig names no server")?;
    let authority = cluster.certificate_authority_data.context("the kubeconfig has no authority")?;
    Ok((server, authority))
}
