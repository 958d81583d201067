//! DefaultTolerationSeconds: a pod stays five minutes (or what the flags say) on a node that stopped answering, unless it
//! says otherwise.

use serde_json::{Value, json};
use types::well_known::{TAINT_NOT_READY, TAINT_UNREACHABLE};

use super::{Attributes, Plugin};
use crate::kinds::strategy::Lookup;
use crate::object::Object;
use crate::status::Error;

pub(super) struct DefaultTolerationSeconds;

/// How long pods stay that say nothing themselves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TolerationSeconds {
    pub not_ready: i64,
    pub unreachable: i64,
}

impl Default for TolerationSeconds {
    fn default() -> Self {
        Self {
            not_ready: SECONDS,
            unreachable: SECONDS,
        }
    }
}

const SECONDS: i64 = 300;

impl Plugin for DefaultTolerationSeconds {
    fn mutate(
        &self,
        attributes: &Attributes<'_>,
        new: &mut Object,
        _lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        if !attributes.concerns("", "pods") {
            return Ok(());
        }
        let mut tolerations = new.list_at(&["spec", "tolerations"]).to_vec();
        let before = tolerations.len();
        let TolerationSeconds {
            not_ready,
            unreachable,
        } = attributes.tolerations;
        for (taint, seconds) in [
            (TAINT_NOT_READY, not_ready),
            (TAINT_UNREACHABLE, unreachable),
        ] {
            if !tolerations
                .iter()
                .any(|toleration| covers(toleration, taint))
            {
                tolerations.push(json!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
                }));
            }
        }
        if tolerations.len() > before {
            new.set(&["spec", "tolerations"], tolerations.into());
        }
        Ok(())
    }
}

/// Says something about the `NoExecute` effect of this taint.
fn covers(toleration: &Value, taint: &str) -> bool {
    let text = |key: &str| toleration[key].as_str().unwrap_or_default();
    (text("key") == taint || text("key").is_empty()) && matches!(text("effect"), "NoExecute" | "")
}
