//! ServiceAccount: a pod runs as an account of its namespace, `default` unless it says otherwise, uses its pull secrets, and
//! finds the account's token, the cluster's CA and its namespace in files.

use serde_json::{Value, json};
use types::well_known::ANNOTATION_MIRROR;

use super::{Attributes, Plugin, tree};
use crate::kinds::strategy::Lookup;
use crate::object::Object;
use crate::registry;
use crate::status::Error;
use crate::store::Key;

pub(super) struct ServiceAccount;

const DEFAULT: &str = "default";
const DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
/// An hour, and seven seconds by which the API knows that nobody chose it.
const LIFETIME: i64 = 3_607;

impl Plugin for ServiceAccount {
    fn mutate(
        &self,
        attributes: &Attributes<'_>,
        new: &mut Object,
        lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        let concerned = attributes.concerns("", "pods") && attributes.is_create();
        // The copy of a pod that a node has by itself: it has no account, and none is given to it.
        if !concerned || new.annotation(ANNOTATION_MIRROR).is_some() {
            return Ok(());
        }
        if new
            .str_at(&["spec", "serviceAccountName"])
            .is_none_or(str::is_empty)
        {
            new.set(&["spec", "serviceAccountName"], DEFAULT.into());
        }
        let name = new
            .str_at(&["spec", "serviceAccountName"])
            .unwrap_or(DEFAULT)
            .to_owned();
        let namespace = attributes.namespace;
        let Some(account) = lookup.get(&Key::new("serviceaccounts", namespace, &name)) else {
            return Err(attributes.forbidden(&format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            )));
        };
        let mut account = tree(&account);
        let of_account = account["automountServiceAccountToken"].as_bool();
        let of_pod = new
            .at(&["spec", "automountServiceAccountToken"])
            .and_then(Value::as_bool);
        if of_pod.or(of_account).unwrap_or(true) {
            mount(new, lookup);
        }
        if new.list_at(&["spec", "imagePullSecrets"]).is_empty()
            && let Some(Value::Array(secrets)) = account.get_mut("imagePullSecrets")
            && !secrets.is_empty()
        {
            let secrets = std::mem::take(secrets);
            new.set(&["spec", "imagePullSecrets"], Value::Array(secrets));
        }
        new.set(&["spec", "serviceAccount"], name.into());
        Ok(())
    }
}

/// Mounts the volume into every container that has nothing at its place, and adds it where it is mounted.
fn mount(pod: &mut Object, lookup: &dyn Lookup) {
    let volumes = pod.list_at(&["spec", "volumes"]);
    let mut names = volumes.iter().filter_map(|volume| volume["name"].as_str());
    let present = names
        .find(|name| name.starts_with(VOLUME))
        .map(str::to_owned);
    let there = present.is_some();
    let name = present.unwrap_or_else(|| format!("{VOLUME}{}", registry::suffix(lookup.random())));
    let mut needed = false;
    for kind in ["initContainers", "containers"] {
        let containers = pod.at_mut(&["spec", kind]).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            let mounts = container
                .entry("volumeMounts")
                .or_insert_with(|| Value::Array(Vec::new()));
            if mounts.is_null() {
                *mounts = Value::Array(Vec::new());
            }
            let Some(mounts) = mounts.as_array_mut() else {
                continue;
            };
            if mounts.iter().any(|mount| mount["mountPath"] == DIRECTORY) {
                continue;
            }
            mounts.push(json!({ "name": name, "readOnly": true, "mountPath": DIRECTORY }));
            needed = true;
        }
    }
    if !needed || there {
        return;
    }
    let mut volumes = pod.list_at(&["spec", "volumes"]).to_vec();
    volumes.push(json!({
        "name": name,
        "projected": {
            "sources": [
                { "serviceAccountToken": { "expirationSeconds": LIFETIME, "path": "token" } },
                { "configMap": {
                    "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }],
                } },
                { "downwardAPI": { "items": [{
                    "path": "namespace",
                    "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
                }] } },
            ],
            "defaultMode": 420,
        },
    }));
    pod.set(&["spec", "volumes"], volumes.into());
}
