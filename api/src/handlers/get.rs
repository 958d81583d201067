//! One object by name: finished bytes from the cache.

use http::StatusCode;

use super::Call;
use super::reply::Reply;
use crate::registry;
use crate::request::query::parse_resource_version;
use crate::status::Error;

pub(super) async fn get(call: &Call<'_>) -> Result<Reply, Error> {
    let revision = parse_resource_version(call.query.first("resourceVersion").unwrap_or_default())?;
    if let Some(revision) = revision.filter(|revision| *revision > 0) {
        call.api.reach(revision).await?;
    }
    if !call.kind.is_stored() {
        return super::other::computed(call);
    }
    let name = &call.path.name;
    let stored = call
        .api
        .cache
        .find(&call.kind.storage, call.namespace(), name)
        .ok_or_else(|| Error::not_found(&call.kind.group, &call.kind.plural, name))?;
    let bytes = registry::serve(call.kind, &stored)?;
    call.object(StatusCode::OK, bytes, &call.kind.definition)
}
