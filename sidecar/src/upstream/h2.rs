//! HTTP/2 connections: many requests at a time, at most as many as the peer's SETTINGS allow, which hyper would
//! queue for without a word.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::sync::Notify;

use super::body::{Lease, UpstreamBody};
use super::error::{ConnectError, SendError};
use super::pool::Sent;
use super::stream::Stream;
use super::{IDLE_TICKS, RequestBody};

/// What one answer may have on its way or unread, in bytes: 1 MiB fills a link of 80 Mbit/s over 100 ms.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The same for all answers of a connection together: its bound in memory.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Body of one request that may be buffered, in bytes.
const MAX_SEND_BUFFER: usize = 256 * 1024;
/// Largest field section of an answer, in bytes.
const MAX_HEADER_LIST: u32 = 1024 * 1024;
/// Cancelled streams that are remembered until the peer knows: as many as a connection usually has streams.
const MAX_RESET_STREAMS: usize = 256;
/// Silence after which the peer is asked for a sign of life while streams are open.
const PING_AFTER: Duration = Duration::from_secs(30);
/// How long it may take to give one.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

type Sender<B> = http2::SendRequest<Counted<B>>;
type Driver<B> = http2::Connection<TokioIo<Stream>, Counted<B>, Spawner>;

/// A connection that many requests share.
pub(super) struct Connection<B: RequestBody> {
    sender: Sender<B>,
    streams: Arc<Streams>,
    /// Rounds of the reaper since the last request.
    idle_rounds: u8,
}

/// Room for one more stream on a connection.
pub(super) struct Room<B: RequestBody> {
    sender: Sender<B>,
    stream: Arc<OpenStream>,
}

#[derive(Debug, Default)]
struct Streams {
    /// What the peer's `SETTINGS_MAX_CONCURRENT_STREAMS` allows now.
    limit: AtomicUsize,
    /// Streams in use.
    open: AtomicUsize,
    /// A request was answered.
    answered: AtomicBool,
}

/// Counts as an open stream of its connection until it is dropped. Both bodies of an exchange hold it, since an
/// answer may end before its request does.
#[derive(Debug)]
pub(super) struct OpenStream(Arc<Streams>);

impl<B: RequestBody> Connection<B> {
    /// Speaks HTTP/2 over `stream`; ready when the peer's SETTINGS are known and allow a stream.
    pub(super) async fn open(stream: Stream) -> Result<Self, ConnectError> {
        let spawner = Spawner::default();
        let (sender, driver) = builder(spawner.clone())
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError::Http2(Some(error)))?;
        let driver = spawner.settled(driver).await?;
        let streams = Arc::new(Streams::default());
        streams.update(&driver);
        tokio::spawn(drive(driver, Arc::clone(&streams)));
        Ok(Self {
            sender,
            streams,
            idle_rounds: 0,
        })
    }

    /// Takes room for a stream if there is any. Only called under the pool's lock, so two calls never take the same.
    pub(super) fn room(&mut self) -> Option<Room<B>> {
        let streams = &self.streams;
        if streams.open.load(Ordering::Acquire) >= streams.limit.load(Ordering::Relaxed) {
            return None;
        }
        streams.open.fetch_add(1, Ordering::Relaxed);
        self.idle_rounds = 0;
        Some(Room {
            sender: self.sender.clone(),
            stream: Arc::new(OpenStream(Arc::clone(streams))),
        })
    }

    /// True if no request can be sent any more: the peer said GOAWAY or the connection ended.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// A round of the reaper: false if the connection has been without streams for [`IDLE_TICKS`] rounds.
    pub(super) fn stays(&mut self) -> bool {
        if self.streams.open.load(Ordering::Acquire) > 0 {
            self.idle_rounds = 0;
        } else {
            self.idle_rounds += 1;
        }
        self.idle_rounds < IDLE_TICKS && !self.is_closed()
    }
}

impl<B: RequestBody> Room<B> {
    /// Sends `request`, whose URI has scheme and authority. Returns it if the connection took no more requests.
    /// Dropping the future resets the stream.
    pub(super) async fn send(mut self, mut request: Request<B>) -> Result<Sent<B>, SendError> {
        *request.version_mut() = Version::HTTP_2;
        let reused = self.stream.0.answered.load(Ordering::Relaxed);
        let request = request.map(|body| Counted {
            stream: (!body.is_end_stream()).then(|| Arc::clone(&self.stream)),
            body,
        });
        match self.sender.try_send_request(request).await {
            Ok(answer) => {
                self.stream.0.answered.store(true, Ordering::Relaxed);
                Ok(Sent::Answer(answer.map(|body| {
                    UpstreamBody::new(body, Lease::Http2(self.stream))
                })))
            }
            Err(mut failed) => match failed.take_message() {
                Some(request) => Ok(Sent::Not(request.map(|counted| counted.body))),
                None => Err(SendError::Unanswered {
                    source: failed.into_error(),
                    reused,
                }),
            },
        }
    }
}

impl Streams {
    fn update<B: RequestBody>(&self, driver: &Driver<B>) {
        let limit = driver.current_max_send_streams();
        self.limit.store(limit, Ordering::Relaxed);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Release);
    }
}

fn builder(spawner: Spawner) -> http2::Builder<Spawner> {
    let mut builder = http2::Builder::new(spawner);
    builder
        .timer(TokioTimer::new())
        // No stream before the peer's SETTINGS: see `Spawner::settled`.
        .initial_max_send_streams(0)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    builder
}

/// Runs a connection, and notes the peer's limit whenever it moved on. hyper polls it for every request, so a lowered
/// limit is known one request late at most; that one waits inside hyper.
async fn drive<B: RequestBody>(mut driver: Driver<B>, streams: Arc<Streams>) {
    let ended = poll_fn(|cx| {
        let polled = Pin::new(&mut driver).poll(cx);
        streams.update(&driver);
        polled
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "upstream connection ended"
        );
    }
}

/// Runs hyper's tasks, and until the peer's SETTINGS came, tells when they made progress.
#[derive(Clone, Default)]
struct Spawner(Arc<Settling>);

#[derive(Default)]
struct Settling {
    settled: AtomicBool,
    ended: AtomicBool,
    progress: Notify,
}

impl Spawner {
    /// Waits until the peer allows streams. hyper applies SETTINGS in a task of its own and tells nobody, but the
    /// limit, which starts at zero, moves; a peer that sets none allows any number.
    async fn settled<B: RequestBody>(&self, driver: Driver<B>) -> Result<Driver<B>, ConnectError> {
        while driver.current_max_send_streams() == 0 {
            if self.0.ended.load(Ordering::Acquire) {
                return Err(ConnectError::Http2(driver.await.err()));
            }
            self.0.progress.notified().await;
        }
        self.0.settled.store(true, Ordering::Release);
        Ok(driver)
    }
}

impl<F> Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        if self.0.settled.load(Ordering::Acquire) {
            tokio::spawn(future);
        } else {
            let settling = Arc::clone(&self.0);
            tokio::spawn(Watched { future, settling });
        }
    }
}

pin_project! {
    /// A task that tells [`Spawner::settled`] about its progress.
    struct Watched<F> {
        #[pin]
        future: F,
        settling: Arc<Settling>,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let polled = this.future.poll(cx);
        if !this.settling.settled.load(Ordering::Acquire) {
            this.settling
                .ended
                .fetch_or(polled.is_ready(), Ordering::Release);
            this.settling.progress.notify_one();
        }
        polled
    }
}

pin_project! {
    /// A request's body that counts as part of its stream.
    struct Counted<B> {
        #[pin]
        body: B,
        stream: Option<Arc<OpenStream>>,
    }
}

impl<B: RequestBody> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
