//! An API server alone, on the loopback with a temporary store: for trying clients on it by hand.
//! `cargo run -p apiserver --example standalone -- [PORT]`, then use the kubeconfig that it prints.

#[path = "../tests/common/mod.rs"]
mod common;

#[tokio::main]
async fn main() {
    let port = std::env::args().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    let mut fixture = common::start().await;
    fixture.serve(port).await;
    println!("export KUBECONFIG={}", fixture.kubeconfig().display());
    let _ = tokio::signal::ctrl_c().await;
}
