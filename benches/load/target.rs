//! A server under load: rounds of the closed loop against one address, with the processor time its processes needed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;

use crate::cluster::{PATIENCE, cpu, median};
use crate::load::{Connection, run};

/// How long one round lasts, and from how many connections.
const ROUND: Duration = Duration::from_secs(2);
const CLIENTS: usize = 32;

pub(crate) struct Target {
    pub(crate) name: &'static str,
    address: SocketAddr,
    /// Whose processor time counts.
    processes: Vec<u32>,
    rounds: Vec<Round>,
}

#[derive(Clone, Copy)]
pub(crate) struct Round {
    pub(crate) per_second: f64,
    /// Milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Microseconds of the servers' processor time for each request.
    pub(crate) cpu: f64,
}

// === impl Target ===

impl Target {
    pub(crate) fn new(name: &'static str, address: SocketAddr, processes: &[u32]) -> Self {
        Self {
            name,
            address,
            processes: processes.to_vec(),
            rounds: Vec::new(),
        }
    }

    fn request(&self) -> Vec<u8> {
        format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", self.address).into_bytes()
    }

    /// Waits until it answers at all.
    pub(crate) async fn answers(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let once = async {
                let mut connection = Connection::open(self.address, None).await?;
                connection.call(&self.request()).await
            };
            match once.await {
                Ok((200, _)) => return Ok(()),
                other if Instant::now() > deadline => {
                    bail!("{} does not answer: {other:?}", self.name)
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    pub(crate) async fn round(&mut self) -> Result<()> {
        let request = self.request();
        let bytes = request.clone();
        run(self.address, None, CLIENTS, ROUND / 8, move |_, _| {
            bytes.clone()
        })
        .await?;
        let before = self.cpu()?;
        let outcome = run(self.address, None, CLIENTS, ROUND, move |_, _| {
            request.clone()
        })
        .await
        .with_context(|| self.name)?;
        let used = self.cpu()?.saturating_sub(before);
        self.rounds.push(Round {
            per_second: outcome.per_second(),
            p50: outcome.quantile(0.5).as_secs_f64() * 1e3,
            p99: outcome.quantile(0.99).as_secs_f64() * 1e3,
            cpu: used.as_secs_f64() * 1e6 / outcome.latencies.len() as f64,
        });
        Ok(())
    }

    fn cpu(&self) -> Result<Duration> {
        self.processes.iter().map(|process| cpu(*process)).sum()
    }

    pub(crate) fn median(&self, of: fn(&Round) -> f64) -> f64 {
        median(&self.rounds.iter().map(of).collect::<Vec<_>>())
    }
}
