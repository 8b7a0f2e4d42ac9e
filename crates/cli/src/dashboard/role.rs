//! The process that serves the dashboard of a standalone mesh.
//!
//! It holds nothing but what its parent hands it: the listening socket as standard input, and a control socket as standard
//! output, over which come the credential and, from time to time, a newer one. Before it reads a byte of either it gives up
//! root, every file of the machine, and the means to get anything back. When the control socket closes, it ends.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use maille_dashboard::AccessKey;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::credential::Credential;
use super::upstream::ApiUpstream;

/// `nobody`.
const USER: u32 = 65_534;
/// Longest line on the control socket: a token and a certificate.
const MAX_LINE_BYTES: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct DashboardServerArgs {
    /// Empty folder that becomes this process's root.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// What to tell those who come without the key.
    #[arg(long)]
    whereabouts: String,
}

/// Serves until the control socket closes.
pub(crate) fn serve(args: DashboardServerArgs) -> Result<()> {
    rustix::process::chroot(&args.root).context("cannot leave the files of this machine")?;
    rustix::process::chdir("/").context("cannot leave the files of this machine")?;
    maille_net::sandbox::become_user(USER)?;
    maille_net::process::make_undumpable()?;
    crate::choose_crypto();
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let control = StdUnixStream::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    control.set_nonblocking(true)?;
    crate::on_runtime(async {
        let mut lines = BufReader::new(UnixStream::from_std(control)?);
        let Some(first) = next(&mut lines).await? else { return Ok(()) };
        let key = AccessKey::parse(&first.key).context("the key of the page is none")?;
        let (newest, api) = watch::channel(first.connect().await?);
        let newer = async {
            while let Some(credential) = next(&mut lines).await? {
                newest.send_replace(credential.connect().await?);
            }
            anyhow::Ok(())
        };
        let upstream = Arc::new(ApiUpstream::following(api));
        tokio::select! {
            ended = newer => ended,
            served = maille_dashboard::serve(listener, upstream, key, &args.whereabouts, std::future::pending()) => {
                Ok(served?)
            }
        }
    })
}

/// The next credential; none when the parent is gone.
async fn next(lines: &mut BufReader<UnixStream>) -> Result<Option<Credential>> {
    let mut line = String::new();
    let read = lines.take(MAX_LINE_BYTES).read_line(&mut line).await.context("the control socket broke")?;
    if read == 0 {
        return Ok(None);
    }
    ensure!(line.ends_with('\n'), "the control socket said something that is no credential");
    serde_json::from_str(&line).map(Some).context("the control socket said something that is no credential")
}
