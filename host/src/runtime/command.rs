//! A process: `wasi:cli/run` from its first instruction to its [`Exit`]. One future; dropping it is the kill.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::{Store, Trap};
use wasmtime_wasi::I32Exit;

use super::engine::Flavor;
use super::guest::{Guest, PROCESS_HANDLES};
use super::limits::{Meter, OutOfMemory};
use super::workload::{State, killed};
use super::{Exit, ExitCause, Loaded, Shared};

impl Loaded {
    /// The engine it was compiled for.
    pub(super) fn flavor(&self) -> Flavor {
        match self {
            Self::Http02(_, flavor) | Self::Command02(_, flavor) => *flavor,
            Self::Http03(_) | Self::Command03(_) => Flavor::P3,
        }
    }
}

/// Longest trap message kept; backtraces of deep recursion are long.
const MESSAGE: usize = 4_096;

/// Starts the process's task, which keeps `place`; how it ends is told to `state`.
pub(super) fn spawn(
    state: Arc<State>,
    loaded: Arc<Loaded>,
    shared: Arc<Shared>,
    place: OwnedSemaphorePermit,
) {
    let tasks = shared.tasks.clone();
    let task = async move {
        let watch = Watch(Arc::clone(&state));
        let meter = Arc::clone(&state.template.meter);
        let process = meter.run(run(Arc::clone(&state), loaded, shared));
        let exit = tokio::select! {
            biased;
            // The guest is dropped with `process` at the end of this statement, wherever it was.
            () = state.killed.cancelled() => None,
            exit = process => Some(exit),
        };
        drop(place);
        // Whoever killed it has said why, unless it is what this one belongs to.
        state.end(exit.unwrap_or_else(|| killed(137)));
        drop(watch);
    };
    tasks.spawn(task);
}

/// A host function that panics must not leave its workload running for ever in the books.
struct Watch(Arc<State>);

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Exit {
                code: 134,
                cause: ExitCause::Trapped,
                message: "the host failed while it ran this guest".to_owned(),
            });
        }
    }
}

/// Instantiates and runs; the store is gone when this resolves.
async fn run(state: Arc<State>, loaded: Arc<Loaded>, shared: Arc<Shared>) -> Exit {
    let result = async {
        let lane = shared.lane(loaded.flavor())?;
        let mut store = state.template.store(lane, PROCESS_HANDLES);
        call(&mut store, &loaded).await
    };
    exit(result.await, &state.template.meter)
}

/// The guest's own result, or how it ended otherwise.
async fn call(store: &mut Store<Guest>, loaded: &Loaded) -> wasmtime::Result<Result<(), ()>> {
    match loaded {
        Loaded::Command02(pre, _) => {
            let command = pre.instantiate_async(&mut *store).await?;
            command.wasi_cli_run().call_run(store).await
        }
        Loaded::Command03(pre) => {
            let command = pre.instantiate_async(&mut *store).await?;
            store
                .run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await)
                .await?
        }
        Loaded::Http02(..) | Loaded::Http03(_) => Err(wasmtime::Error::msg(
            "a component that answers HTTP was started as a process",
        )),
    }
}

/// Exit codes as a shell shows them: 134 is SIGABRT (a panic, or any other trap), 139 SIGSEGV, 137 SIGKILL.
pub(super) fn exit(result: wasmtime::Result<Result<(), ()>>, meter: &Meter) -> Exit {
    let exited = |code| Exit {
        code,
        cause: ExitCause::Exited,
        message: String::new(),
    };
    let error = match result {
        Ok(Ok(())) => return exited(0),
        Ok(Err(())) => return exited(1),
        Err(error) => error,
    };
    if let Some(I32Exit(code)) = error.downcast_ref() {
        // A process has eight bits for it.
        return exited(code & 0xff);
    }
    let (code, cause) = if meter.out_of_memory() || error.downcast_ref::<OutOfMemory>().is_some() {
        (137, ExitCause::OutOfMemory)
    } else {
        let code = match error.downcast_ref() {
            Some(
                Trap::MemoryOutOfBounds
                | Trap::HeapMisaligned
                | Trap::TableOutOfBounds
                | Trap::StackOverflow
                | Trap::IndirectCallToNull,
            ) => 139,
            _ => 134,
        };
        (code, ExitCause::Trapped)
    };
    Exit {
        code,
        cause,
        message: message(&error),
    }
}

/// The cause first, then wasm's backtrace.
pub(super) fn message(error: &wasmtime::Error) -> String {
    let mut text = match error.root_cause().to_string() {
        cause if cause == error.to_string() => cause,
        cause => format!("{cause}\n{error:#}"),
    };
    if text.len() > MESSAGE {
        let end = (0..=MESSAGE)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
    }
    text
}
