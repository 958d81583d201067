//! The API server alone, for trying things by hand: `cargo run -p api --example serve -- --data-dir /tmp/x --listen 127.0.0.1:0`.

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
    let started = std::time::Instant::now();
    let handle = api::start(flags.api.into_config("coracle-data".into())).await?;
    println!(
        "{} in {:?}: export KUBECONFIG={}",
        handle.url(),
        started.elapsed(),
        handle.kubeconfig().display()
    );
    tokio::signal::ctrl_c().await?;
    handle.shutdown().await;
    Ok(())
}
