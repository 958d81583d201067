//! What a person says about a node on its command line: labels and taints, with the kubelet's rules. Parses; writes nothing.

use std::collections::BTreeMap;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Taint;
use types::node_labels::may_set;

/// `a=b,example.org/c=d`
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Labels(pub BTreeMap<String, String>);

/// `key=value:NoSchedule,other:NoExecute`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taints(pub Vec<Taint>);

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GivenError {
    #[error("label {0:?} is not KEY=VALUE")]
    Label(String),
    #[error(
        "label {0:?}: a node may not give itself labels of kubernetes.io or k8s.io but those below kubelet.kubernetes.io or node.kubernetes.io, its zone, region, instance type, and what it is"
    )]
    Reserved(String),
    #[error(
        "taint {0:?} is not KEY=VALUE:EFFECT or KEY:EFFECT with NoSchedule, PreferNoSchedule or NoExecute"
    )]
    Taint(String),
    #[error("taint {0:?} is given twice")]
    Twice(String),
}

impl FromStr for Labels {
    type Err = GivenError;

    fn from_str(text: &str) -> Result<Self, GivenError> {
        let mut labels = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| GivenError::Label(pair.to_owned()))?;
            if !may_set(key) {
                return Err(GivenError::Reserved(key.to_owned()));
            }
            labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(Self(labels))
    }
}

impl FromStr for Taints {
    type Err = GivenError;

    fn from_str(text: &str) -> Result<Self, GivenError> {
        let mut taints: Vec<Taint> = Vec::new();
        for one in text.split(',').filter(|one| !one.is_empty()) {
            let wrong = || GivenError::Taint(one.to_owned());
            let (what, effect) = one.rsplit_once(':').ok_or_else(wrong)?;
            if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
                return Err(wrong());
            }
            let (key, value) = match what.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (what, None),
            };
            if key.is_empty() {
                return Err(wrong());
            }
            let same = |taint: &Taint| taint.key == key && taint.effect == effect;
            if taints.iter().any(same) {
                return Err(GivenError::Twice(one.to_owned()));
            }
            taints.push(Taint {
                key: key.to_owned(),
                value: value.filter(|value| !value.is_empty()).map(str::to_owned),
                effect: effect.to_owned(),
                time_added: None,
            });
        }
        Ok(Self(taints))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_say_its_zone_but_not_that_it_is_a_control_plane() {
        let labels = "topology.kubernetes.io/zone=a,disk=ssd,node.kubernetes.io/x=y,example.org/e=";
        let labels: Labels = labels.parse().expect("allowed");
        assert_eq!(labels.0.len(), 4);
        assert_eq!(labels.0["disk"], "ssd");
        for wrong in [
            "node-role.kubernetes.io/control-plane=",
            "kubernetes.io/role=a",
            "x.k8s.io/a=b",
            "disk",
            "=x",
        ] {
            assert!(wrong.parse::<Labels>().is_err(), "{wrong}");
        }
        assert!("notkubernetes.io/a=b".parse::<Labels>().is_ok());
    }

    #[test]
    fn taints_have_a_key_and_an_effect() {
        let taints: Taints = "gpu=yes:NoSchedule,edge:NoExecute"
            .parse()
            .expect("well formed");
        let short: Vec<_> = taints
            .0
            .iter()
            .map(|taint| {
                (
                    taint.key.as_str(),
                    taint.value.as_deref(),
                    taint.effect.as_str(),
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                ("gpu", Some("yes"), "NoSchedule"),
                ("edge", None, "NoExecute")
            ]
        );
        for wrong in [
            "gpu",
            "gpu:Never",
            "=a:NoSchedule",
            "a:NoExecute,a=b:NoExecute",
        ] {
            assert!(wrong.parse::<Taints>().is_err(), "{wrong}");
        }
    }
}
