//! `maille dashboard`: the page that shows who talks to whom.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context, Result};
use maille_dashboard::AccessKey;

use crate::Outcome;
use crate::client::{Api, ApiArgs};
use crate::dashboard::{ApiUpstream, DEFAULT_PORT, Place};
use crate::output::out;
use crate::signals;

/// Serves a page in the browser, over whatever mesh the kubeconfig names, until Ctrl-C.
///
/// It reads the control plane's flows through the API's proxy (`get` on `services/proxy` of istio-system/istiod), and
/// lists Pods, Deployments and Services. Whoever has the printed address sees all of that.
#[derive(Debug, clap::Args)]
pub(crate) struct DashboardArgs {
    /// Port to listen on; without it 8480, or any other that is free.
    #[arg(long)]
    port: Option<u16>,
    /// Address to listen on. Beyond loopback, the page and its key go over the network in the clear.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: DashboardArgs) -> Result<Outcome> {
    let api = Api::connect(&args.api).await?;
    let listener = listen(args.address, args.port)?;
    let address = listener.local_addr().context("the listener has no address")?;
    let key = AccessKey::parse(&Place::key(args.api.data_dir())).context("the page's key is none")?;
    if !address.ip().is_loopback() {
        eprintln!("warning: {address} can be reached by others, and what it says goes there in the clear");
    }
    out!("{}", key.url(reachable(address)));
    eprintln!("Open this address in a browser; Ctrl-C ends the page.");
    let upstream = Arc::new(ApiUpstream::new(api));
    let whereabouts = "the terminal in which `maille dashboard` runs has printed it";
    maille_dashboard::serve(listener, upstream, key, whereabouts, signals::shutdown())
        .await
        .with_context(|| format!("cannot serve at {address}"))?;
    Ok(Outcome::Fine)
}

/// Listens on the port that is asked for; else on the usual one, or any other if that is taken.
fn listen(address: IpAddr, port: Option<u16>) -> Result<TcpListener> {
    let bind = |port: u16| {
        let wanted = SocketAddr::new(address, port);
        TcpListener::bind(wanted).with_context(|| format!("cannot listen on {wanted}"))
    };
    match port {
        Some(port) => bind(port),
        None => bind(DEFAULT_PORT).or_else(|_| bind(0)),
    }
}

/// What a browser on this machine can open: every address means loopback there.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
        }
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), address.port())
        }
        other => other,
    }
}
