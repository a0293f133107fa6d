//! A door on loopback in front of a server: shut, it cuts every connection and takes none, as if the server were gone; asked to swallow,
//! it lets nothing more through the connections there are, and cuts none.
//!
//! Kafka's clients connect to the address that a broker tells them, so the door writes its own in the place of the server's into every
//! answer. Both are `127.0.0.1` with a port of four bytes after it, so no length changes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// A door; it lasts as long as the test's process.
pub(super) struct Door {
    port: u16,
    is_open: Arc<Latch>,
    /// The server behind it.
    leads_to: Arc<Mutex<String>>,
    passing: Arc<Mutex<Vec<TcpStream>>>,
    /// Connections made before this many swallowings are mute.
    swallowed: Arc<AtomicU64>,
}

impl Door {
    /// An open door to `server`, `127.0.0.1:port`.
    pub(super) fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("address").port();
        let is_open = Arc::new(Latch::default());
        let passing = Arc::new(Mutex::new(Vec::new()));
        let server_port: u16 = server.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
        let told = (address_bytes(server_port), address_bytes(port));
        let swallowed = Arc::new(AtomicU64::new(0));
        let leads_to = Arc::new(Mutex::new(server.to_owned()));
        let (behind, open, streams) = (Arc::clone(&leads_to), Arc::clone(&is_open), Arc::clone(&passing));
        let swallowings = Arc::clone(&swallowed);
        std::thread::spawn(move || {
            let mut listener = Some(listener);
            loop {
                // Shut, nobody listens: connections are refused, as they are where a server died.
                let Some(Ok((client, _))) = listener.as_ref().map(TcpListener::accept) else { return };
                if !open.wait_if_shut(|| drop(listener.take())) {
                    let server = behind.lock().expect("lock").clone();
                    let Ok(server) = TcpStream::connect(server) else { continue };
                    for stream in [&client, &server] {
                        drop(stream.set_nodelay(true));
                        streams.lock().expect("lock").push(stream.try_clone().expect("clone"));
                    }
                    let (from, to) = (client.try_clone().expect("clone"), server.try_clone().expect("clone"));
                    let mute = Mute { born: swallowings.load(Ordering::SeqCst), now: Arc::clone(&swallowings) };
                    let (told, also) = (told.clone(), mute.clone());
                    std::thread::spawn(move || pass(from, to, None, &mute));
                    std::thread::spawn(move || pass(server, client, Some(told), &also));
                    continue;
                }
                drop(client);
                listener = TcpListener::bind(("127.0.0.1", port)).ok();
            }
        });
        Self { port, is_open, leads_to, passing, swallowed }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Connections from now on reach `server`, another database under the same address.
    pub(super) fn lead_to(&self, server: &str) {
        server.clone_into(&mut self.leads_to.lock().expect("lock"));
    }

    pub(super) fn shut(&self) {
        self.is_open.shut();
        // The thread that waits for a connection gets one more, and sees it.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        for stream in self.passing.lock().expect("lock").drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// From now on the connections that there are say nothing, and give no error either; new ones work.
    pub(super) fn swallow(&self) {
        self.swallowed.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn open(&self) {
        self.is_open.open();
    }
}

/// Whether a connection was swallowed.
#[derive(Clone)]
struct Mute {
    born: u64,
    now: Arc<AtomicU64>,
}

impl Mute {
    fn is_mute(&self) -> bool {
        self.now.load(Ordering::SeqCst) != self.born
    }
}

/// Whether the door is shut, and a wait for it to open.
#[derive(Default)]
struct Latch {
    is_shut: Mutex<bool>,
    changed: Condvar,
}

impl Latch {
    fn shut(&self) {
        *self.is_shut.lock().expect("lock") = true;
    }

    fn open(&self) {
        *self.is_shut.lock().expect("lock") = false;
        self.changed.notify_all();
    }

    /// Where it is shut: does `first`, waits until it opens, and says so.
    fn wait_if_shut(&self, first: impl FnOnce()) -> bool {
        let is_shut = self.is_shut.lock().expect("lock");
        if !*is_shut {
            return false;
        }
        first();
        drop(self.changed.wait_while(is_shut, |shut| *shut).expect("lock"));
        true
    }
}

/// How Kafka's protocol writes a broker's address.
fn address_bytes(port: u16) -> Vec<u8> {
    [b"127.0.0.1".as_slice(), &u32::from(port).to_be_bytes()].concat()
}

/// Passes bytes on until either side ends, with one text in the place of another of the same length.
fn pass(mut from: TcpStream, mut to: TcpStream, replace: Option<(Vec<u8>, Vec<u8>)>, mute: &Mute) {
    let mut chunk = vec![0; 64 * 1024];
    let mut held = Vec::new();
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        while mute.is_mute() {
            // For as long as the test's process lasts, with both connections open.
            std::thread::park();
        }
        held.extend_from_slice(&chunk[..read]);
        let mut keep = 0;
        if let Some((old, new)) = &replace {
            let mut at = 0;
            while let Some(found) = held[at..].windows(old.len()).position(|w| w == old) {
                held[at + found..at + found + old.len()].copy_from_slice(new);
                at += found + old.len();
            }
            // What may be the beginning of an address waits for the rest of it.
            keep = (1..old.len().min(held.len() + 1)).rev().find(|n| held.ends_with(&old[..*n])).unwrap_or(0);
        }
        let rest = held.split_off(held.len() - keep);
        if to.write_all(&held).is_err() {
            break;
        }
        held = rest;
    }
    drop(to.shutdown(Shutdown::Both));
    drop(from.shutdown(Shutdown::Both));
}
