//! The machine's hosts file, for what the node looks up in its own name. Reads it anew when it has changed; writes nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;
use tokio::time::Instant;
use types::error::chain;

/// How long nobody looks whether it has changed.
const QUIET: Duration = Duration::from_secs(2);
/// What is further behind is not read.
const LARGEST: u64 = 1 << 20;
/// Addresses of one name.
const MOST: usize = 16;

type Names = HashMap<String, Vec<IpAddr>>;

pub(crate) struct Hosts {
    path: PathBuf,
    /// Held while the file is read.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    looked: Option<Instant>,
    /// When the file was changed, and its length.
    seen: Option<(SystemTime, u64)>,
    names: Arc<Names>,
}

// === impl Hosts ===

impl Default for Hosts {
    fn default() -> Self {
        Self::of("/etc/hosts")
    }
}

impl Hosts {
    fn of(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            known: Mutex::default(),
        }
    }

    /// IPv4 first, as everywhere; `None` when the file does not say.
    pub(crate) async fn get(&self, name: &str) -> Option<Vec<IpAddr>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.names().await.get(&name).cloned()
    }

    async fn names(&self) -> Arc<Names> {
        let mut known = self.known.lock().await;
        if known.looked.is_none_or(|looked| looked.elapsed() >= QUIET) {
            known.looked = Some(Instant::now());
            if let Err(error) = known.look(&self.path).await {
                tracing::debug!(path = %self.path.display(), error = %chain(&error), "Failed to read the machine's hosts file");
            }
        }
        Arc::clone(&known.names)
    }
}

// === impl Known ===

impl Known {
    async fn look(&mut self, path: &Path) -> std::io::Result<()> {
        let file = tokio::fs::File::open(path).await?;
        let metadata = file.metadata().await?;
        let seen = (metadata.modified()?, metadata.len());
        if self.seen == Some(seen) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes).await?;
        if seen.1 > LARGEST {
            tracing::warn!(path = %path.display(), bytes = seen.1, most = LARGEST, "Only the beginning of the hosts file is read");
        }
        self.names = Arc::new(parse(&String::from_utf8_lossy(&bytes)));
        self.seen = Some(seen);
        Ok(())
    }
}

fn parse(text: &str) -> Names {
    let mut names = Names::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(ip) = words.next().and_then(|ip| ip.parse::<IpAddr>().ok()) else {
            continue;
        };
        for name in words {
            let known = names.entry(name.to_ascii_lowercase()).or_default();
            if known.len() < MOST && !known.contains(&ip) {
                known.push(ip);
            }
        }
    }
    for ips in names.values_mut() {
        ips.sort_by_key(IpAddr::is_ipv6);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_is_read_as_resolvers_read_it() {
        let names = parse(
            "# nothing\n\n127.0.0.1 localhost\n::1\tLocalHost ip6 # ::2 not\nnonsense a\n\
             192.168.1.5 nas nas.lan\n192.168.1.6 nas\n10.0.0.1\n",
        );
        let told = |name: &str| {
            let ips = names.get(name).into_iter().flatten();
            ips.map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        for (name, expected) in [
            ("localhost", "127.0.0.1 ::1"),
            ("ip6", "::1"),
            ("nas", "192.168.1.5 192.168.1.6"),
            ("nas.lan", "192.168.1.5"),
            ("a", ""),
            ("not", ""),
        ] {
            assert_eq!(told(name), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_missing_one_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let hosts = Hosts::of(&path);
        assert_eq!(hosts.get("nas").await, None);
        let look_again = async || hosts.known.lock().await.looked = None;
        std::fs::write(&path, "192.168.1.5 nas\n").unwrap();
        look_again().await;
        let found = Some(vec![IpAddr::from([192, 168, 1, 5])]);
        assert_eq!(hosts.get("NAS.").await, found);
        std::fs::remove_file(&path).unwrap();
        look_again().await;
        assert_eq!(hosts.get("nas").await, found, "what was known stays");
    }
}
