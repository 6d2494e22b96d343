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
use tokio::time::{Instant, Sleep};

use super::expectation::ContinueGate;
use super::headers::filter_trailers;
use super::replay::{Piece, ReplayBuffer};
use super::respond::DecodeError;
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
    /// The upstream answered without asking for the body that was announced.
    #[error("the upstream did not want the body")]
    Unwanted,
    /// The request is sent again, with this body.
    #[error("the request is sent again")]
    Superseded,
    /// The route or the tenant was removed while the answer streamed.
    #[error("the route or its tenant was removed")]
    Removed,
    /// `timeouts.request` is over.
    #[error("timeouts.request is over")]
    Deadline,
    /// A credential was found in the answer and the route says `scrub: Block`.
    #[error("a credential was found in the answer")]
    Blocked,
    /// The body is compressed and holds a credential, or cannot be looked through.
    #[error("the compressed body was cut")]
    Compressed(#[from] DecodeError),
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
    /// What the agent still sends.
    incoming: Option<Incoming>,
    /// Bytes of the whole body, where the agent has said.
    length: Option<u64>,
    progress: Arc<Progress>,
    idle: IdleTimer,
    gate: Option<ContinueGate>,
    replay: Option<Arc<ReplayBuffer>>,
    /// The next piece of `replay` to send, until what was sent before is sent again.
    behind: Option<usize>,
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

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Upload {
    /// Streams `incoming`, filling `replay` on the way.
    pub fn new(
        incoming: Incoming,
        replay: Option<Arc<ReplayBuffer>>,
        route: &Arc<Route>,
        credential: &Arc<Credential>,
    ) -> Self {
        Self {
            length: incoming.size_hint().exact(),
            incoming: Some(incoming),
            progress: Arc::default(),
            idle: IdleTimer::new(route.compiled.timeouts.idle),
            gate: None,
            replay,
            behind: None,
            route: Arc::clone(route),
            credential: Arc::clone(credential),
        }
    }

    /// Sends what `replay` holds, and then the `rest` that the agent had not sent yet.
    pub fn again(
        rest: Option<Incoming>,
        length: Option<u64>,
        replay: Arc<ReplayBuffer>,
        route: &Arc<Route>,
        credential: &Arc<Credential>,
    ) -> Self {
        Self {
            incoming: rest,
            length,
            progress: Arc::default(),
            idle: IdleTimer::new(route.compiled.timeouts.idle),
            gate: None,
            replay: Some(replay),
            behind: Some(0),
            route: Arc::clone(route),
            credential: Arc::clone(credential),
        }
    }

    /// Holds the body back until the upstream wants it.
    #[must_use]
    pub fn gated(mut self, gate: Option<ContinueGate>) -> Self {
        self.gate = gate;
        self
    }

    /// How far it is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Bytes of the whole body, where the agent has said.
    pub fn length(&self) -> Option<u64> {
        self.length
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
            Self::Stream(upload) => upload.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(upload) => upload.size_hint(),
        }
    }
}

impl Upload {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(replay) = &self.replay
            && !replay.may_go_on(cx)
        {
            self.give_back();
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(gate) = &mut self.gate {
            if let Err(error) = ready!(gate.poll(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
            self.gate = None;
        }
        if let Some(frame) = self.catch_up() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(incoming) = &mut self.incoming else {
            self.finished();
            return Poll::Ready(None);
        };
        match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let ended = incoming.is_end_stream();
                self.idle.progressed();
                let frame = self.pass(frame);
                if ended {
                    self.finished();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.incoming = None;
                if let Some(replay) = &self.replay {
                    replay.discard();
                }
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            Poll::Ready(None) => {
                self.finished();
                Poll::Ready(None)
            }
            Poll::Pending => self.idle.poll(cx).map(|()| Some(Err(BodyError::Idle))),
        }
    }

    /// A piece that the attempt before has sent.
    fn catch_up(&mut self) -> Option<Frame<Bytes>> {
        let index = self.behind?;
        let piece = self.replay.as_ref().and_then(|replay| replay.piece(index));
        self.behind = piece.is_some().then_some(index + 1);
        Some(match piece? {
            Piece::Data(data) => {
                self.progress.add(data.len());
                Frame::data(data)
            }
            Piece::Trailers(mut trailers) => {
                filter_trailers(&mut trailers, &self.route.compiled, &self.credential);
                Frame::trailers(trailers)
            }
        })
    }

    /// Notes a piece of the agent's and makes it ready to send.
    fn pass(&self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(data) = frame.data_ref() {
            self.progress.add(data.len());
            if let Some(replay) = &self.replay {
                replay.keep(data);
            }
        }
        if let Some(trailers) = frame.trailers_mut() {
            if let Some(replay) = &self.replay {
                replay.keep_trailers(trailers);
            }
            filter_trailers(trailers, &self.route.compiled, &self.credential);
        }
        frame
    }

    fn finished(&mut self) {
        self.incoming = None;
        self.progress.finished.store(true, Ordering::Relaxed);
        if let Some(replay) = &self.replay {
            replay.complete();
        }
    }

    fn give_back(&mut self) {
        if let (Some(rest), Some(replay)) = (self.incoming.take(), &self.replay) {
            replay.give_back(rest);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.behind.is_none() && self.incoming.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, |length| {
            SizeHint::with_exact(length.saturating_sub(self.progress.bytes()))
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.give_back();
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
