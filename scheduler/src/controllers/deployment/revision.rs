//! Which ReplicaSet belongs to which version of the template: hash, revision annotations, history. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use sha2::{Digest, Sha256};
use types::well_known::LABEL_POD_TEMPLATE_HASH;

use crate::objects::{Deployment, ReplicaSet};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Longest revision history kept, in characters.
const HISTORY_LENGTH: usize = 2000;
/// Annotations of the Deployment that are not its ReplicaSets'.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// What a name's random part is spelled with: no vowels, nothing that looks alike.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The value of `pod-template-hash`, such as `6d4b75cb6d`: the same for equal templates, another after a collision.
///
/// Differs from Kubernetes: the number is SHA-256 of the template's JSON and not FNV of Go's dump of it, so the same
/// template gets another suffix than upstream would give it.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut hash = Sha256::new();
    // A template that came as JSON can be written as JSON.
    hash.update(serde_json::to_vec(template).unwrap_or_default());
    if let Some(collisions) = collisions {
        hash.update(collisions.to_le_bytes());
    }
    let digest = hash.finalize();
    let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    number
        .to_string()
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

/// Equal but for the hash label.
pub(super) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    normal(a) == normal(b)
}

fn normal(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let metadata = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut metadata.labels {
        labels.remove(LABEL_POD_TEMPLATE_HASH);
    }
    metadata.labels = metadata.labels.take().filter(|l| !l.is_empty());
    metadata.annotations = metadata.annotations.take().filter(|a| !a.is_empty());
    metadata.creation_timestamp = None;
    template
}

/// Among the sets with the Deployment's template, the oldest: two of them can only come from a race.
pub(super) fn find_new(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<usize> {
    let template = normal(&deployment.spec.template);
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by_key(|i| {
        (
            sets[*i].metadata.created_at(),
            sets[*i].metadata.name.clone(),
        )
    });
    order.into_iter().find(|i| {
        sets[*i]
            .spec
            .template
            .as_ref()
            .is_some_and(|t| normal(t) == template)
    })
}

/// The number in the revision annotation; 0 when there is none.
pub(super) fn revision(annotations: &BTreeMap<String, String>) -> i64 {
    annotations
        .get(REVISION)
        .and_then(|r| r.parse().ok())
        .unwrap_or(0)
}

/// Copies the Deployment's annotations (change-cause among them) and raises the revision. True if something changed.
pub(super) fn annotate(
    annotations: &mut BTreeMap<String, String>,
    deployment: &Deployment,
    revision_wanted: i64,
    exists: bool,
) -> bool {
    let mut changed = false;
    for (name, value) in &deployment.metadata.annotations {
        if !NOT_COPIED.contains(&name.as_str()) && annotations.get(name) != Some(value) {
            annotations.insert(name.clone(), value.clone());
            changed = true;
        }
    }
    let old = annotations.get(REVISION).cloned();
    if revision(annotations) < revision_wanted {
        annotations.insert(REVISION.to_owned(), revision_wanted.to_string());
        changed = true;
        // A set that was rolled back to remembers the revisions it had.
        if let Some(old) = old.filter(|_| exists) {
            let history = annotations
                .get(REVISION_HISTORY)
                .map(String::as_str)
                .unwrap_or("");
            annotations.insert(REVISION_HISTORY.to_owned(), lengthen(history, &old));
        }
    }
    changed
}

fn lengthen(history: &str, revision: &str) -> String {
    let mut parts: Vec<&str> = history.split(',').filter(|p| !p.is_empty()).collect();
    parts.push(revision);
    while parts.join(",").len() > HISTORY_LENGTH {
        parts.remove(0);
    }
    parts.join(",")
}

/// Sets the two annotations proportional scaling reads. True if something changed.
pub(super) fn annotate_size(
    annotations: &mut BTreeMap<String, String>,
    desired: i32,
    most: i32,
) -> bool {
    let mut changed = false;
    for (name, value) in [(DESIRED_REPLICAS, desired), (MAX_REPLICAS, most)] {
        let value = value.to_string();
        if annotations.get(name) != Some(&value) {
            annotations.insert(name.to_owned(), value);
            changed = true;
        }
    }
    changed
}

/// The indices of old sets that the history limit no longer keeps, oldest revision first.
pub(super) fn beyond_history(limit: Option<i32>, old: &[&ReplicaSet]) -> Vec<usize> {
    let Some(limit) = limit
        .filter(|l| *l != i32::MAX)
        .and_then(|l| usize::try_from(l).ok())
    else {
        return Vec::new();
    };
    let mut order: Vec<usize> = (0..old.len())
        .filter(|i| !old[*i].metadata.is_deleting())
        .collect();
    let Some(surplus) = order.len().checked_sub(limit) else {
        return Vec::new();
    };
    order.sort_by_key(|i| {
        (
            revision(&old[*i].metadata.annotations),
            old[*i].metadata.created_at(),
        )
    });
    order.truncate(surplus);
    order.retain(|i| {
        let set = old[*i];
        set.status.replicas == 0
            && set.spec.replicas.unwrap_or(1) == 0
            && set.metadata.generation <= set.status.observed_generation.unwrap_or(0)
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(serde_json::json!({
            "metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "image": image}]}
        }))
        .expect("a template")
    }

    #[test]
    fn equal_templates_hash_alike_and_collisions_change_it() {
        let hash = template_hash(&template("a"), None);
        assert_eq!(hash, template_hash(&template("a"), None));
        assert_ne!(hash, template_hash(&template("b"), None));
        assert_ne!(hash, template_hash(&template("a"), Some(1)));
        assert!(hash.len() <= 10 && hash.bytes().all(|b| ALPHABET.contains(&b)));
    }

    #[test]
    fn the_hash_label_does_not_make_a_template_another() {
        let mut labelled = template("a");
        labelled
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default()
            .insert(LABEL_POD_TEMPLATE_HASH.to_owned(), "x".to_owned());
        assert!(same_template(&template("a"), &labelled));
        assert!(!same_template(&template("b"), &labelled));
    }

    #[test]
    fn a_set_rolled_back_to_keeps_its_old_revisions() {
        let mut deployment = Deployment::default();
        deployment
            .metadata
            .annotations
            .insert("kubernetes.io/change-cause".to_owned(), "image".to_owned());
        let mut annotations = BTreeMap::from([(REVISION.to_owned(), "1".to_owned())]);
        assert!(annotate(&mut annotations, &deployment, 3, true));
        assert_eq!(annotations[REVISION], "3");
        assert_eq!(annotations[REVISION_HISTORY], "1");
        assert_eq!(annotations["kubernetes.io/change-cause"], "image");
        assert!(!annotate(&mut annotations, &deployment, 3, true));
    }

    #[test]
    fn history_is_cut_from_the_oldest_revision() {
        let set = |revision: &str, replicas: i32| {
            let mut set = ReplicaSet::default();
            set.metadata
                .annotations
                .insert(REVISION.to_owned(), revision.to_owned());
            set.spec.replicas = Some(replicas);
            set
        };
        let sets = [set("3", 0), set("1", 0), set("2", 1)];
        let old: Vec<&ReplicaSet> = sets.iter().collect();
        assert_eq!(beyond_history(Some(1), &old), vec![1]);
        assert!(beyond_history(Some(3), &old).is_empty());
        assert!(beyond_history(None, &old).is_empty());
    }
}
