//! DELETE of one object, and of all that a selector finds.

use http::StatusCode;
use serde_json::{Value, json};

use super::reply::Reply;
use super::{Call, list};
use crate::kinds::strategy::Door;
use crate::registry::Outcome;
use crate::registry::delete::DeleteOptions;
use crate::request::query::FieldValidation;
use crate::schema::GroupVersionKind;
use crate::status::{Error, Reason};

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

pub(super) async fn delete(call: &Call<'_>, body: &[u8]) -> Result<Reply, Error> {
    let options = options(call, body)?;
    let mut registry = call.registry(Door::Main, "", options.dry_run);
    let name = &call.path.name;
    let outcome = registry.delete(name, &options).await?;
    if !outcome.deleted || call.kind.strategy.returns_deleted() {
        return call.object(StatusCode::OK, outcome.bytes, &call.kind.definition);
    }
    let details = details(call, name, &outcome);
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    });
    call.format(
        StatusCode::OK,
        status.to_string().into(),
        "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    )
}

pub(super) async fn delete_collection(call: &Call<'_>, body: &[u8]) -> Result<Reply, Error> {
    let options = options(call, body)?;
    let list_options = call.query.list_options(false)?;
    let selector = call.selector(&list_options)?;
    let page = list::page(call, &list_options, &selector).await?;
    let mut registry = call.registry(Door::Main, "", options.dry_run);
    for item in &page.items {
        match registry.delete(&item.key.name, &options).await {
            Ok(_) => {}
            // Somebody else was quicker.
            Err(error) if error.reason == Reason::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    list::render(call, &page)
}

/// From the body where there is one, else from the query.
fn options(call: &Call<'_>, body: &[u8]) -> Result<DeleteOptions, Error> {
    if body.is_empty() {
        return DeleteOptions::from_query(call.query);
    }
    let gvk = GroupVersionKind {
        group: String::new(),
        version: "v1".to_owned(),
        kind: "DeleteOptions".to_owned(),
    };
    let mut ignored = Vec::new();
    let object = call.decode(
        body,
        DELETE_OPTIONS,
        &gvk,
        FieldValidation::Ignore,
        &mut ignored,
    )?;
    DeleteOptions::from_value(object.value())
}

fn details(call: &Call<'_>, name: &str, outcome: &Outcome) -> Value {
    let metadata = crate::registry::encode::metadata_of(&outcome.bytes).unwrap_or(b"{}");
    let metadata: Value = serde_json::from_slice(metadata).unwrap_or_default();
    let mut details = json!({ "name": name, "kind": call.kind.plural, "uid": metadata["uid"] });
    if !call.kind.group.is_empty() {
        details["group"] = json!(call.kind.group);
    }
    details
}
