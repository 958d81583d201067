//! What hangs below an object. A subresource whose body is the object itself (`status`, `finalize`, `approval` …) is
//! the object seen through another door; the others have a file each.

mod binding;
mod eviction;
mod log;
mod node;
mod node_proxy;
mod proxy;
mod scale;
mod stream;
mod token;

use axum::body::Body;
use http::Method;

use super::reply::Reply;
use super::{Call, get, patch, read_body, update};
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::request::query::WriteOptions;
use crate::status::Error;

pub(super) async fn serve(
    call: &Call<'_>,
    verb: &'static str,
    method: &Method,
    body: Body,
) -> Result<Reply, Error> {
    let name = &*call.path.subresource;
    let Some(subresource) = call.kind.subresource(name) else {
        return Err(Error::no_such_resource());
    };
    if !subresource.verbs.contains(&verb) {
        return Err(Error::method_not_allowed());
    }
    // The body of a stream must not be touched.
    match name {
        "exec" | "attach" | "portforward" => return stream::stream(call).await,
        "proxy" if call.kind.plural == "nodes" => return node_proxy::proxy(call, verb).await,
        "proxy" => return proxy::proxy(call, body).await,
        _ => {}
    }
    let object_itself = subresource.kind == call.kind.kind && subresource.group.is_empty();
    let has_a_body = object_itself || matches!(name, "scale" | "binding" | "eviction" | "token");
    let body = if *method == Method::GET || !has_a_body {
        bytes::Bytes::new()
    } else {
        read_body(body, call.headers).await?
    };
    match name {
        "log" => log::log(call).await,
        "scale" => scale::scale(call, verb, &body).await,
        "binding" => binding::bind(call, &body).await,
        "eviction" => eviction::evict(call, &body).await,
        "token" => token::create(call, &body).await,
        _ if object_itself => {
            let door = Door::Subresource(subresource.name);
            match verb {
                "get" => get::get(call).await,
                "update" => update::update(call, door, &body).await,
                "patch" => patch::patch(call, door, &body).await,
                _ => Err(Error::method_not_allowed()),
            }
        }
        // Every row's subresource is above.
        _ => Err(Error::no_such_resource()),
    }
}

/// A stored-nowhere kind that is posted for its effect: `bindings`.
pub(super) async fn bind_by_body(
    call: &Call<'_>,
    object: Object,
    options: &WriteOptions,
) -> Result<Reply, Error> {
    binding::bind_object(call, object.name().to_owned(), &object, options).await
}
