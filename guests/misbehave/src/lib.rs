//! Shows: everything an HTTP service can do wrong, by path.
//!
//! `/trap` · `/spin` (for ever) · `/grow` (memory without end) · `/sleep/MS` · `/status/CODE` · `/file/PATH` (404 when it is
//! missing: a probe that a volume decides) · `/env/NAME` · `/echo` (the body) · `/big/KIB` · `/log/LINES`; else `ok`.

use std::time::Duration;

use wasip2::http::types::{IncomingRequest, ResponseOutparam};

wasip2::http::proxy::export!(Misbehave);

struct Misbehave;

impl wasip2::exports::http::incoming_handler::Guest for Misbehave {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = http02::path(&request);
        let (verb, rest) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or((path.trim_start_matches('/'), ""));
        let number = rest.parse::<u64>().unwrap_or(0);
        match verb {
            "trap" => panic!("asked to trap"),
            "spin" => spin(),
            "grow" => grow(),
            "sleep" => {
                std::thread::sleep(Duration::from_millis(number));
                http02::respond(out, 200, b"slept\n");
            }
            "status" => http02::respond(out, u16::try_from(number).unwrap_or(500), b"as asked\n"),
            "file" => match std::fs::read(format!("/{rest}")) {
                Ok(bytes) => http02::respond(out, 200, &bytes),
                Err(error) => http02::respond(out, 404, format!("/{rest}: {error}\n").as_bytes()),
            },
            "env" => match std::env::var(rest) {
                Ok(value) => http02::respond(out, 200, value.as_bytes()),
                Err(_) => http02::respond(out, 404, b"not set\n"),
            },
            "echo" => {
                let body = http02::body(&request, 8 << 20);
                http02::respond(out, 200, &body);
            }
            "big" => http02::respond(out, 200, &vec![b'x'; number as usize * 1024]),
            "log" => {
                for line in 0..number {
                    println!("line {line}");
                }
                http02::respond(out, 200, b"logged\n");
            }
            _ => http02::respond(out, 200, b"ok\n"),
        }
    }
}

fn spin() -> ! {
    let mut count = 0_u64;
    loop {
        count = std::hint::black_box(count.wrapping_add(1));
    }
}

fn grow() -> ! {
    let mut kept = Vec::new();
    loop {
        kept.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}
