//! A pod in one line: how many containers are ready, the one word for its state, how often it restarted.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, NAME, NONE, age, at, at_or, containers, find, has_condition, human, is_deleting, labels,
    list, map, name, parse, text, wide,
};
use crate::kinds::Columns;

pub static POD: Columns = Columns {
    definitions: &[
        NAME,
        text("Ready"),
        text("Status"),
        text("Restarts"),
        AGE,
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    cells,
};

pub static POD_TEMPLATE: Columns = Columns {
    definitions: &[NAME, text("Containers"), text("Images"), text("Pod Labels")],
    cells: |object, _| {
        let [names, images] = containers(object, "template");
        let labels = labels(map(object, "template.metadata.labels"));
        vec![name(object), names, images, labels.into()]
    },
};

/// What the containers of a pod add up to.
struct Sum {
    total: usize,
    ready: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
    status: String,
}

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let sum = Sum::of(pod);
    let restarts = match sum.last_restart {
        Some(at) if sum.restarts != 0 => {
            format!("{} ({} ago)", sum.restarts, human(now.duration_since(at)))
        }
        _ => sum.restarts.to_string(),
    };
    let ip = list(pod, "status.podIPs")
        .first()
        .map_or(at(pod, "status.podIP"), |ip| at(ip, "ip"));
    vec![
        name(pod),
        format!("{}/{}", sum.ready, sum.total).into(),
        sum.status.into(),
        restarts.into(),
        age(pod, now),
        if ip.is_empty() {
            NONE.into()
        } else {
            ip.into()
        },
        at_or(pod, "spec.nodeName", NONE),
        at_or(pod, "status.nominatedNodeName", NONE),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "spec.readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let true_ones = gates
        .iter()
        .filter(|gate| has_condition(pod, at(gate, "conditionType")));
    format!("{}/{}", true_ones.count(), gates.len())
}

// === impl Sum ===

impl Sum {
    fn of(pod: &Value) -> Self {
        let init = list(pod, "spec.initContainers");
        let sidecars = init
            .iter()
            .filter(|container| container["restartPolicy"] == "Always")
            .count();
        let mut sum = Self {
            total: list(pod, "spec.containers").len() + sidecars,
            ready: 0,
            restarts: 0,
            last_restart: None,
            status: phase(pod),
        };
        let initializing = sum.init_containers(pod, init);
        if !initializing || has_condition(pod, "Initialized") {
            sum.containers(pod, init);
        }
        let phase = at(pod, "status.phase");
        if is_deleting(pod) && at(pod, "status.reason") == "NodeLost" {
            sum.status = "Unknown".to_owned();
        } else if is_deleting(pod) && !matches!(phase, "Succeeded" | "Failed") {
            sum.status = "Terminating".to_owned();
        }
        sum
    }

    /// Counts init containers up to the first that is not done; whether there is one.
    fn init_containers(&mut self, pod: &Value, init: &[Value]) -> bool {
        for (i, status) in list(pod, "status.initContainerStatuses").iter().enumerate() {
            self.count_restarts(status);
            let terminated = find(status, "state.terminated");
            if !terminated.is_null() && terminated["exitCode"] == 0 {
                continue;
            }
            if is_sidecar(init, status) && status["started"] == true {
                self.ready += usize::from(status["ready"] == true);
                continue;
            }
            let waiting = at(status, "state.waiting.reason");
            self.status = if !terminated.is_null() {
                format!("Init:{}", ended(terminated))
            } else if !matches!(waiting, "" | "PodInitializing") {
                format!("Init:{waiting}")
            } else {
                format!("Init:{i}/{}", init.len())
            };
            return true;
        }
        false
    }

    fn containers(&mut self, pod: &Value, init: &[Value]) {
        self.restarts = 0;
        self.last_restart = None;
        for status in list(pod, "status.initContainerStatuses") {
            if is_sidecar(init, status) {
                self.count_restarts(status);
            }
        }
        let mut running = false;
        for status in list(pod, "status.containerStatuses").iter().rev() {
            self.count_restarts(status);
            let terminated = find(status, "state.terminated");
            let waiting = at(status, "state.waiting.reason");
            if !waiting.is_empty() {
                self.status = waiting.to_owned();
            } else if !terminated.is_null() {
                self.status = ended(terminated);
            } else if status["ready"] == true && !find(status, "state.running").is_null() {
                running = true;
                self.ready += 1;
            }
        }
        if running && self.status == "Completed" {
            let ready = has_condition(pod, "Ready");
            self.status = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or(0);
        let ended = parse(find(status, "lastState.terminated.finishedAt"));
        self.last_restart = self.last_restart.max(ended);
    }
}

/// The pod's own word for its state, before its containers are asked.
fn phase(pod: &Value) -> String {
    let gated = list(pod, "status.conditions").iter().any(|condition| {
        condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated"
    });
    match at(pod, "status.reason") {
        _ if gated => "SchedulingGated",
        "" => at(pod, "status.phase"),
        reason => reason,
    }
    .to_owned()
}

fn is_sidecar(init: &[Value], status: &Value) -> bool {
    init.iter().any(|container| {
        container["name"] == status["name"] && container["restartPolicy"] == "Always"
    })
}

/// Why a container ended: its reason, else its signal, else its exit code.
fn ended(terminated: &Value) -> String {
    match (at(terminated, "reason"), terminated["signal"].as_i64()) {
        ("", Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        ("", _) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        (reason, _) => reason.to_owned(),
    }
}
