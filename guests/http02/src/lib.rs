//! The few lines every `wasi:http` 0.2 guest needs: answer a request, make one. Not a framework.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest,
    OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

/// Answers with a status and a body held in memory.
pub fn respond(out: ResponseOutparam, status: u16, body: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    response
        .set_status_code(status)
        .expect("the status is a valid one");
    let outgoing = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let stream = outgoing.write().expect("the stream is taken once");
    for chunk in body.chunks(4096) {
        if stream.blocking_write_and_flush(chunk).is_err() {
            return;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(outgoing, None);
}

/// Path and query of a request, `/` when it has none.
pub fn path(request: &IncomingRequest) -> String {
    request.path_with_query().unwrap_or_else(|| "/".to_owned())
}

/// Reads a request's body to its end, at most `limit` bytes.
pub fn body(request: &IncomingRequest, limit: usize) -> Vec<u8> {
    request
        .consume()
        .map(|body| read(body, limit))
        .unwrap_or_default()
}

/// GETs `http://authority/path`; the body is read to its end (at most 1 MiB).
pub fn get(authority: &str, path: &str) -> Result<(u16, Vec<u8>), ErrorCode> {
    let request = OutgoingRequest::new(Fields::new());
    let set = |ok: Result<(), ()>| ok.map_err(|()| ErrorCode::HttpRequestUriInvalid);
    set(request.set_method(&Method::Get))?;
    set(request.set_scheme(Some(&Scheme::Http)))?;
    set(request.set_authority(Some(authority)))?;
    set(request.set_path_with_query(Some(path)))?;
    let outgoing = request.body().expect("the body is taken once");
    let pending = outgoing_handler::handle(request, None)?;
    OutgoingBody::finish(outgoing, None)?;
    pending.subscribe().block();
    let response = pending
        .get()
        .ok_or(ErrorCode::InternalError(Some(
            "not ready after its pollable was".to_owned(),
        )))?
        .map_err(|()| ErrorCode::InternalError(Some("taken twice".to_owned())))??;
    let status = response.status();
    let body = response
        .consume()
        .map(|body| read(body, 1 << 20))
        .unwrap_or_default();
    Ok((status, body))
}

fn read(body: IncomingBody, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(stream) = body.stream() {
        while bytes.len() < limit {
            match stream.blocking_read(64 * 1024) {
                Ok(chunk) => bytes.extend(chunk),
                Err(StreamError::Closed | StreamError::LastOperationFailed(_)) => break,
            }
        }
    }
    bytes
}
