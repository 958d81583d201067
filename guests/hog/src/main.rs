//! Shows: a process that takes all it can get. `hog cpu`, `hog memory`, `hog log`, `hog sockets`.

use std::net::UdpSocket;
use std::time::Duration;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("memory") => {
            let mut kept = Vec::new();
            loop {
                kept.push(std::hint::black_box(vec![1_u8; 1 << 20]));
                if kept.len() % 16 == 0 {
                    println!("{} MiB", kept.len());
                }
            }
        }
        Some("log") => loop {
            println!("{}", "all work and no play makes a dull log ".repeat(25));
        },
        Some("sockets") => {
            let mut kept = Vec::new();
            loop {
                match UdpSocket::bind(("0.0.0.0", 0)) {
                    Ok(socket) => kept.push(socket),
                    Err(error) => {
                        println!("refused after {} sockets: {error}", kept.len());
                        std::thread::sleep(Duration::from_secs(3600));
                    }
                }
            }
        }
        _ => {
            println!("spinning");
            let mut count = 0_u64;
            loop {
                count = std::hint::black_box(count.wrapping_add(1));
            }
        }
    }
}
