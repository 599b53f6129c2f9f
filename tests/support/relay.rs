//! A TCP relay in front of a server that forgets connections, as a NAT does: nothing is closed,
//! and nothing comes through any more. New connections work. Can also be a slow line.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// A running relay; dropped, it takes no more connections.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Connections of an earlier era are swallowed.
    era: AtomicUsize,
    accepted: AtomicUsize,
    /// Bytes a second towards the server; 0 has no limit.
    rate: AtomicU64,
    stopped: AtomicBool,
}

impl Relay {
    /// Starts one on a free port of 127.0.0.1.
    pub fn start(to: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared::default());
        let relay = Relay { address, shared: shared.clone() };
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stopped.load(SeqCst) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(to)) else { continue };
                shared.accepted.fetch_add(1, SeqCst);
                let era = shared.era.load(SeqCst);
                let copies = (client.try_clone(), server.try_clone());
                let (Ok(client_too), Ok(server_too)) = copies else { continue };
                let (up, down) = (shared.clone(), shared.clone());
                thread::spawn(move || up.forward(era, client, server, true));
                thread::spawn(move || down.forward(era, server_too, client_too, false));
            }
        });
        relay
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every connection that is open now leads nowhere from now on.
    pub fn swallow(&self) {
        self.shared.era.fetch_add(1, SeqCst);
    }

    /// Connections taken so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(SeqCst)
    }

    /// Lets so many bytes a second through to the server, on each connection.
    pub fn slow_down(&self, bytes_per_second: u64) {
        self.shared.rate.store(bytes_per_second, SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the thread that accepts
    }
}

impl Shared {
    fn forward(&self, era: usize, mut from: TcpStream, mut to: TcpStream, is_up: bool) {
        let mut piece = [0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            if self.era.load(SeqCst) != era {
                continue; // read and forgotten: the sender gets its acknowledgement, and no more
            }
            let rate = if is_up { self.rate.load(SeqCst) } else { 0 };
            if rate > 0 {
                thread::sleep(Duration::from_secs_f64(length as f64 / rate as f64));
            }
            if to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        if self.era.load(SeqCst) == era {
            let _ = to.shutdown(Shutdown::Both); // the other end may be gone
        }
    }
}
