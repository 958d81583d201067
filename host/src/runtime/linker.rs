//! Which capabilities a guest is offered. One table per engine; per-workload state lives in the store.
//!
//! The http worlds get the whole cli set too: guests linked with a standard library import environment and terminals even
//! when they only answer HTTP. The kernel's sockets are never reachable: those interfaces are replaced by ours.

use wasmtime::Engine;
use wasmtime::component::Linker;

use super::guest::Guest;
use super::{LoadError, calls, sockets};

/// WASI 0.2: cli, clocks, random, io, filesystem, http; sockets on the pod network.
pub(super) fn p2(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    linker.allow_shadowing(true);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    calls::add_to_linker(&mut linker)?;
    sockets::add_p2(&mut linker)?;
    Ok(linker)
}

/// WASI 0.3 and, because guests mix versions freely, 0.2 beside it.
pub(super) fn p3(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = p2(engine)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    sockets::add_p3(&mut linker)?;
    Ok(linker)
}

/// wasmtime's complaint, taken apart: it puts the interface between backquotes and the function into the causes.
pub(super) fn missing(error: &wasmtime::Error) -> LoadError {
    let text = error.to_string();
    match text.split('`').nth(1) {
        Some(interface) => LoadError::MissingImport {
            interface: interface.to_owned(),
            detail: error.root_cause().to_string(),
        },
        None => LoadError::Invalid(format!("{error:#}")),
    }
}
