//! A NAT as far as the lab needs one: connections from inside reach what is listed, and nothing from outside gets in.
//! Connections are carried by threads, so that no kernel needs a packet filter.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::enter;

const DIAL: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

pub(crate) struct Nat {
    stop: Arc<AtomicBool>,
    doors: Vec<JoinHandle<()>>,
}

// === impl Nat ===

impl Nat {
    /// What dials one of `to` in the namespace `inside` is connected to it in the namespace `outside`.
    pub(crate) fn start(inside: PathBuf, outside: PathBuf, to: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let doors = to.iter().map(|to| {
            let (inside, outside, to) = (inside.clone(), outside.clone(), *to);
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || door(&inside, &outside, to, &stop))
        });
        Self {
            doors: doors.collect(),
            stop,
        }
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for door in self.doors.drain(..) {
            // A door that panicked has said so.
            let _ = door.join();
        }
    }
}

fn door(inside: &Path, outside: &Path, to: SocketAddr, stop: &AtomicBool) {
    enter(inside);
    let listener = TcpListener::bind(to).expect("the address is ours inside");
    listener.set_nonblocking(true).expect("set");
    enter(outside);
    let mut open: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((near, _)) => open.extend(carry(near, to)),
            Err(_) => std::thread::park_timeout(LOOK),
        }
    }
    for stream in open {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Both ends, for whoever wants to end them; none when nobody answers.
fn carry(near: TcpStream, to: SocketAddr) -> Vec<TcpStream> {
    // Accepted from a listener that does not wait.
    let dialled = near
        .set_nonblocking(false)
        .and_then(|()| TcpStream::connect_timeout(&to, DIAL));
    let Ok(far) = dialled else {
        return Vec::new();
    };
    let _ = near.set_nodelay(true).and(far.set_nodelay(true));
    let pair = || Ok::<_, io::Error>((near.try_clone()?, far.try_clone()?));
    let (Ok((from, into)), Ok((back_into, back_from))) = (pair(), pair()) else {
        return Vec::new();
    };
    std::thread::spawn(move || copy(from, into));
    std::thread::spawn(move || copy(back_from, back_into));
    vec![near, far]
}

fn copy(mut from: TcpStream, mut into: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) if into.write_all(&buffer[..length]).is_ok() => {}
            _ => {
                let _ = from.shutdown(Shutdown::Both);
                break;
            }
        }
    }
    let _ = into.shutdown(Shutdown::Write);
}
