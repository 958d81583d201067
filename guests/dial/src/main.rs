//! Shows: a client over sockets. `dial HOST:PORT [LINE…]` sends each line over TCP (UDP when `PROTOCOL=udp`), prints what
//! comes back, and exits 0; `dial HOST` alone resolves the name and prints its addresses.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((target, lines)) = args.split_first() else {
        eprintln!("usage: dial HOST[:PORT] [LINE...]");
        return ExitCode::from(2);
    };
    match run(target, lines) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{target}: {error} ({:?})", error.kind());
            ExitCode::FAILURE
        }
    }
}

fn run(target: &str, lines: &[String]) -> std::io::Result<()> {
    if !target.contains(':') {
        for address in (target, 0).to_socket_addrs()? {
            println!("{}", address.ip());
        }
        return Ok(());
    }
    if std::env::var("PROTOCOL").is_ok_and(|p| p.eq_ignore_ascii_case("udp")) {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        let mut buffer = [0_u8; 2048];
        for line in lines {
            socket.send_to(line.as_bytes(), target)?;
            let (length, peer) = socket.recv_from(&mut buffer)?;
            println!("{} from {peer}", String::from_utf8_lossy(&buffer[..length]));
        }
        return Ok(());
    }
    let stream = TcpStream::connect(target)?;
    println!("connected to {}", stream.peer_addr()?);
    let mut reader = BufReader::new(&stream);
    for line in lines {
        writeln!(&stream, "{line}")?;
        let mut answer = String::new();
        reader.read_line(&mut answer)?;
        print!("{answer}");
    }
    Ok(())
}
