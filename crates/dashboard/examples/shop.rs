//! The page over a mesh on file, to look at: `cargo run -p maille-dashboard --example shop`, for the demo shop, or with
//! the name of a file that holds an answer of `/flows`.

#[path = "../tests/support/mod.rs"]
mod support;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut mesh = support::Fixture::default();
    if let Some(file) = std::env::args().nth(1) {
        mesh.flows = support::as_of_now(&std::fs::read_to_string(file).expect("a file of flows"));
        mesh.recent.clone_from(&mesh.flows);
    }
    let address = support::serve(std::sync::Arc::new(mesh));
    println!("http://{address}/?key={}", support::KEY);
    std::future::pending().await
}
