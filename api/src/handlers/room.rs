//! How much is worked on at once: places for requests and for their bodies, and reading a body. Never looks into one.

use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, Method};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::{Semaphore, SemaphorePermit};
use types::well_known::{GROUP_MASTERS, NAMESPACE_SYSTEM};

use crate::auth::User;
use crate::status::Error;

const MAX_BODY: usize = 3 * 1024 * 1024;
const READS: usize = 400;
const WRITES: usize = 200;
const RESERVE: usize = 50;
/// KiB.
const BODIES: usize = 256 * 1024;
/// How long a body may take to arrive.
const WAIT_FOR_BODY: Duration = Duration::from_secs(10);
/// How long a request waits for room before it is told to come back.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(5);

/// How many requests may be worked on at once; long-running ones do not count.
pub struct Room {
    reads: Semaphore,
    writes: Semaphore,
    /// Beside `writes`, for the cluster's own components.
    reserve: Semaphore,
    /// KiB of bodies that are on their way.
    bodies: Semaphore,
}

/// A body, and what holds its place until there is room to work on it. One that is here already needs no place.
pub(super) async fn receive<'a>(
    room: &'a Room,
    body: Body,
    headers: &HeaderMap,
) -> Result<(Bytes, Option<SemaphorePermit<'a>>), Error> {
    let size = announced(headers).unwrap_or(MAX_BODY).min(MAX_BODY) / 1024 + 1;
    let mut read = pin!(read_body(body, headers));
    if let Some(body) = read.as_mut().now_or_never() {
        return Ok((body?, None));
    }
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    let permit = tokio::time::timeout(WAIT_FOR_ROOM, room.bodies.acquire_many(size)).await;
    let Ok(Ok(permit)) = permit else {
        return Err(busy());
    };
    Ok((read.await?, Some(permit)))
}

pub(super) async fn make_room<'a>(
    room: &'a Room,
    method: &Method,
    user: &User,
) -> Result<SemaphorePermit<'a>, Error> {
    let semaphore = match *method {
        Method::GET | Method::HEAD => &room.reads,
        _ => {
            if is_of_the_cluster(user)
                && let Ok(permit) = room.reserve.try_acquire()
            {
                return Ok(permit);
            }
            &room.writes
        }
    };
    match tokio::time::timeout(WAIT_FOR_ROOM, semaphore.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(busy()),
    }
}

/// Whoever keeps the cluster going: nobody else may use up what is kept for them.
fn is_of_the_cluster(user: &User) -> bool {
    let account = User::as_service_account(&user.name);
    user.is_in(GROUP_MASTERS)
        || user.node().is_some()
        || user.name.starts_with("system:kube-")
        || account.is_some_and(|(namespace, _)| namespace == NAMESPACE_SYSTEM)
}

fn busy() -> Error {
    Error::too_many_requests("Too many requests, please try again later.", 1)
}

/// What the client says its body's length is.
fn announced(headers: &HeaderMap) -> Option<usize> {
    let length = headers.get(http::header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// The whole body, at most 3 MiB, within ten seconds.
pub(crate) async fn read_body(body: Body, headers: &HeaderMap) -> Result<Bytes, Error> {
    if announced(headers).is_some_and(|length| length > MAX_BODY) {
        return Err(Error::too_large(MAX_BODY));
    }
    let body = Limited::new(body, MAX_BODY).collect();
    let Ok(body) = tokio::time::timeout(WAIT_FOR_BODY, body).await else {
        return Err(Error::timeout(
            "Timeout: the body did not arrive in time",
            0,
        ));
    };
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Error::too_large(MAX_BODY)),
        Err(error) => Err(Error::bad_request(format!(
            "the body could not be read: {error}"
        ))),
    }
}

// === impl Room ===

impl Default for Room {
    fn default() -> Self {
        Self {
            reads: Semaphore::new(READS),
            writes: Semaphore::new(WRITES),
            reserve: Semaphore::new(RESERVE),
            bodies: Semaphore::new(BODIES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_for_the_cluster_is_not_every_pods() {
        for (user, expect) in [
            (User::admin(), true),
            (User::component("system:kube-scheduler"), true),
            (
                User::service_account("kube-system", "replicaset-controller"),
                true,
            ),
            (
                User::authenticated("system:node:n1", &["system:nodes"]),
                true,
            ),
            (User::service_account("default", "default"), false),
            (User::authenticated("system:node:n1", &[]), false),
            (
                User::authenticated("system:bootstrap:abcdef", &["system:bootstrappers"]),
                false,
            ),
            (User::anonymous(), false),
            (User::authenticated("bob", &[]), false),
        ] {
            assert_eq!(is_of_the_cluster(&user), expect, "{}", user.name);
        }
    }
}
