//! POST of an object.

use bytes::Bytes;
use http::StatusCode;

use super::Call;
use super::negotiate::Shape;
use super::reply::Reply;
use crate::auth::reviews;
use crate::kinds::strategy::Door;
use crate::registry::{Change, encode};
use crate::status::Error;

pub(super) async fn create(call: &Call<'_>, body: Bytes) -> Result<Reply, Error> {
    if !call.path.name.is_empty() {
        return Err(Error::method_not_allowed());
    }
    let options = call.query.write_options("CreateOptions")?;
    let mut warnings = Vec::new();
    let mut object = call.decode(
        &body,
        &call.kind.definition,
        &call.gvk(),
        options.validation,
        &mut warnings,
    )?;
    if reviews::is_review(&call.kind.group, &call.kind.plural) {
        let access = &call.api.access;
        let plural = &call.kind.plural;
        reviews::answer(
            &mut object,
            plural,
            call.namespace(),
            call.user,
            access,
            call.now,
        )?;
        if call.accept.shape != Shape::Object {
            return Err(not_a_table());
        }
        let bytes = encode::finished(&object);
        let mut reply = call.format(StatusCode::CREATED, bytes, &call.kind.definition)?;
        reply.warn(&warnings);
        return Ok(reply);
    }
    if !call.kind.is_stored() {
        return super::subresource::bind_by_body(call, object, &options).await;
    }
    let mut registry = call.registry(Door::Main, call.manager(&options), options.dry_run);
    let change = Change {
        new: object,
        owned: false,
    };
    let outcome = registry.create(change, None).await?;
    warnings.append(&mut registry.warnings);
    call.written(outcome, &warnings)
}

fn not_a_table() -> Error {
    use crate::codec::{JSON, PROTOBUF, YAML};
    Error::not_acceptable(&[JSON, YAML, PROTOBUF])
}
