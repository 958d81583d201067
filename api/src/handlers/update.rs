//! PUT of an object, or of what a subresource shows of it.

use super::Call;
use super::reply::Reply;
use crate::kinds::strategy::Door;
use crate::registry::Change;
use crate::status::Error;

pub(super) async fn update(call: &Call<'_>, door: Door<'_>, body: &[u8]) -> Result<Reply, Error> {
    let options = call.query.write_options("UpdateOptions")?;
    let mut warnings = Vec::new();
    let mut object = call.decode(
        body,
        &call.kind.definition,
        &call.gvk(),
        options.validation,
        &mut warnings,
    )?;
    let manager = call.manager(&options).to_owned();
    let mut registry = call.registry(Door::Main, &manager, options.dry_run);
    registry.door = door;
    registry.place(&mut object, Some(&call.path.name))?;
    let create = door == Door::Main && call.kind.strategy.create_on_update();
    let outcome = registry
        .update(&call.path.name, "update", create, &mut |_| {
            Ok(Change {
                new: object.clone(),
                owned: false,
            })
        })
        .await?;
    warnings.append(&mut registry.warnings);
    call.written(outcome, &warnings)
}
