//! Serves the API on 127.0.0.1 with a data directory of its own, to try clients against it.
//!
//! `cargo run -p maille-apiserver --example api [PORT [DATA_DIR]]`

use std::net::TcpListener;

use maille_apiserver::{Options, Ready, serve};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().map_or(Ok(0), |p| p.parse())?;
    let scratch = std::env::temp_dir().join(format!("maille-api-{}", std::process::id()));
    let data_dir = arguments.next().map_or(scratch, Into::into);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let options = Options::new(&data_dir, vec![listener]);
    let (ready, told) = tokio::sync::oneshot::channel::<Ready>();
    tokio::spawn(async move {
        if let Ok(ready) = told.await {
            println!("https://{}", ready.addresses[0]);
            println!("export KUBECONFIG={}", data_dir.join("kubeconfig").display());
        }
    });
    serve(options, ready).await?;
    Ok(())
}
