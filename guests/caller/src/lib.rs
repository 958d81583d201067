//! Shows: a service that calls another one by its DNS name. Answers what `TARGET` (default `hellosvc:80`) answered.

use wasip2::http::types::{IncomingRequest, ResponseOutparam};

wasip2::http::proxy::export!(Caller);

struct Caller;

impl wasip2::exports::http::incoming_handler::Guest for Caller {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = std::env::var("TARGET").unwrap_or_else(|_| "hellosvc:80".to_owned());
        match http02::get(&target, &http02::path(&request)) {
            Ok((status, body)) => http02::respond(out, status, &body),
            Err(error) => http02::respond(out, 502, format!("{target}: {error:?}\n").as_bytes()),
        }
    }
}
