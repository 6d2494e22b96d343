//! Bodies in both directions: they stream, one piece at a time, and enforce the route's timeouts.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::headers::filter_trailers;
use crate::credential::Credential;
use crate::routes::Route;

/// Why a body ended early. Carries no content.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The other side broke off or sent a malformed body.
    #[error("the body broke off")]
    Broken(#[source] hyper::Error),
    /// No piece came within the route's `timeouts.idle`.
    #[error("no data within timeouts.idle")]
    Idle,
    /// `timeouts.request` is over.
    #[error("timeouts.request is over")]
    Deadline,
    /// A credential was found in the body and the route says `scrub: Block`.
    #[error("a credential was found in the body")]
    Blocked,
}

/// What goes to the upstream.
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// Was buffered in order to sign it.
    Full(Option<Bytes>),
    /// Streams.
    Stream(Box<Upload>),
}

/// A streaming request body.
pub struct Upload {
    incoming: Incoming,
    progress: Arc<Progress>,
    idle: IdleTimer,
    gate: Option<ContinueGate>,
    /// They say which trailers may pass.
    route: Arc<Route>,
    credential: Arc<Credential>,
}

/// How far an upload is, for whoever waits for the answer.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: AtomicU64,
    finished: AtomicBool,
}

impl Progress {
    /// Bytes taken from the agent so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The whole body was taken.
    pub fn finished(&self) -> bool {
        self.finished.load(Ordering::Relaxed)
    }
}

impl RequestBody {
    /// Streams `incoming`; `gate` holds it back until the upstream wants it.
    pub fn stream(
        incoming: Incoming,
        gate: Option<ContinueGate>,
        route: &Arc<Route>,
        credential: &Arc<Credential>,
    ) -> (Self, Option<Arc<Progress>>) {
        if incoming.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Arc::new(Progress::default());
        let upload = Upload {
            incoming,
            progress: Arc::clone(&progress),
            idle: IdleTimer::new(route.compiled.timeouts.idle),
            gate,
            route: Arc::clone(route),
            credential: Arc::clone(credential),
        };
        (Self::Stream(Box::new(upload)), Some(progress))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(upload) => upload.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(upload) => upload.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(upload) => upload.incoming.size_hint(),
        }
    }
}

impl Upload {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(gate) = &mut self.gate {
            ready!(gate.poll(cx));
            self.gate = None;
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                self.idle.progressed();
                if let Some(data) = frame.data_ref() {
                    self.progress
                        .bytes
                        .fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                if let Some(trailers) = frame.trailers_mut() {
                    filter_trailers(trailers, &self.route.compiled, &self.credential);
                }
                if self.incoming.is_end_stream() {
                    self.progress.finished.store(true, Ordering::Relaxed);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(BodyError::Broken(error)))),
            Poll::Ready(None) => {
                self.progress.finished.store(true, Ordering::Relaxed);
                Poll::Ready(None)
            }
            Poll::Pending => self.idle.poll(cx).map(|()| Some(Err(BodyError::Idle))),
        }
    }
}

/// Holds a body back after `Expect: 100-continue`: taking the first byte is what makes the server side ask
/// the agent for it (RFC 9110 section 10.1.1).
pub struct ContinueGate {
    asked: Option<oneshot::Receiver<()>>,
    patience: Pin<Box<Sleep>>,
}

impl ContinueGate {
    /// Opens when the sender is used, or after `patience`.
    pub fn new(asked: oneshot::Receiver<()>, patience: Duration) -> Self {
        Self {
            asked: Some(asked),
            patience: Box::pin(tokio::time::sleep(patience)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(asked) = &mut self.asked
            && let Poll::Ready(answer) = Pin::new(asked).poll(cx)
        {
            // A dropped sender is no wish for the body: the upstream may have refused it with its answer.
            self.asked = None;
            if answer.is_ok() {
                return Poll::Ready(());
            }
        }
        self.patience.as_mut().poll(cx)
    }
}

/// Fires when nothing came for a while. Costs nothing as long as data is there: the clock is read and the
/// timer set only when a body has to be waited for.
pub struct IdleTimer {
    limit: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    running: bool,
}

impl IdleTimer {
    /// `None` never fires.
    pub fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            sleep: None,
            running: false,
        }
    }

    /// Starts anew at the next wait.
    pub fn progressed(&mut self) {
        self.running = false;
    }

    /// Ready once the limit has passed in one wait.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else {
            return Poll::Pending;
        };
        if !self.running {
            self.running = true;
            let deadline = Instant::now() + limit;
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(deadline),
                None => self.sleep = Some(Box::pin(tokio::time::sleep_until(deadline))),
            }
        }
        self.sleep
            .as_mut()
            .map_or(Poll::Pending, |sleep| sleep.as_mut().poll(cx))
    }
}
