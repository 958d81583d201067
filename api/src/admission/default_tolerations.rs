//! DefaultTolerationSeconds: a pod stays five minutes on a node that stopped answering, unless it says otherwise.

use serde_json::{Value, json};
use types::well_known::{TAINT_NOT_READY, TAINT_UNREACHABLE};

use super::{Attributes, Plugin};
use crate::kinds::strategy::Lookup;
use crate::object::Object;
use crate::status::Error;

pub(super) struct DefaultTolerationSeconds;

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
        for taint in [TAINT_NOT_READY, TAINT_UNREACHABLE] {
            if !tolerations
                .iter()
                .any(|toleration| covers(toleration, taint))
            {
                tolerations.push(json!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
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
