//! A machine's readings → NodeStatus. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use types::condition;
use types::quantity::Quantity;
use types::well_known::GIT_VERSION;

use super::Identity;
use super::machine::{Machine, Readings};

const MIB: u64 = 1024 * 1024;
/// The process itself and the machine's own work: this much memory, or a tenth where the machine is small.
const RESERVED_MEMORY: u64 = 256 * MIB;
const RESERVED_CPU_MILLIS: i64 = 50;
/// Less free memory than this is pressure (as upstream's eviction threshold).
const LEAST_MEMORY: u64 = 100 * MIB;
/// Less free disk than this is pressure, or than a tenth where the disk is small.
///
/// Differs from Kubernetes: a tenth of any disk is its threshold; a developer's full 1 TB disk would make the node unusable
/// with 100 GB free.
const LEAST_DISK: u64 = 1024 * MIB;
/// So many threads in use of a hundred possible are pressure.
const MOST_THREADS_PERCENT: u64 = 90;

/// What the node as a whole is doing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Stage {
    /// It has no network yet.
    Starting,
    #[default]
    Running,
    /// It was told to stop and ends its pods.
    ShuttingDown,
}

pub(crate) fn capacity(machine: &Machine, max_pods: u32) -> BTreeMap<String, Quantity> {
    BTreeMap::from([
        (
            "cpu".to_owned(),
            Quantity::from_units(i64::try_from(machine.cpus).unwrap_or(1)),
        ),
        (
            "memory".to_owned(),
            Quantity::from_bytes(machine.memory_bytes),
        ),
        (
            "ephemeral-storage".to_owned(),
            Quantity::from_bytes(machine.disk_bytes),
        ),
        ("pods".to_owned(), Quantity::from_units(i64::from(max_pods))),
    ])
}

/// Capacity without what the node keeps for itself.
pub(crate) fn allocatable(capacity: &BTreeMap<String, Quantity>) -> BTreeMap<String, Quantity> {
    let reserved = |name: &str, whole: Quantity| match name {
        "cpu" => Quantity::from_millis((whole.millis() - RESERVED_CPU_MILLIS).max(0)),
        "memory" => Quantity::from_bytes(whole.bytes() - RESERVED_MEMORY.min(whole.bytes() / 10)),
        "ephemeral-storage" => {
            Quantity::from_bytes(whole.bytes() - LEAST_DISK.min(whole.bytes() / 10))
        }
        _ => whole,
    };
    capacity
        .iter()
        .map(|(name, whole)| (name.clone(), reserved(name, *whole)))
        .collect()
}

pub(crate) fn status(
    identity: &Identity,
    stage: Stage,
    readings: &Readings,
    images: Vec<ContainerImage>,
    old: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let machine = &identity.machine;
    let capacity = capacity(machine, identity.max_pods);
    let address = |type_: &str, address: &str| NodeAddress {
        type_: type_.to_owned(),
        address: address.to_owned(),
    };
    let mut conditions = old
        .and_then(|old| old.conditions.clone())
        .unwrap_or_default();
    for condition in own_conditions(machine, stage, readings, now) {
        condition::set(&mut conditions, condition);
    }
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", &identity.address),
            address("Hostname", &identity.name),
        ]),
        allocatable: Some(listed(&allocatable(&capacity))),
        capacity: Some(listed(&capacity)),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(identity.port),
            }),
        }),
        images: Some(images).filter(|images| !images.is_empty()),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: concat!("wasmtime://", "48").to_owned(),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: GIT_VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            swap: None,
        }),
        ..NodeStatus::default()
    }
}

fn listed(amounts: &BTreeMap<String, Quantity>) -> BTreeMap<String, ApiQuantity> {
    amounts
        .iter()
        .map(|(name, amount)| (name.clone(), ApiQuantity::from(*amount)))
        .collect()
}

fn own_conditions(
    machine: &Machine,
    stage: Stage,
    readings: &Readings,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let least_disk = LEAST_DISK.min(machine.disk_bytes / 10);
    let memory = readings
        .memory_available
        .map(|available| available < LEAST_MEMORY);
    let disk = readings
        .disk_available
        .map(|available| available < least_disk);
    let threads = readings
        .threads
        .map(|(used, most)| used * 100 > most * MOST_THREADS_PERCENT);
    let condition = |type_: &str, status: &str, reason: &str, message: &str| NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(Time(second(now))),
        last_transition_time: Some(Time(second(now))),
    };
    let pressure = |type_: &str,
                    pressed: Option<bool>,
                    [yes, no]: [&str; 2],
                    [bad, good]: [&str; 2]| match pressed {
        Some(true) => condition(type_, "True", yes, bad),
        Some(false) => condition(type_, "False", no, good),
        None => condition(
            type_,
            "Unknown",
            "NotMeasured",
            "the kernel's figures could not be read",
        ),
    };
    let ready = match stage {
        Stage::Running => condition(
            "Ready",
            "True",
            "KubeletReady",
            "kubelet is posting ready status",
        ),
        Stage::Starting => condition(
            "Ready",
            "False",
            "KubeletNotReady",
            "container runtime network not ready: the node waits for its podCIDR or for its certificate",
        ),
        Stage::ShuttingDown => {
            condition("Ready", "False", "KubeletNotReady", "node is shutting down")
        }
    };
    vec![
        pressure(
            "MemoryPressure",
            memory,
            ["KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"],
            [
                "kubelet has insufficient memory available",
                "kubelet has sufficient memory available",
            ],
        ),
        pressure(
            "DiskPressure",
            disk,
            ["KubeletHasDiskPressure", "KubeletHasNoDiskPressure"],
            ["kubelet has disk pressure", "kubelet has no disk pressure"],
        ),
        pressure(
            "PIDPressure",
            threads,
            ["KubeletHasInsufficientPID", "KubeletHasSufficientPID"],
            [
                "kubelet has insufficient PID available",
                "kubelet has sufficient PID available",
            ],
        ),
        ready,
    ]
}

/// Heartbeat times apart, do both say the same?
pub(crate) fn same(old: &NodeStatus, new: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let mut conditions = status.conditions.clone().unwrap_or_default();
        for condition in &mut conditions {
            condition.last_heartbeat_time = None;
        }
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        (
            conditions,
            status.capacity.clone(),
            status.allocatable.clone(),
            status.addresses.clone(),
            status.node_info.clone(),
            status.daemon_endpoints.clone(),
            status.images.clone().unwrap_or_default(),
        )
    };
    plain(old) == plain(new)
}

fn second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            name: "n1".to_owned(),
            address: "127.0.0.1".to_owned(),
            port: 10250,
            pod_cidr: Some("100.64.0.0/18".to_owned()),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            max_pods: 100,
            machine: Machine {
                cpus: 2,
                memory_bytes: 8 << 30,
                disk_bytes: 100 << 30,
                architecture: "amd64",
                ..Machine::default()
            },
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn readings(memory: u64, disk: u64) -> Readings {
        Readings {
            memory_available: Some(memory),
            disk_available: Some(disk),
            threads: Some((500, 30_000)),
        }
    }

    fn state<'a>(status: &'a NodeStatus, type_: &str) -> &'a str {
        let mut conditions = status.conditions.iter().flatten();
        conditions
            .find(|condition| condition.type_ == type_)
            .map_or("", |condition| &condition.status)
    }

    #[test]
    fn a_healthy_machine_is_ready_without_pressure() {
        let status = status(
            &identity(),
            Stage::Running,
            &readings(4 << 30, 50 << 30),
            Vec::new(),
            None,
            at(0),
        );
        assert_eq!(state(&status, "Ready"), "True");
        for type_ in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
            assert_eq!(state(&status, type_), "False", "{type_}");
        }
        let allocatable = status.allocatable.expect("allocatable");
        assert_eq!(allocatable["cpu"].0, "1950m");
        assert_eq!(allocatable["pods"].0, "100");
    }

    #[test]
    fn what_runs_short_is_pressure_and_what_is_unknown_is_said_so() {
        let short = status(
            &identity(),
            Stage::Running,
            &readings(10 << 20, 10 << 20),
            Vec::new(),
            None,
            at(0),
        );
        assert_eq!(
            (
                state(&short, "MemoryPressure"),
                state(&short, "DiskPressure")
            ),
            ("True", "True")
        );
        let blind = status(
            &identity(),
            Stage::Running,
            &Readings::default(),
            Vec::new(),
            None,
            at(0),
        );
        assert_eq!(state(&blind, "MemoryPressure"), "Unknown");
    }

    #[test]
    fn a_node_that_starts_or_stops_is_not_ready_and_says_why() {
        for (stage, why) in [
            (Stage::Starting, "network not ready"),
            (Stage::ShuttingDown, "node is shutting down"),
        ] {
            let readings = readings(4 << 30, 50 << 30);
            let status = status(&identity(), stage, &readings, Vec::new(), None, at(0));
            let mut conditions = status.conditions.iter().flatten();
            let ready = conditions.find(|condition| condition.type_ == "Ready");
            let ready = ready.expect("a condition");
            assert_eq!(ready.status, "False");
            assert!(
                ready
                    .message
                    .as_ref()
                    .is_some_and(|text| text.contains(why))
            );
        }
    }

    #[test]
    fn a_heartbeat_alone_is_no_change() {
        let first = status(
            &identity(),
            Stage::Running,
            &readings(4 << 30, 50 << 30),
            Vec::new(),
            None,
            at(0),
        );
        let second = status(
            &identity(),
            Stage::Running,
            &readings(3 << 30, 49 << 30),
            Vec::new(),
            Some(&first),
            at(10),
        );
        assert!(same(&first, &second));
        let third = status(
            &identity(),
            Stage::Running,
            &readings(1 << 20, 49 << 30),
            Vec::new(),
            Some(&first),
            at(20),
        );
        assert!(!same(&first, &third));
    }
}
