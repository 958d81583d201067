//! Shows: the smallest HTTP server. Answers `Hello World!` to every request.

use wasip2::http::types::{IncomingRequest, ResponseOutparam};

wasip2::http::proxy::export!(Hello);

struct Hello;

impl wasip2::exports::http::incoming_handler::Guest for Hello {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        http02::respond(out, 200, b"Hello World!\n");
    }
}
