//! `nslookup` and `nc`: names and plain TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use super::{Answer, dns, done, sleep};
use crate::context::Context;
use crate::io::{Closed, Filter, Input, Started, Written, print, why};
use crate::options::{Spec, parse};
use crate::os;

/// How often a connection and a keyboard are looked at in turns.
const LOOK: Duration = Duration::from_millis(10);
/// How long a DNS server may take.
const PATIENCE: Duration = Duration::from_secs(5);

// === nslookup ===

pub fn nslookup(context: &mut Context, args: &[String]) -> Answer {
    let mut kinds = vec![dns::A, dns::AAAA];
    let mut operands = Vec::new();
    for arg in args {
        match arg
            .strip_prefix("-type=")
            .or_else(|| arg.strip_prefix("-query="))
            .or_else(|| arg.strip_prefix("-q="))
        {
            Some(kind) => {
                kinds =
                    vec![dns::kind(kind).ok_or_else(|| format!("invalid query type \"{kind}\""))?]
            }
            None if arg.starts_with('-') => return Err(format!("unrecognized option: {arg}")),
            None => operands.push(arg.as_str()),
        }
    }
    match operands.as_slice() {
        [name] if kinds.len() == 2 => done(by_host(context, name)),
        [name] => match nameserver(context) {
            Some(server) => done(by_server(context, name, &server, &kinds)),
            None => Err("a DNS server is needed for this type: name one".to_owned()),
        },
        [name, server] => done(by_server(context, name, server, &kinds)),
        _ => Err("a name is needed".to_owned()),
    }
}

fn nameserver(context: &Context) -> Option<String> {
    let text = crate::files::open(&context.path("/etc/resolv.conf"))
        .ok()?
        .rest()
        .ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("nameserver"))?;
    Some(line.trim().to_owned())
}

/// As every program in the pod resolves, search domains included.
fn by_host(context: &Context, name: &str) -> i32 {
    print(&context.stdout, "Server:\t\tthe pod's resolver\n\n");
    let found = (name, 0).to_socket_addrs();
    let mut addresses: Vec<IpAddr> = match found {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(_) => Vec::new(),
    };
    addresses.dedup();
    if addresses.is_empty() {
        print(
            &context.stdout,
            &format!("** server can't find {name}: NXDOMAIN\n\n"),
        );
        return 1;
    }
    for address in addresses {
        print(
            &context.stdout,
            &format!("Name:\t{name}\nAddress: {address}\n"),
        );
    }
    print(&context.stdout, "\n");
    0
}

/// Asks one server, over UDP.
fn by_server(context: &Context, name: &str, server: &str, kinds: &[u16]) -> i32 {
    let with_port = match server.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 53).to_string(),
        Err(_) if server.contains(':') => server.to_owned(),
        Err(_) => format!("{server}:53"),
    };
    let address = with_port
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next());
    let Some(address) = address else {
        return context.fail(format_args!("can't resolve '{server}'"));
    };
    print(
        &context.stdout,
        &format!("Server:\t\t{server}\nAddress:\t{address}\n\n"),
    );
    let mut code = 1;
    for kind in kinds {
        let answer = match ask(address, name, *kind) {
            Ok(answer) => answer,
            Err(error) => return context.fail(format_args!("{server}: {error}")),
        };
        match answer {
            dns::Answer { code: 0, records } => {
                code = 0;
                for record in &records {
                    print(&context.stdout, &format!("{record}\n"));
                }
                if records.is_empty() && kinds.len() == 1 {
                    print(
                        &context.stdout,
                        &format!("*** Can't find {name}: No answer\n"),
                    );
                    code = 1;
                }
            }
            dns::Answer { code: failed, .. } => {
                print(
                    &context.stdout,
                    &format!("** server can't find {name}: {}\n", dns::failure(failed)),
                );
                return 1;
            }
        }
    }
    print(&context.stdout, "\n");
    code
}

fn ask(server: SocketAddr, name: &str, kind: u16) -> Result<dns::Answer, String> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let text = |error: std::io::Error| why(&error);
    let socket = UdpSocket::bind(any).map_err(text)?;
    socket.set_nonblocking(true).map_err(text)?;
    let id = os::now().subsec_nanos() as u16;
    let question = dns::question(id, name, kind)?;
    socket.send_to(&question, server).map_err(text)?;
    let end = os::since_start() + PATIENCE;
    let mut buffer = [0; 4_096];
    while os::since_start() < end {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if from == server => {
                if let Some(answer) = dns::answer(id, &buffer[..length]) {
                    return Ok(answer);
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !os::pause(LOOK) {
                    return Err("interrupted".to_owned());
                }
            }
            Err(error) => return Err(why(&error)),
        }
    }
    Err("connection timed out; no servers could be reached".to_owned())
}

// === nc ===

pub fn nc(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "lp:w:zvnNq:",
        long: &[],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let timeout = options.value('w').map(sleep::one).transpose()?;
    let stream = if options.has('l') {
        let port = options
            .value('p')
            .or(options.operands.last().map(String::as_str))
            .ok_or("a port is needed")?;
        let port: u16 = port.parse().map_err(|_| format!("bad port '{port}'"))?;
        accept(port, timeout)
    } else {
        let [host, port] = options.operands.as_slice() else {
            return Err("a host and a port are needed".to_owned());
        };
        let port: u16 = port.parse().map_err(|_| format!("bad port '{port}'"))?;
        let stream = connect(host, port, timeout);
        if options.has('v') {
            match &stream {
                Ok(_) => print(&context.stderr, &format!("{host} ({host}:{port}) open\n")),
                Err(error) => print(
                    &context.stderr,
                    &format!("nc: {host} ({host}:{port}): {error}\n"),
                ),
            }
        }
        stream
    };
    let stream = match stream {
        Ok(stream) => stream,
        Err(_) if options.has('v') => return done(1),
        Err(error) => return done(context.fail(error)),
    };
    if options.has('z') {
        return done(0);
    }
    let connection = Connection {
        stream,
        context: context.clone(),
        timeout,
    };
    // Behind a pipe, bytes come by themselves; otherwise somebody may type while the other side talks.
    Ok(match &context.stdin {
        Input::Piped => Started::Reads(Vec::new(), Box::new(connection)),
        input => {
            let input = input.clone();
            Started::Done(connection.talk(&input))
        }
    })
}

fn connect(host: &str, port: u16, timeout: Option<Duration>) -> Result<TcpStream, String> {
    let mut found = (host, port)
        .to_socket_addrs()
        .map_err(|_| format!("bad address '{host}'"))?;
    let address = found
        .next()
        .ok_or_else(|| format!("bad address '{host}'"))?;
    let stream = match timeout {
        Some(time) if !time.is_zero() => TcpStream::connect_timeout(&address, time),
        _ => TcpStream::connect(address),
    };
    let stream = stream
        .map_err(|error| format!("can't connect to remote host ({address}): {}", why(&error)))?;
    stream.set_nonblocking(true).map_err(|error| why(&error))?;
    Ok(stream)
}

/// Waits for one connection.
fn accept(port: u16, timeout: Option<Duration>) -> Result<TcpStream, String> {
    let text = |error: std::io::Error| why(&error);
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).map_err(text)?;
    listener.set_nonblocking(true).map_err(text)?;
    let end = timeout.map(|time| os::since_start() + time);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true).map_err(text)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(why(&error)),
        }
        if end.is_some_and(|end| os::since_start() >= end) {
            return Err("timed out".to_owned());
        }
        if !os::pause(LOOK) {
            return Err("interrupted".to_owned());
        }
    }
}

struct Connection {
    /// Never blocks.
    stream: TcpStream,
    context: Context,
    timeout: Option<Duration>,
}

/// What reading what the other side has sent so far came to.
enum Heard {
    Something,
    Nothing,
    End,
}

impl Connection {
    fn hear(&mut self) -> Heard {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => Heard::End,
            Ok(count) => match self.context.stdout.write(&buffer[..count]) {
                Ok(()) => Heard::Something,
                Err(Closed) => Heard::End,
            },
            Err(error) if error.kind() == ErrorKind::WouldBlock => Heard::Nothing,
            Err(error) => {
                self.context.fail(why(&error));
                Heard::End
            }
        }
    }

    /// Sends it all, hearing meanwhile: two sides that only send would wait for one another.
    fn say(&mut self, mut bytes: &[u8]) -> Written {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !matches!(self.hear(), Heard::Something) && !os::pause(LOOK) {
                        return Err(Closed);
                    }
                }
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }

    /// Everything has been said; what the other side still sends.
    fn listen(&mut self) -> i32 {
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut quiet_since = os::since_start();
        loop {
            match self.hear() {
                Heard::End => return 0,
                Heard::Something => quiet_since = os::since_start(),
                Heard::Nothing => {
                    if self
                        .timeout
                        .is_some_and(|time| os::since_start() - quiet_since >= time)
                    {
                        return 1;
                    }
                    if !os::pause(LOOK) {
                        return 130;
                    }
                }
            }
        }
    }

    /// Both directions in turns, until the other side ends.
    fn talk(mut self, input: &Input) -> i32 {
        loop {
            match input.available() {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => {
                    if self.say(&bytes).is_err() {
                        return 1;
                    }
                    continue;
                }
                Ok(None) => return self.listen(),
                Err(_) if os::interrupted() => return 130,
                Err(error) => return self.context.fail_on("stdin", &error),
            }
            match self.hear() {
                Heard::End => return 0,
                Heard::Something => {}
                Heard::Nothing => {
                    if !os::pause(LOOK) {
                        return 130;
                    }
                }
            }
        }
    }
}

impl Filter for Connection {
    fn push(&mut self, bytes: &[u8]) -> Written {
        self.say(bytes)
    }

    fn end(&mut self) -> i32 {
        self.listen()
    }
}
