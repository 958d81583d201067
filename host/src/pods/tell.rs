//! What is told about a pod: Events in upstream's words. Pure but for handing them to the recorder.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};

use super::context::now;
use super::ephemeral;
use super::events::{Recorder, Severity, Told};
use super::lifecycle::{Trouble, Why};
use super::probes::{Answer, Kind};
use super::status::full_name;
use crate::images::{Image, Origin};

/// Tells about one pod.
#[derive(Clone)]
pub(super) struct Teller {
    recorder: Recorder,
    about: Arc<ObjectReference>,
}

impl Teller {
    pub(super) fn new(recorder: Recorder, pod: &Pod) -> Teller {
        let metadata = &pod.metadata;
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            field_path: None,
        };
        Teller {
            recorder,
            about: Arc::new(about),
        }
    }

    pub(super) fn pod(&self, severity: Severity, reason: &'static str, message: String) {
        self.tell(None, severity, reason, message);
    }

    fn container(&self, at: &At<'_>, severity: Severity, reason: &'static str, message: String) {
        self.tell(
            Some(format!("spec.{}{{{}}}", at.list, at.spec.name)),
            severity,
            reason,
            message,
        );
    }

    fn tell(
        &self,
        field_path: Option<String>,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        self.recorder.tell(Told {
            about: Arc::clone(&self.about),
            field_path,
            severity,
            reason,
            message,
            at: now(),
        });
    }

    pub(super) fn pulling(&self, at: &At<'_>) {
        self.container(
            at,
            Severity::Normal,
            "Pulling",
            format!("Pulling image \"{}\"", at.image()),
        );
    }

    pub(super) fn pulled(&self, at: &At<'_>, image: &Image, origin: Origin) {
        let message = match origin {
            Origin::Present => format!(
                "Container image \"{}\" already present on machine",
                at.image()
            ),
            Origin::Pulled(took) => format!(
                "Successfully pulled image \"{}\" in {} ({} including waiting). Image size: {} bytes.",
                at.image(),
                short(took),
                short(took),
                image.size
            ),
        };
        self.container(at, Severity::Normal, "Pulled", message);
    }

    pub(super) fn trouble(&self, at: &At<'_>, trouble: &Trouble) {
        let pull = trouble.reason == "ErrImagePull";
        if pull {
            let message = format!(
                "Failed to pull image \"{}\": {}",
                at.image(),
                trouble.message
            );
            self.container(at, Severity::Warning, "Failed", message);
            self.container(
                at,
                Severity::Warning,
                "Failed",
                "Error: ErrImagePull".to_owned(),
            );
        } else {
            let reason = match trouble.reason {
                "InvalidImageName" => "InspectFailed",
                "ErrImageNeverPull" => "ErrImageNeverPull",
                _ => "Failed",
            };
            let message = match reason {
                "Failed" => format!("Error: {}", trouble.message),
                _ => trouble.message.clone(),
            };
            self.container(at, Severity::Warning, reason, message);
        }
    }

    pub(super) fn started(&self, at: &At<'_>) {
        let name = &at.spec.name;
        self.container(
            at,
            Severity::Normal,
            "Created",
            format!("Created container: {name}"),
        );
        self.container(
            at,
            Severity::Normal,
            "Started",
            format!("Started container {name}"),
        );
    }

    pub(super) fn killing(&self, at: &At<'_>, why: Why) {
        let name = &at.spec.name;
        let message = match why {
            Why::PodEnds => format!("Stopping container {name}"),
            Why::Liveness => format!("Container {name} failed liveness probe, will be restarted"),
            Why::Startup => format!("Container {name} failed startup probe, will be restarted"),
            Why::Replaced => format!("Container {name} definition changed, will be restarted"),
        };
        self.container(at, Severity::Normal, "Killing", message);
    }

    pub(super) fn back_off(&self, at: &At<'_>, pod: &Pod) {
        let message = format!(
            "Back-off restarting failed container {} in pod {}",
            at.spec.name,
            full_name(pod)
        );
        self.container(at, Severity::Warning, "BackOff", message);
    }

    pub(super) fn back_off_pulling(&self, at: &At<'_>) {
        let message = format!("Back-off pulling image \"{}\"", at.image());
        self.container(at, Severity::Normal, "BackOff", message);
    }

    pub(super) fn pre_stop_failed(&self, at: &At<'_>, error: &str) {
        let message = format!("PreStopHook failed: {error}");
        self.container(at, Severity::Warning, "FailedPreStopHook", message);
    }

    /// Nothing, if all is well.
    pub(super) fn probed(&self, at: &At<'_>, kind: Kind, answer: &Answer) {
        let probe = kind.title();
        let message = match answer {
            Answer::Well => return,
            Answer::Badly(what) => format!("{probe} probe failed: {what}"),
            Answer::Unknown(why) => {
                format!("{probe} probe errored and resulted in unknown state: {why}")
            }
        };
        self.container(at, Severity::Warning, "Unhealthy", message);
    }
}

/// Which container is meant.
pub(super) struct At<'a> {
    pub(super) spec: &'a Container,
    /// Where it stands in the spec: `initContainers`.
    pub(super) list: &'static str,
}

impl<'a> At<'a> {
    /// The container with this place among the pod's.
    pub(super) fn of(pod: &Pod, index: usize, spec: &'a Container) -> Self {
        let (init, main) = pod.spec.as_ref().map_or((0, 0), |spec| {
            let init = spec.init_containers.as_ref().map_or(0, Vec::len);
            (init, ephemeral::split(spec).0.len())
        });
        let list = match index {
            _ if index < init => "initContainers",
            _ if index < init + main => "containers",
            _ => "ephemeralContainers",
        };
        Self { spec, list }
    }

    fn image(&self) -> &str {
        self.spec.image.as_deref().unwrap_or_default()
    }
}

/// `1.234s`, `56ms`.
fn short(duration: Duration) -> String {
    if duration >= Duration::from_secs(1) {
        format!("{:.3}s", duration.as_secs_f64())
    } else {
        format!("{}ms", duration.as_millis())
    }
}
