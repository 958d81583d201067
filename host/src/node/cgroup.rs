//! What control groups leave of the machine's memory to this process: in a container, or under `MemoryMax=` of systemd, less
//! than the machine has. Version 2 of control groups; what cannot be read limits nothing. Reads; judges nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted, and what says which one is ours.
const ROOT: &str = "/sys/fs/cgroup";
const OURS: &str = "/proc/self/cgroup";

/// Bytes; `None`: no group says so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// The least that our group or one above it may use.
    pub(super) limit: Option<u64>,
    /// The least that is left of that, what the kernel can take back at once counted as left.
    pub(super) available: Option<u64>,
}

pub(super) fn memory() -> Memory {
    let ours = fs::read_to_string(OURS).unwrap_or_default();
    memory_in(Path::new(ROOT), &ours)
}

fn memory_in(root: &Path, ours: &str) -> Memory {
    let mut memory = Memory::default();
    for group in groups(root, ours) {
        let number = |file: &str| {
            let text = fs::read_to_string(group.join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        // `max`, where there is no limit, is no number.
        let Some(limit) = number("memory.max") else {
            continue;
        };
        memory.limit = Some(memory.limit.map_or(limit, |least| least.min(limit)));
        let Some(used) = number("memory.current") else {
            continue;
        };
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let used = used.saturating_sub(inactive(&stat));
        let left = limit.saturating_sub(used);
        memory.available = Some(memory.available.map_or(left, |least| least.min(left)));
    }
    memory
}

/// Our group and all above it. `0::/system.slice/coracle.service`; in a container usually `0::/`. What is above what we may
/// see begins with `/..`.
fn groups(root: &Path, ours: &str) -> Vec<PathBuf> {
    let path = ours.lines().find_map(|line| line.strip_prefix("0::"));
    let mut group = root.to_owned();
    let mut groups = vec![group.clone()];
    let parts = path.unwrap_or_default().split('/');
    for part in parts.filter(|part| !part.is_empty()) {
        if part == ".." {
            return vec![root.to_owned()];
        }
        group.push(part);
        groups.push(group.clone());
    }
    groups
}

/// Pages of files that were not used lately.
fn inactive(stat: &str) -> u64 {
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "));
    line.and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn group(root: &Path, path: &str, max: &str, current: u64, inactive: u64) {
        let group = root.join(path);
        fs::create_dir_all(&group).expect("made");
        let write = |name: &str, text: String| {
            fs::write(group.join(name), text).expect("written");
        };
        write("memory.max", format!("{max}\n"));
        write("memory.current", format!("{current}\n"));
        write(
            "memory.stat",
            format!("anon 1\nfile 2\ninactive_file {inactive}\nactive_file 3\n"),
        );
    }

    #[test]
    fn the_tightest_group_above_the_process_says_what_is_there_and_what_is_left() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        let service = "0::/system.slice/coracle.service\n";
        assert_eq!(memory_in(root, service), Memory::default(), "none there");

        let limited = (512 * MIB).to_string();
        group(root, "system.slice", &(600 * MIB).to_string(), 590 * MIB, 0);
        group(
            root,
            "system.slice/coracle.service",
            &limited,
            500 * MIB,
            100 * MIB,
        );
        let found = memory_in(root, service);
        assert_eq!(found.limit, Some(512 * MIB));
        assert_eq!(found.available, Some(10 * MIB), "a neighbour uses it");

        group(root, "system.slice", "max", 590 * MIB, 0);
        let found = memory_in(root, service);
        assert_eq!(found.limit, Some(512 * MIB));
        assert_eq!(found.available, Some(112 * MIB), "the cache can go");
        assert_eq!(memory_in(root, "0::/other\n"), Memory::default());
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        group(root, "", &(64 * MIB).to_string(), 80 * MIB, 0);
        for ours in ["0::/\n", "0::/../elsewhere\n", "", "1:name=x:/y\n0::/\n"] {
            let found = memory_in(root, ours);
            assert_eq!(found.limit, Some(64 * MIB), "{ours:?}");
            assert_eq!(found.available, Some(0), "{ours:?}");
        }
    }
}
