//! Shows: a process on WASI 0.3 that ends by itself.

use std::future::IntoFuture;

wasip3::cli::command::export!(Once);

struct Once;

impl wasip3::exports::cli::run::Guest for Once {
    async fn run() -> Result<(), ()> {
        let (mut text, reader) = wasip3::wit_stream::new();
        let written = wasip3::cli::stdout::write_via_stream(reader).into_future();
        let writing = async move {
            text.write_all(b"once, on WASI 0.3\n".to_vec()).await;
            drop(text);
        };
        let (written, ()) = futures::join!(written, writing);
        written.map_err(|_| ())
    }
}
