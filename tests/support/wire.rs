//! A TCP connection between two that can be cut, reset or refused at a chosen moment.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::loopback::Loopback;

/// Passes connections on to an address. Dropping it ends all of them.
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Whether new connections are accepted at all.
    open: watch::Sender<bool>,
    /// Ends the connections that are open.
    ending: watch::Sender<()>,
    _loopback: Loopback,
}

#[derive(Default)]
struct Shared {
    /// How many bytes may still come back before the connection that brings the next one is cut, once.
    left: Mutex<Option<u64>>,
    /// How many of the next connections are reset as soon as they ask for something.
    resets: Mutex<usize>,
    cuts: watch::Sender<usize>,
}

impl Wire {
    /// A way to `target`, an address.
    pub fn to(target: &str) -> anyhow::Result<Self> {
        let target: SocketAddr = target.parse()?;
        let loopback = Loopback::new("wire")?;
        let (listener, address) = loopback.bind()?;
        let shared = Arc::new(Shared::default());
        let (open, opened) = watch::channel(true);
        let ending = watch::Sender::new(());
        loopback.spawn(accept(listener, target, Arc::clone(&shared), opened, ending.subscribe()));
        Ok(Self { address, shared, open, ending, _loopback: loopback })
    }

    /// Where it listens: `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Lets so many bytes of answers through, on all connections together; the connection with the next one is closed.
    pub fn cut_after(&self, bytes: u64) {
        *lock(&self.shared.left) = Some(bytes);
    }

    /// Resets the next connections, so many of them, as soon as something is asked on them; those that are open end now.
    pub fn reset(&self, connections: usize) {
        *lock(&self.shared.resets) = connections;
    }

    /// How many connections have been cut or reset.
    pub fn cuts(&self) -> usize {
        *self.shared.cuts.borrow()
    }

    /// Ends the connections that are open, as a server does with those that lie idle.
    pub fn end_open(&self) {
        self.ending.send_replace(());
    }

    /// Refuses connections from now on; those that are open end.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Accepts connections again.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    shared: Arc<Shared>,
    mut open: watch::Receiver<bool>,
    ending: watch::Receiver<()>,
) {
    let address = listener.local_addr();
    let mut listener = Some(listener);
    loop {
        let Some(listening) = &listener else {
            if open.wait_for(|open| *open).await.is_err() {
                return;
            }
            let Ok(address) = address.as_ref() else { return };
            listener = TcpListener::bind(address).await.ok();
            continue;
        };
        let mut closing = open.clone();
        tokio::select! {
            accepted = listening.accept() => {
                let Ok((client, _)) = accepted else { return };
                let shared = Arc::clone(&shared);
                let mut ending = ending.clone();
                ending.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = relay(client, target, &shared) => {}
                        _ = closing.wait_for(|open| !*open) => {}
                        _ = ending.changed() => {}
                    }
                });
            }
            closed = open.wait_for(|open| !*open) => {
                if closed.is_err() {
                    return;
                }
                listener = None;
            }
        }
    }
}

async fn relay(client: TcpStream, target: SocketAddr, shared: &Shared) -> std::io::Result<()> {
    let mut upstream = TcpStream::connect(target).await?;
    let mut client = client;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (mut asked, mut answered) = (vec![0; 16 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            count = client.read(&mut asked) => {
                let count = count?;
                if count == 0 {
                    return Ok(());
                }
                if shared.takes_reset() {
                    // With nothing lingering, closing a connection resets it.
                    return client.set_zero_linger();
                }
                upstream.write_all(&asked[..count]).await?;
            }
            count = upstream.read(&mut answered) => {
                let count = count?;
                if count == 0 {
                    return Ok(());
                }
                if let Some(last) = shared.cuts_within(count) {
                    client.write_all(&answered[..last]).await?;
                    return client.shutdown().await;
                }
                client.write_all(&answered[..count]).await?;
            }
        }
    }
}

impl Shared {
    fn takes_reset(&self) -> bool {
        let mut resets = lock(&self.resets);
        let takes = *resets > 0;
        *resets -= usize::from(takes);
        if takes {
            self.cuts.send_modify(|cuts| *cuts += 1);
        }
        takes
    }

    /// Whether the connection ends within the next `count` bytes, and after how many of them.
    fn cuts_within(&self, count: usize) -> Option<usize> {
        let mut left = lock(&self.left);
        let remaining = left.as_mut()?;
        if *remaining > count as u64 {
            *remaining -= count as u64;
            return None;
        }
        let last = left.take().and_then(|left| usize::try_from(left).ok());
        self.cuts.send_modify(|cuts| *cuts += 1);
        last
    }
}
