//! The demo shop: services that answer, and that call each other by themselves.
//!
//! One role of the binary plays every service of `examples/shop/`; what it is called and
//! whom it calls are arguments. It knows nothing of the mesh: what is refused, is refused
//! by the sidecars in front of it.

mod caller;
mod server;
mod tls;

use std::time::Duration;

use caller::Call;
use tls::TlsFiles;

/// What one service of the shop is and does.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ShopArgs {
    /// Name of the service, told to every caller.
    #[arg(long)]
    name: String,
    /// Port that the service answers on.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Port with plaintext metrics, if the service has one.
    #[arg(long)]
    metrics_port: Option<u16>,
    #[command(flatten)]
    tls: TlsFiles,
    /// A call to make again and again: "METHOD http://HOST[:PORT]/PATH".
    #[arg(long = "call", value_name = "METHOD URL")]
    calls: Vec<Call>,
    /// Milliseconds between two rounds of calls.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
}

/// Serves and calls until SIGTERM or SIGINT.
pub(crate) fn run(args: ShopArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let counters = server::Counters::default();
        let service = server::listen(args.port).await?;
        match args.tls.server()? {
            Some(tls) => {
                tokio::spawn(server::serve_tls(service, tls, args.name.clone(), counters.clone()));
            }
            None => {
                tokio::spawn(server::serve(service, args.name.clone(), counters.clone()));
            }
        }
        if let Some(port) = args.metrics_port {
            let listener = server::listen(port).await?;
            tokio::spawn(server::serve_metrics(listener, args.name.clone(), counters.clone()));
        }
        println!("{} listens on port {}", args.name, args.port);
        let interval = Duration::from_millis(args.interval_ms.max(10));
        for call in args.calls {
            tokio::spawn(caller::repeat(call, interval));
        }
        crate::signals::shutdown().await;
        Ok(())
    })
}
