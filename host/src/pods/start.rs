//! Starting one instance of a container: environment, mounts, component, instance, HTTP. Acts; keeps nothing itself.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use types::quantity::Quantity;
use types::well_known::ANNOTATION_REUSE;

use super::context::Context;
use super::environment::{self, Sources};
use super::exec::{self, Beside, Interrupts, Screen, Stdin};
use super::known::Record;
use super::lifecycle::Trouble;
use super::logs::{self, Log};
use super::sandbox::{self, Directories};
use super::{hooks, objects, refusal, toolbox, volumes};
use crate::images::Image;
use crate::network::{PodNetwork, Ports, Serving};
use crate::runtime::{
    Component, Limits, LoadError, LogSink, Mount, Reuse, Running, StartError, Workload,
};

/// The Services a pod is told of must be known once; after this long it starts without.
const SERVICES: Duration = Duration::from_secs(5);
/// Requests at once in one instance of a 0.3 component, when an annotation says how many it may answer in all.
const CONCURRENT: u32 = 16;

/// Everything one start needs.
pub(super) struct Job {
    pub(super) context: Arc<Context>,
    pub(super) pod: Arc<Pod>,
    pub(super) record: Arc<Record>,
    pub(super) container: usize,
    pub(super) instance: u32,
    pub(super) image: Arc<Image>,
    pub(super) network: Arc<PodNetwork>,
    pub(super) directories: Arc<Directories>,
    /// What its environment was made of last.
    pub(super) remembered: objects::Memory,
}

/// A running instance. Dropping it kills it.
pub(super) struct Started {
    pub(super) running: Arc<Running>,
    /// Held so that other pods of the same image share it: the runtime keeps no component nobody holds.
    pub(super) component: Arc<Component>,
    pub(super) serving: Option<Serving>,
    pub(super) log: Arc<Log>,
    /// For `attach`, if the spec says that somebody may type.
    pub(super) stdin: Option<Arc<Stdin>>,
}

/// The container at `index`, init containers first.
pub(super) fn container(pod: &Pod, index: usize) -> Option<&Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .nth(index)
}

fn config_error(message: impl ToString) -> Trouble {
    Trouble {
        reason: "CreateContainerConfigError",
        message: message.to_string(),
    }
}

fn create_error(message: impl ToString) -> Trouble {
    Trouble {
        reason: "CreateContainerError",
        message: message.to_string(),
    }
}

fn run_error(message: impl ToString) -> Trouble {
    Trouble {
        reason: "RunContainerError",
        message: message.to_string(),
    }
}

/// Cancel by dropping: whatever was started is killed.
pub(super) async fn start(job: Job) -> Result<Started, Trouble> {
    let Some(spec) = container(&job.pod, job.container) else {
        return Err(config_error("the container is gone from the spec"));
    };
    // Those that were there when the pod came are known to be honoured; one that was added since is looked at now.
    let refused = refusal::of_container(spec);
    if !refused.is_empty() {
        return Err(config_error(refused.join("; ")));
    }
    let environment = environment(&job, spec).await?;
    let component = component(&job, spec).await?;
    let log_directory = log_directory(&job.context, &job.pod);
    let log = job
        .context
        .logs
        .open(&log_directory, &spec.name, job.instance);
    if let Some(old) = job.instance.checked_sub(2) {
        logs::forget(&log_directory, &spec.name, old);
    }
    let (workload, stdin) = workload(&job, spec, environment, &log)?;
    let running = job
        .context
        .runtime
        .start(&component, workload)
        .map_err(|error| match error {
            StartError::Mount { ref source, .. } => create_error(format!("{error}: {source}")),
            StartError::Full(_) | StartError::Engine(_) => run_error(error),
        })?;
    let running = Arc::new(running);
    let serving = match running.http() {
        Some(handler) => {
            let serving = job.network.serve_http(ports(spec), handler);
            Some(serving.map_err(|error| {
                run_error(format!("cannot serve HTTP on {:?}: {error}", ports(spec)))
            })?)
        }
        None => None,
    };
    let started = Started {
        running,
        component,
        serving,
        log,
        stdin,
    };
    let post_start = spec
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.post_start.as_ref());
    if let Some(hook) = post_start {
        let beside = Beside {
            record: Arc::clone(&job.record),
            container: spec.name.clone(),
            running: Arc::clone(&started.running),
        };
        let (context, network) = (&job.context, &job.network);
        let hook = hooks::run(context, network, spec, &beside, hook, hooks::POST_START);
        tokio::select! {
            biased;
            // How it ended is told by who waits for it next; a hook that is not done then has nothing to do any longer.
            _ = started.running.wait() => {}
            done = hook => {
                done.map_err(|error| run_error(format!("PostStartHookError: {error}")))?;
            }
        }
    }
    Ok(started)
}

pub(super) fn log_directory(context: &Context, pod: &Pod) -> std::path::PathBuf {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let metadata = &pod.metadata;
    context.logs.pod_directory(
        &part(&metadata.namespace),
        &part(&metadata.name),
        &part(&metadata.uid),
    )
}

async fn environment(job: &Job, spec: &Container) -> Result<Vec<(String, String)>, Trouble> {
    let namespace = job.pod.metadata.namespace.as_deref().unwrap_or_default();
    let references = environment::references(spec);
    let sources = if references.is_empty() {
        Sources::default()
    } else {
        objects::fetch_or_recall(&job.context.client, namespace, &references, &job.remembered)
            .await
            .map_err(config_error)?
    };
    let links = links(&job.context, &job.pod, namespace).await;
    let around = job
        .context
        .surroundings(Some(job.network.address().to_string()));
    let mut environment = environment::environment(&job.pod, spec, &sources, &links, &around)
        .map_err(config_error)?;
    if !environment.iter().any(|(name, _)| name == "HOSTNAME") {
        environment.push(("HOSTNAME".to_owned(), sandbox::hostname(&job.pod)));
    }
    if spec.tty == Some(true) && !environment.iter().any(|(name, _)| name == "TERM") {
        environment.push(("TERM".to_owned(), toolbox::TERM.to_owned()));
    }
    Ok(environment)
}

async fn links(context: &Context, pod: &Pod, namespace: &str) -> BTreeMap<String, String> {
    let all = pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
    // Late rather than never: a far API may take its time.
    let _ = tokio::time::timeout(SERVICES, context.services.wait_until_ready()).await;
    let services = context.services.state();
    environment::service_links(services.iter().map(AsRef::as_ref), namespace, all)
}

async fn component(job: &Job, spec: &Container) -> Result<Arc<Component>, Trouble> {
    let (runtime, image) = (&job.context.runtime, &job.image);
    if let Some(component) = runtime.loaded(&image.digest).await {
        return Ok(component);
    }
    let bytes = job
        .context
        .images
        .bytes(image)
        .await
        .map_err(create_error)?;
    runtime
        .load(bytes, &image.digest)
        .await
        .map_err(|error: LoadError| {
            let name = spec.image.as_deref().unwrap_or_default();
            create_error(format!("image \"{name}\" cannot run here: {error}"))
        })
}

/// What to run, and the end of its stdin that others write to.
fn workload(
    job: &Job,
    spec: &Container,
    environment: Vec<(String, String)>,
    log: &Arc<Log>,
) -> Result<(Workload, Option<Arc<Stdin>>), Trouble> {
    let metadata = &job.pod.metadata;
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let mounts = volumes::mounts(&job.pod, spec, &environment).map_err(config_error)?;
    let mounts = mounts
        .into_iter()
        .map(|mounted| mount(mounted, &job.directories))
        .collect::<Result<Vec<Mount>, Trouble>>()?;
    let shelf = job.context.known.shelf();
    let is_toolbox = shelf.is_some_and(|shelf| shelf.is(&job.image.digest));
    let (program, rest) = match job.image.entrypoint.split_first() {
        Some((program, rest)) => (program.as_str(), rest),
        None if is_toolbox => (toolbox::PROGRAM, &[][..]),
        None => (spec.name.as_str(), &[][..]),
    };
    let mut args = environment::arguments(spec, program, &environment);
    if spec.command.as_ref().is_none_or(Vec::is_empty)
        && spec.args.as_ref().is_none_or(Vec::is_empty)
    {
        args.extend(rest.iter().cloned());
    }
    let terminal = spec.tty == Some(true);
    let stdin = (spec.stdin == Some(true)).then(|| {
        let interrupts = if is_toolbox {
            exec::interrupts(&args)
        } else {
            Interrupts::End
        };
        let once = spec.stdin_once == Some(true);
        Arc::new(Stdin::new(terminal, interrupts, once))
    });
    let logs: Arc<dyn LogSink> = Arc::new(Arc::clone(log));
    let workload = Workload {
        name: format!(
            "{}/{}/{}",
            part(&metadata.namespace),
            part(&metadata.name),
            spec.name
        ),
        args,
        env: environment,
        working_dir: spec
            .working_dir
            .clone()
            .filter(|directory| !directory.is_empty()),
        mounts,
        limits: limits(spec, &job.context),
        reuse: reuse(&job.pod)?,
        stdin: stdin.as_ref().map(|stdin| stdin.input()),
        terminal,
        logs: if terminal {
            Arc::new(Screen(logs))
        } else {
            logs
        },
        network: Arc::clone(&job.network),
    };
    Ok((workload, stdin))
}

/// A sub-path is opened here and named by its descriptor: guests write the volume, so what a path means there may change.
fn mount(mounted: volumes::Mounted, directories: &Directories) -> Result<Mount, Trouble> {
    let volume = directories
        .get(&mounted.volume)
        .ok_or_else(|| config_error(format!("volume \"{}\" is not there", mounted.volume)))?;
    let (host, held) = if mounted.sub_path.is_empty() {
        (volume.clone(), None)
    } else {
        let field = format!(
            "volumeMounts[{}].subPath {:?}",
            mounted.volume, mounted.sub_path
        );
        let directory = volumes::directory::below(volume, &mounted.sub_path, !mounted.read_only)
            .map_err(|error| match error.kind() {
                io::ErrorKind::CrossesDevices => {
                    config_error(format!("{field}: it leaves the volume"))
                }
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if mounted.read_only => {
                    config_error(format!(
                        "{field}: guests see directories only, and this is not one"
                    ))
                }
                _ => create_error(format!("{field}: {error}")),
            })?;
        let host = volumes::directory::by_descriptor(&directory);
        (host, Some(Arc::new(directory)))
    };
    Ok(Mount {
        host,
        guest: mounted.guest,
        read_only: mounted.read_only,
        held,
    })
}

/// Without a memory limit a guest may have what the node can give, not more.
fn limits(spec: &Container, context: &Context) -> Limits {
    let limits = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.limits.as_ref());
    let limit = |name: &str| {
        let quantity = limits.and_then(|limits| limits.get(name));
        quantity.and_then(|quantity| Quantity::try_from(quantity).ok())
    };
    let memory = limit("memory").or_else(|| context.allocatable.get("memory").copied());
    Limits {
        memory_bytes: memory.map_or(0, |memory| memory.bytes()),
        cpu_millis: limit("cpu").map_or(0, |cpu| u64::try_from(cpu.millis()).unwrap_or(0)),
    }
}

fn reuse(pod: &Pod) -> Result<Option<Reuse>, Trouble> {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|annotations| annotations.get(ANNOTATION_REUSE)) else {
        return Ok(None);
    };
    match text.parse::<u32>() {
        Ok(requests) if requests > 0 => Ok(Some(Reuse {
            requests,
            concurrent: requests.min(CONCURRENT),
        })),
        _ => Err(config_error(format!(
            "annotation {ANNOTATION_REUSE}: {text:?} is not a positive number"
        ))),
    }
}

/// The declared TCP ports; a container that declares none answers on every port.
fn ports(spec: &Container) -> Ports {
    let declared: Vec<u16> = spec
        .ports
        .iter()
        .flatten()
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .filter_map(|port| u16::try_from(port.container_port).ok())
        .collect();
    if declared.is_empty() {
        Ports::All
    } else {
        Ports::Only(declared)
    }
}
