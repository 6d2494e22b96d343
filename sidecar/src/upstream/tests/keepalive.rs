//! HTTP/2 PINGs on a clock that stands still, over a connection in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep, timeout};

use super::frames::Peer;
use super::support::*;
use crate::upstream::h2::Connection;
use crate::upstream::pool::Sent;
use crate::upstream::socket::Socket;
use crate::upstream::stream::Stream;
use crate::upstream::{SendError, UpstreamBody};

/// Silence until a PING, and then until the end.
const PATIENCE: Duration = Duration::from_secs(30 + 20);
/// Far beyond that: what has not ended by then never does.
const FOREVER: Duration = Duration::from_hours(1);

async fn connected<F, R>(serve: F) -> Connection<Body>
where
    F: FnOnce(Peer<DuplexStream>) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move { serve(Peer::greet(far, 100).await).await });
    let socket = Socket::from(near);
    Connection::open(Stream::from(socket)).await.unwrap()
}

async fn get(connection: &mut Connection<Body>) -> Result<http::Response<UpstreamBody>, SendError> {
    let mut request = request("GET", empty());
    *request.uri_mut() = "http://upstream.example/".parse().unwrap();
    match connection.room().unwrap().send(request).await? {
        Sent::Answer(answer) => Ok(answer),
        Sent::Not(_) => panic!("the connection has ended"),
    }
}

/// Reads for ever, and answers PINGs, which it counts.
async fn ponging(peer: &mut Peer<DuplexStream>, pings: &AtomicUsize) {
    while let Some(frame) = peer.read().await {
        if frame.is_ping() {
            pings.fetch_add(1, Ordering::SeqCst);
            peer.pong(&frame).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_may_be_silent_for_as_long_as_pings_are_answered() {
    const SILENCE: Duration = Duration::from_mins(11);
    let pings = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&pings);
    let mut connection = connected(async move |mut peer| {
        let stream = peer.request().await.unwrap();
        let answer_at = sleep(SILENCE);
        tokio::select! {
            () = ponging(&mut peer, &counted) => panic!("the connection ended"),
            () = answer_at => peer.answer(stream, true).await,
        }
        ponging(&mut peer, &counted).await;
    })
    .await;
    let started = Instant::now();
    assert_eq!(get(&mut connection).await.unwrap().status(), 200);
    assert!(started.elapsed() >= SILENCE);
    // One every 30 seconds, and none at the moment of the answer.
    let asked = pings.load(Ordering::SeqCst);
    assert!((20..=22).contains(&asked), "{asked} PINGs");
    sleep(SILENCE).await;
    assert!(
        pings.load(Ordering::SeqCst) <= asked + 1,
        "nothing is asked while no stream is open"
    );
    assert!(!connection.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_when_pings_are_not_answered() {
    let mut connection = connected(async |mut peer| while peer.read().await.is_some() {}).await;
    let started = Instant::now();
    let failed = timeout(FOREVER, get(&mut connection)).await.unwrap();
    let failed = failed.unwrap_err();
    assert!(
        matches!(failed, SendError::Unanswered { reused: false, .. }),
        "{failed:?}"
    );
    assert!(started.elapsed() >= PATIENCE);
    assert!(started.elapsed() < PATIENCE + Duration::from_secs(1));
    assert!(connection.is_closed());
}

#[tokio::test(start_paused = true)]
async fn an_answer_ends_in_an_error_when_pings_are_not_answered() {
    let mut connection = connected(async |mut peer| {
        let stream = peer.request().await.unwrap();
        peer.answer(stream, false).await;
        while peer.read().await.is_some() {}
    })
    .await;
    let answer = get(&mut connection).await.unwrap();
    let started = Instant::now();
    let body = timeout(FOREVER, answer.into_body().collect()).await;
    assert!(body.unwrap().is_err());
    assert!(started.elapsed() >= PATIENCE);
    assert!(started.elapsed() < PATIENCE + Duration::from_secs(1));
}
