//! The pods of this node as the node endpoint sees them: which containers there are, where their logs are, what they use.
//! Written by each pod's worker, read by anyone; decides nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::exec::{ExecError, Stdin};
use super::logs::{self, Log};
use super::toolbox::Shelf;
use crate::runtime::{Running, Usage};

/// All pods, by namespace and name. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Known {
    // Locked for a look-up.
    pods: Arc<Mutex<Records>>,
    /// What runs beside containers, if the node has it.
    shelf: Option<Arc<Shelf>>,
}

/// By namespace and name.
type Records = HashMap<(String, String), Arc<Record>>;

/// One pod.
pub(crate) struct Record {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) log_directory: PathBuf,
    // Locked to copy or to set a few words.
    containers: Mutex<Vec<Container>>,
    /// Processes beside the containers by their number. Locked to add or remove one.
    sessions: Sessions,
}

type Sessions = Arc<Mutex<BTreeMap<u32, (Whose, String)>>>;

/// A process in its pod's list, until dropped.
pub(super) struct Entry {
    sessions: Sessions,
    pid: u32,
}

/// For whom a process runs beside a container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Whose {
    /// Somebody who may have many.
    Client,
    /// The node itself, which asks a container one thing at a time: a probe or a hook.
    Node,
}

/// Processes of clients beside the containers of one pod, at the same time.
const SESSIONS: usize = 32;

/// One container, at this moment.
#[derive(Clone, Default)]
pub(crate) struct Container {
    pub(crate) name: String,
    /// Instances started so far.
    pub(crate) instances: u32,
    /// Which instance `lastState` tells of: between two the one that ended, else the one before the present one.
    pub(crate) previous: Option<u32>,
    /// The present instance's log, while it is open.
    pub(crate) log: Option<Arc<Log>>,
    pub(crate) running: Option<Arc<Running>>,
    /// The present instance's, if the spec asks for one.
    pub(super) stdin: Option<Arc<Stdin>>,
    /// Why it does not run: `ContainerCreating`.
    pub(crate) waiting: Option<String>,
}

/// Which log to read.
pub(crate) struct LogFile {
    pub(crate) path: PathBuf,
    /// Present while the instance may still write.
    pub(crate) log: Option<Arc<Log>>,
}

#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    #[error("pod \"{namespace}/{name}\" not found")]
    NoPod { namespace: String, name: String },
    #[error("container {container} is not valid for pod {pod}")]
    NoContainer { container: String, pod: String },
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}")]
    Waiting {
        container: String,
        pod: String,
        reason: String,
    },
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious { container: String, pod: String },
}

/// What a container uses, for metrics.
pub(crate) struct Sample {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) usage: Usage,
}

impl Known {
    pub(crate) fn with(shelf: Option<Shelf>) -> Known {
        Known {
            pods: Arc::default(),
            shelf: shelf.map(Arc::new),
        }
    }

    pub(super) fn shelf(&self) -> Option<&Arc<Shelf>> {
        self.shelf.as_ref()
    }

    pub(crate) fn insert(&self, record: Arc<Record>) {
        self.lock()
            .insert((record.namespace.clone(), record.name.clone()), record);
    }

    /// Only if it is still this very pod and not a namesake that came after it.
    pub(crate) fn remove(&self, record: &Record) {
        let mut pods = self.lock();
        let key = (record.namespace.clone(), record.name.clone());
        if pods.get(&key).is_some_and(|known| known.uid == record.uid) {
            pods.remove(&key);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        let records: Vec<Arc<Record>> = self.lock().values().cloned().collect();
        let mut samples = Vec::new();
        for record in records {
            for container in record.lock().iter() {
                if let Some(running) = &container.running {
                    samples.push(Sample {
                        namespace: record.namespace.clone(),
                        pod: record.name.clone(),
                        container: container.name.clone(),
                        usage: running.usage(),
                    });
                }
            }
        }
        samples
    }

    pub(crate) fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<LogFile, Error> {
        let record = self.find(namespace, pod).ok_or_else(|| Error::NoPod {
            namespace: namespace.to_owned(),
            name: pod.to_owned(),
        })?;
        let found = record.container(container);
        let found = found.ok_or_else(|| Error::NoContainer {
            container: container.to_owned(),
            pod: pod.to_owned(),
        })?;
        let file = |instance| logs::file(&record.log_directory, container, instance);
        if previous {
            let instance = found.previous.ok_or_else(|| Error::NoPrevious {
                container: container.to_owned(),
                pod: pod.to_owned(),
            })?;
            return Ok(LogFile {
                path: file(instance),
                log: None,
            });
        }
        match found.instances.checked_sub(1) {
            Some(instance) => Ok(LogFile {
                path: file(instance),
                log: found.log,
            }),
            None => Err(Error::Waiting {
                container: container.to_owned(),
                pod: pod.to_owned(),
                reason: found
                    .waiting
                    .unwrap_or_else(|| "ContainerCreating".to_owned()),
            }),
        }
    }

    pub(crate) fn find(&self, namespace: &str, pod: &str) -> Option<Arc<Record>> {
        self.lock()
            .get(&(namespace.to_owned(), pod.to_owned()))
            .cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    pub(crate) fn new(
        namespace: &str,
        name: &str,
        uid: &str,
        log_directory: PathBuf,
        containers: impl Iterator<Item = String>,
    ) -> Record {
        let containers = containers
            .map(|name| Container {
                name,
                ..Container::default()
            })
            .collect();
        Record {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            log_directory,
            containers: Mutex::new(containers),
            sessions: Arc::default(),
        }
    }

    /// The lowest number that is free; 1 is the container's own process.
    pub(super) fn enter(&self, whose: Whose, command: String) -> Result<Entry, ExecError> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let clients = sessions.values().filter(|(of, _)| *of == Whose::Client);
        if whose == Whose::Client && clients.count() >= SESSIONS {
            return Err(ExecError::TooMany {
                most: SESSIONS,
                of: "pod",
            });
        }
        let free = (2..).find(|pid| !sessions.contains_key(pid));
        let pid = free.unwrap_or(u32::MAX);
        sessions.insert(pid, (whose, command));
        Ok(Entry {
            sessions: Arc::clone(&self.sessions),
            pid,
        })
    }

    pub(super) fn sessions(&self) -> Vec<(u32, String)> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = sessions.iter();
        listed
            .map(|(pid, (_, command))| (*pid, command.clone()))
            .collect()
    }

    /// A container that came later.
    pub(super) fn add(&self, name: String) {
        self.lock().push(Container {
            name,
            ..Container::default()
        });
    }

    pub(crate) fn update(&self, index: usize, change: impl FnOnce(&mut Container)) {
        if let Some(container) = self.lock().get_mut(index) {
            change(container);
        }
    }

    pub(crate) fn container(&self, name: &str) -> Option<Container> {
        self.lock().iter().find(|known| known.name == name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Container>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(instances: u32) -> Known {
        let record = Record::new(
            "default",
            "web",
            "u1",
            PathBuf::from("/logs/web"),
            std::iter::once("app".to_owned()),
        );
        record.update(0, |container| {
            container.instances = instances;
            // While it runs.
            container.previous = instances.checked_sub(2);
        });
        let known = Known::default();
        known.insert(Arc::new(record));
        known
    }

    fn error(result: Result<LogFile, Error>) -> String {
        result
            .map(|file| file.path)
            .expect_err("an error")
            .to_string()
    }

    #[test]
    fn logs_are_found_by_instance() {
        let file = known(3)
            .log("default", "web", "app", false)
            .map(|file| file.path);
        assert_eq!(file.expect("a file"), PathBuf::from("/logs/web/app/2.log"));
        let previous = known(3)
            .log("default", "web", "app", true)
            .map(|file| file.path);
        assert_eq!(
            previous.expect("a file"),
            PathBuf::from("/logs/web/app/1.log")
        );
        let crashed = known(1);
        let record = crashed.find("default", "web").expect("known");
        record.update(0, |container| container.previous = Some(0));
        let crash = crashed
            .log("default", "web", "app", true)
            .map(|file| file.path);
        assert_eq!(crash.expect("a file"), PathBuf::from("/logs/web/app/0.log"));
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(
            error(known(1).log("default", "db", "app", false)),
            "pod \"default/db\" not found"
        );
        assert_eq!(
            error(known(1).log("default", "web", "x", false)),
            "container x is not valid for pod web"
        );
        assert_eq!(
            error(known(0).log("default", "web", "app", false)),
            "container \"app\" in pod \"web\" is waiting to start: ContainerCreating"
        );
        assert_eq!(
            error(known(1).log("default", "web", "app", true)),
            "previous terminated container \"app\" in pod \"web\" not found"
        );
    }

    #[test]
    fn a_pod_has_so_many_sessions_and_their_numbers_are_used_again() {
        let known = known(1);
        let record = known.find("default", "web").expect("known");
        let mut entries: Vec<Entry> = (0..SESSIONS)
            .map(|_| record.enter(Whose::Client, "sh".to_owned()).expect("room"))
            .collect();
        assert!(record.enter(Whose::Client, "sh".to_owned()).is_err());
        let probe = record.enter(Whose::Node, "cat".to_owned());
        assert!(probe.is_ok(), "what the node asks has places of its own");
        drop(probe);
        entries.remove(0);
        assert!(record.sessions().iter().all(|(pid, _)| *pid != 2));
        let entry = record.enter(Whose::Client, "ls".to_owned());
        let entry = entry.expect("room");
        assert_eq!(entry.pid, 2);
    }

    #[test]
    fn a_namesake_is_not_removed_by_its_predecessor() {
        let known = known(1);
        let old = Record::new("default", "web", "u0", PathBuf::new(), std::iter::empty());
        known.remove(&old);
        assert_eq!(known.count(), 1);
    }
}
