//! A TCP load balancer in the test, as kube-proxy is one for a Service: every new connection goes to the next backend,
//! and backends come and go.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// A running one, on a thread of its own: tests have a runtime each, and it is for all of them. Ends with the process.
#[derive(Debug)]
pub struct Forwarder {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    backends: Mutex<Vec<SocketAddr>>,
    next: AtomicUsize,
    connections: Mutex<Vec<SocketAddr>>,
}

impl Forwarder {
    /// Starts one without backends on a free port.
    ///
    /// # Panics
    ///
    /// When there is no free port.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(accept(listener, accepting));
        });
        Self { port, shared }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where new connections go from now on: these ports of this machine, by turns.
    ///
    /// # Panics
    ///
    /// When one of its tasks panicked.
    pub fn lead_to(&self, ports: &[u16]) {
        let address = |port: &u16| SocketAddr::from(([127, 0, 0, 1], *port));
        *self.shared.backends.lock().unwrap() = ports.iter().map(address).collect();
    }

    /// Connections so far to a port.
    ///
    /// # Panics
    ///
    /// When one of its tasks panicked.
    pub fn connections(&self, port: u16) -> usize {
        let connections = self.shared.connections.lock().unwrap();
        connections.iter().filter(|it| it.port() == port).count()
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((mut client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            if let Some(mut backend) = connect(&shared).await {
                copy_bidirectional(&mut client, &mut backend).await.ok();
            }
        });
    }
}

/// The next backend that answers.
async fn connect(shared: &Shared) -> Option<TcpStream> {
    let backends = shared.backends.lock().unwrap().clone();
    for _ in 0..backends.len() {
        let index = shared.next.fetch_add(1, Ordering::Relaxed) % backends.len();
        if let Ok(stream) = TcpStream::connect(backends[index]).await {
            stream.set_nodelay(true).ok();
            shared.connections.lock().unwrap().push(backends[index]);
            return Some(stream);
        }
    }
    None
}
