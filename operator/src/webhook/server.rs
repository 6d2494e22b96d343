//! The listener that the API server calls: TCP connections flow in, each is served over TLS with the certificate of
//! the moment, and answered by the router.
//!
//! The API server speaks HTTP/1.1 to the webhooks of a Service (kubernetes issue 75791) and keeps idle connections for
//! 90 s. Closing an idle one would race with its next request, which Go does not repeat, and the pod would be refused.
//! So a connection is never closed while it is idle: once the certificate has changed, or the connection is old, or
//! the process ends, its next answer says `Connection: close`. HTTP/2 has GOAWAY for this.

mod connection;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use self::connection::{Ending, serve_connection};
use crate::tls::ServingCertificate;

/// Connections at once; there are a few API servers with some 25 each.
const MAX_CONNECTIONS: usize = 1024;
/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Age after which a connection is renewed, so that load spreads over replicas that came later.
const MAX_AGE: Duration = Duration::from_mins(10);
/// Pauses after failed accepts: file descriptors come back when connections close, not by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown` is true, then accepts no more and lets what is in flight finish within `drain`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    certificate: ServingCertificate,
    shutdown: watch::Receiver<bool>,
    drain: Duration,
) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(certificate.config().clone());
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut ending = shutdown.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = ending.wait_for(|ending| *ending) => break,
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection of the API server");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let acceptor = acceptor.clone();
        let router = router.clone();
        let ending = Ending::new(&certificate, shutdown.clone(), jittered(MAX_AGE));
        connections.spawn(async move {
            if let Err(error) = serve_one(stream, acceptor, router, ending).await {
                // Port scans and clients that go away are everyday.
                tracing::debug!(%peer, %error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(drain, all).await.is_err() {
        // Idle ones are among them: their client has not asked anything that could have told it to go.
        tracing::debug!("connections were still open at the end of --drain-timeout");
    }
    Ok(())
}

/// Connections beyond the bound wait in the listener's queue.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await;
    let place = place.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

async fn serve_one(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    ending: Ending,
) -> Result<(), connection::ConnectionError> {
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await;
    let stream = stream.map_err(|_| connection::ConnectionError::Handshake(HANDSHAKE_LIMIT))??;
    serve_connection(stream, router, ending).await
}

/// A tenth more or less, so that connections of one moment do not all end in one moment.
fn jittered(span: Duration) -> Duration {
    span.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests;
