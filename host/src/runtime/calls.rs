//! `wasi:http/outgoing-handler` 0.2. wasmtime's own would hand every call to two new tasks; ours polls it once in place, so
//! that a call of a guest on this node, which mostly answers in one poll, costs neither. Knows nothing of destinations.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Empty};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::types::{
    ErrorCode, RequestOptions, Scheme as WasiScheme,
};
use wasmtime_wasi_http::p2::types::{HostFutureIncomingResponse, HostOutgoingRequest};
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::guest::Guest;

type Handled = Result<Resource<HostFutureIncomingResponse>, ErrorCode>;

/// Replaces wasmtime's.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker
        .instance("wasi:http/outgoing-handler@0.2.12")?
        .func_wrap(
            "handle",
            |mut store: StoreContextMut<'_, Guest>,
             (request, options): (
                Resource<HostOutgoingRequest>,
                Option<Resource<RequestOptions>>,
            )| { Ok((handle(store.data_mut(), request, options)?,)) },
        )
}

fn handle(
    guest: &mut Guest,
    request: Resource<HostOutgoingRequest>,
    options: Option<Resource<RequestOptions>>,
) -> wasmtime::Result<Handled> {
    let view = guest.http();
    let options = options
        .map(|options| view.table.delete(options))
        .transpose()?;
    let request = view.table.delete(request)?;
    let request = match convert(request) {
        Ok(request) => request,
        Err(code) => return Ok(Err(code)),
    };
    let processed = Box::new(std::future::ready(Ok(())));
    let mut sending = Pin::from(view.hooks.send_request(request, options, processed));
    // The waker of the guest's task is not known here: what is not ready now gets a task of its own.
    let response = match sending
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(sent) => {
            let done = wasmtime_wasi::runtime::spawn(std::future::ready(()));
            HostFutureIncomingResponse::Ready(sent.map(|(response, _)| (response, done)))
        }
        Poll::Pending => {
            HostFutureIncomingResponse::Pending(wasmtime_wasi::runtime::spawn(async move {
                let (response, _) = sending.await?;
                let done = wasmtime_wasi::runtime::spawn(std::future::ready(()));
                Ok((response, done))
            }))
        }
    };
    Ok(Ok(view.table.push(response)?))
}

/// Differs from wasmtime's own: a guest that names no scheme means `http`, as everybody in a cluster does.
fn convert(request: HostOutgoingRequest) -> Result<Request<WasiBody>, ErrorCode> {
    let method = request
        .method
        .try_into()
        .map_err(|_| ErrorCode::HttpRequestMethodInvalid)?;
    let scheme = match request.scheme {
        None | Some(WasiScheme::Http) => Scheme::HTTP,
        Some(WasiScheme::Https) => Scheme::HTTPS,
        Some(WasiScheme::Other(_)) => return Err(ErrorCode::HttpProtocolError),
    };
    let authority = request.authority.unwrap_or_default();
    let mut uri = Uri::builder().scheme(scheme).authority(authority.as_str());
    uri = uri.path_and_query(request.path_with_query.unwrap_or_else(|| "/".to_owned()));
    let uri = uri.build().map_err(|_| ErrorCode::HttpRequestUriInvalid)?;
    let mut headers = HeaderMap::from(request.headers);
    if request.body.is_none() && length(&headers)?.is_some_and(|length| length > 0) {
        return Err(ErrorCode::HttpRequestBodySize(Some(0)));
    }
    let host = HeaderValue::from_str(&authority).map_err(|_| ErrorCode::HttpRequestUriInvalid)?;
    headers.insert(HOST, host);
    let body = request.body.unwrap_or_else(|| {
        Empty::<Bytes>::new()
            .map_err(|never| match never {})
            .boxed_unsync()
    });
    let mut converted = Request::new(body);
    *converted.method_mut() = method;
    *converted.uri_mut() = uri;
    *converted.headers_mut() = headers;
    Ok(converted)
}

/// The one `content-length`, digits only: anything else could be read differently by the next reader.
fn length(headers: &HeaderMap) -> Result<Option<u64>, ErrorCode> {
    let invalid = || ErrorCode::InternalError(Some("content-length is not one number".to_owned()));
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| invalid())?;
    if values.next().is_some() || text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid());
    }
    text.parse().map(Some).map_err(|_| invalid())
}
