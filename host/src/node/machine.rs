//! What the machine is and how it is doing, read from the kernel. Reads; judges nothing. What cannot be read is `None`.

use std::fs;
use std::path::Path;

use super::cgroup;

/// What does not change while the process runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) cpus: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    /// As Go names it: `amd64`, `arm64`.
    pub(crate) architecture: &'static str,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
}

/// How it is doing at this moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readings {
    pub(crate) memory_available: Option<u64>,
    pub(crate) disk_available: Option<u64>,
    /// Threads of the whole machine, and how many there may be.
    pub(crate) threads: Option<(u64, u64)>,
}

pub(crate) fn describe(data_dir: &Path) -> Machine {
    let meminfo = text("/proc/meminfo");
    let total = kilobytes(&meminfo, "MemTotal").unwrap_or(0) * 1024;
    let allowed = cgroup::memory().limit;
    let uname = nix::sys::utsname::uname().ok();
    let machine_id = text("/etc/machine-id");
    let system_uuid = match text("/sys/class/dmi/id/product_uuid") {
        uuid if uuid.is_empty() => machine_id.clone(),
        uuid => uuid,
    };
    Machine {
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        memory_bytes: allowed.map_or(total, |allowed| allowed.min(total)),
        disk_bytes: disk(data_dir).map_or(0, |(total, _)| total),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        machine_id,
        system_uuid,
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        kernel: uname
            .map(|uname| uname.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        os_image: os_image(&text("/etc/os-release")),
    }
}

pub(crate) fn read(data_dir: &Path) -> Readings {
    let meminfo = text("/proc/meminfo");
    let most = text("/proc/sys/kernel/threads-max").parse::<u64>().ok();
    let pids = text("/proc/sys/kernel/pid_max").parse::<u64>().ok();
    let most = most.into_iter().chain(pids).min();
    let available = kilobytes(&meminfo, "MemAvailable").map(|kilobytes| kilobytes * 1024);
    // The kernel ends us when either is used up.
    let available = available.into_iter().chain(cgroup::memory().available);
    Readings {
        memory_available: available.min(),
        disk_available: disk(data_dir).map(|(_, available)| available),
        threads: threads(&text("/proc/loadavg")).zip(most),
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// `MemTotal:       16316412 kB`
fn kilobytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `0.31 0.40 0.37 2/843 12345`: the fourth field's second number.
fn threads(loadavg: &str) -> Option<u64> {
    loadavg
        .split_whitespace()
        .nth(3)?
        .split_once('/')?
        .1
        .parse()
        .ok()
}

/// `PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"`
fn os_image(release: &str) -> String {
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(
        || "Linux".to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

/// Bytes of the file system: all, and free for us.
fn disk(path: &Path) -> Option<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let block = stat.fragment_size();
    Some((stat.blocks() * block, stat.blocks_available() * block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        assert_eq!(
            kilobytes("MemTotal: 10 kB\nMemAvailable:  7 kB", "MemAvailable"),
            Some(7)
        );
        assert_eq!(threads("0.31 0.40 0.37 2/843 12345"), Some(843));
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn this_machine_can_be_described() {
        let machine = describe(Path::new("/"));
        assert!(machine.cpus > 0);
        let readings = read(Path::new("/"));
        assert!(readings.disk_available.is_some());
    }
}
