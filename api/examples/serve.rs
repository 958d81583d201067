//! The API server alone, for trying things by hand: `cargo run -p api --example serve -- --data-dir /tmp/x --listen 127.0.0.1:0`.

#![expect(clippy::print_stdout, reason = "it talks to whoever runs it by hand")]

use clap::Parser as _;

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    api: api::Args,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let flags = Flags::parse();
    let handle = api::start(flags.api.into_config("coracle-data".into())).await?;
    let kubeconfig = handle.kubeconfig().display();
    println!("{}: export KUBECONFIG={kubeconfig}", handle.url());
    tokio::signal::ctrl_c().await?;
    handle.shutdown().await;
    Ok(())
}
