//! How a person or a service manager tells this process to end. Decides nothing.

use std::process::ExitCode;

/// Ctrl-C, or the SIGTERM of a service manager: both mean "drain and stop".
pub(crate) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// What `work` came to; `None` when this process was told to end before.
pub(crate) async fn uninterrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = interrupted() => None,
        done = work => Some(done),
    }
}

/// The exit code of a process that was told to end at once.
pub(crate) fn cut_off() -> ExitCode {
    ExitCode::from(130)
}
