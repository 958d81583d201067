//! Shows: a process that ends badly. `crash exit CODE`, `crash trap`, `crash return` (main returns an error); waits
//! `AFTER_MS` before it does.

use std::time::Duration;

fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let after: u64 = std::env::var("AFTER_MS")
        .ok()
        .and_then(|ms| ms.parse().ok())
        .unwrap_or(0);
    println!("about to end");
    eprintln!("this line is on stderr");
    std::thread::sleep(Duration::from_millis(after));
    match args.first().map(String::as_str) {
        Some("exit") => std::process::exit(args.get(1).and_then(|c| c.parse().ok()).unwrap_or(1)),
        Some("trap") => panic!("asked to trap"),
        _ => Err("asked to fail".to_owned()),
    }
}
