//! Shows: a process that listens on sockets. Echoes lines over TCP, and datagrams over UDP when `PROTOCOL=udp`, on `PORT`
//! (default 7) after `START_DELAY_MS`; says its `POD_NAME` first where that is set. One TCP client at a time.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

fn main() -> std::io::Result<()> {
    let port: u16 = std::env::var("PORT")
        .ok()
        .and_then(|p| p.parse().ok())
        .unwrap_or(7);
    let delay: u64 = std::env::var("START_DELAY_MS")
        .ok()
        .and_then(|d| d.parse().ok())
        .unwrap_or(0);
    std::thread::sleep(Duration::from_millis(delay));
    if std::env::var("PROTOCOL").is_ok_and(|p| p.eq_ignore_ascii_case("udp")) {
        let socket = UdpSocket::bind(("0.0.0.0", port))?;
        println!("echoing datagrams on {}", socket.local_addr()?);
        let mut buffer = [0_u8; 2048];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer)?;
            socket.send_to(&buffer[..length], peer)?;
        }
    }
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("echoing lines on {}", listener.local_addr()?);
    for connection in listener.incoming() {
        match connection.and_then(serve) {
            Ok(lines) => println!("served {lines} lines"),
            Err(error) => println!("connection failed: {error}"),
        }
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> std::io::Result<u64> {
    if let Ok(name) = std::env::var("POD_NAME") {
        writeln!(stream, "{name}")?;
    }
    let mut reader = BufReader::new(&stream);
    let mut line = Vec::new();
    let mut lines = 0;
    while reader.read_until(b'\n', &mut line)? > 0 {
        (&stream).write_all(&line)?;
        line.clear();
        lines += 1;
    }
    Ok(lines)
}
