//! Shows: a client that reaches a service by its cluster DNS name. Sends `REQUESTS_PER_SECOND` (default 10) requests to
//! `SERVER_ADDR` (default `http://hellosvc:80/`) and logs every five seconds (the first time after one) what came of them.

use std::time::{Duration, Instant};

fn main() {
    let address = std::env::var("SERVER_ADDR").unwrap_or_else(|_| "http://hellosvc:80/".to_owned());
    let rate: f64 = std::env::var("REQUESTS_PER_SECOND")
        .ok()
        .and_then(|r| r.parse().ok())
        .unwrap_or(10.0);
    let (authority, path) = split(&address);
    println!("sending {rate} requests per second to {address}");

    let pause = Duration::from_secs_f64(1.0 / rate.clamp(0.001, 100_000.0));
    let (mut successful, mut failed) = (0_u64, 0_u64);
    let mut last_error = String::new();
    let mut next = Instant::now();
    let mut report = next + Duration::from_secs(1);
    loop {
        match http02::get(authority, path) {
            Ok((200..300, _)) => successful += 1,
            Ok((status, _)) => {
                failed += 1;
                last_error = format!(", last: status {status}");
            }
            Err(error) => {
                failed += 1;
                last_error = format!(", last: {error:?}");
            }
        }
        let now = Instant::now();
        if now >= report {
            println!("{address}: {successful} successful, {failed} failed{last_error}");
            report = now + Duration::from_secs(5);
        }
        // A server slower than the rate is not repaid with a burst later.
        next = (next + pause).max(now.checked_sub(pause).unwrap_or(now));
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// `http://hellosvc:80/x` → (`hellosvc:80`, `/x`); the scheme may be left out.
fn split(address: &str) -> (&str, &str) {
    let rest = address.strip_prefix("http://").unwrap_or(address);
    rest.find('/').map_or((rest, "/"), |at| rest.split_at(at))
}
