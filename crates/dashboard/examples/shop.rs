//! The page over a mesh on file, to look at: `cargo run -p maille-dashboard --example shop`.

#[path = "../tests/support/mod.rs"]
mod support;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let address = support::serve(std::sync::Arc::default());
    println!("http://{address}/?key={}", support::KEY);
    std::future::pending().await
}
