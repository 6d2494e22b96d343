//! A request's body over all attempts to send it: what the next one sends, how far the last one is, and whether there
//! can be another.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::EXPECT;
use hyper::body::{Body, Incoming};

use super::body::{Progress, RequestBody, Upload};
use super::expectation::{ContinueGate, Expectation};
use super::replay::ReplayBuffer;
use crate::credential::Credential;
use crate::routes::Route;

/// How long a body that the agent announced with `Expect: 100-continue` is held back.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// The body of one request.
pub struct Payload {
    next: RequestBody,
    source: Source,
    /// Of the attempt that streams.
    progress: Option<Arc<Progress>>,
    /// Of a body that was announced with `Expect: 100-continue`.
    expectation: Option<Arc<Expectation>>,
}

/// Where another attempt takes the body from.
enum Source {
    /// There is none to be had again.
    None,
    /// There is no body.
    Empty,
    /// It is in memory.
    Bytes(Bytes),
    /// It was kept while it streamed by.
    Replay {
        buffer: Arc<ReplayBuffer>,
        length: Option<u64>,
    },
}

impl Payload {
    /// A body that streams. `replays` counts the memory of all replay buffers, if it may be sent again.
    pub fn stream(
        headers: &HeaderMap,
        body: Incoming,
        replays: Option<&Arc<AtomicU64>>,
        route: &Arc<Route>,
        credential: &Arc<Credential>,
    ) -> Self {
        if body.is_end_stream() {
            return Self::buffered(RequestBody::Empty, replays.is_some());
        }
        let limit = route.compiled.replay.max_body_bytes;
        let buffer = replays
            .filter(|_| body.size_hint().lower() <= limit)
            .map(|replays| ReplayBuffer::new(limit, replays));
        let expects = headers
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let expectation = expects.then(Arc::<Expectation>::default);
        let upload = Upload::new(body, buffer.clone(), route, credential)
            .gated(expectation.as_ref().map(gate));
        Self {
            progress: Some(Arc::clone(upload.progress())),
            source: buffer.map_or(Source::None, |buffer| Source::Replay {
                buffer,
                length: upload.length(),
            }),
            next: RequestBody::Stream(Box::new(upload)),
            expectation,
        }
    }

    /// A body that is in memory, or none.
    pub fn buffered(body: RequestBody, may_be_sent_again: bool) -> Self {
        let source = match &body {
            RequestBody::Full(Some(bytes)) if may_be_sent_again => Source::Bytes(bytes.clone()),
            RequestBody::Empty if may_be_sent_again => Source::Empty,
            RequestBody::Full(_) | RequestBody::Empty | RequestBody::Stream(_) => Source::None,
        };
        Self {
            next: body,
            source,
            progress: None,
            expectation: None,
        }
    }

    /// What the next attempt sends.
    pub fn take(&mut self) -> RequestBody {
        std::mem::replace(&mut self.next, RequestBody::Empty)
    }

    /// Whether there can be another attempt, as far as can be known before this one.
    pub fn may_be_sent_again(&self) -> bool {
        match &self.source {
            Source::None => false,
            Source::Empty | Source::Bytes(_) => true,
            Source::Replay { buffer, .. } => buffer.holds(),
        }
    }

    /// Makes the body ready for another attempt, with another credential. False if it cannot be had again; the attempt
    /// before then goes on undisturbed.
    pub async fn rewind(&mut self, route: &Arc<Route>, credential: &Arc<Credential>) -> bool {
        self.next = match &self.source {
            Source::None => return false,
            Source::Empty => RequestBody::Empty,
            Source::Bytes(bytes) => RequestBody::Full(Some(bytes.clone())),
            Source::Replay { buffer, length } => {
                let Some(rest) = buffer.take_back().await else {
                    return false;
                };
                let upload = Upload::again(rest, *length, Arc::clone(buffer), route, credential)
                    .gated(self.expectation.as_ref().map(gate));
                self.progress = Some(Arc::clone(upload.progress()));
                RequestBody::Stream(Box::new(upload))
            }
        };
        true
    }

    /// Whether an upload is under way, and the bytes it has taken so far.
    pub fn progress(&self) -> (bool, u64) {
        let progress = self.progress.as_ref();
        progress.map_or((false, 0), |it| (!it.finished(), it.bytes()))
    }

    /// Of a body that was announced with `Expect: 100-continue`.
    pub fn expectation(&self) -> Option<&Arc<Expectation>> {
        self.expectation.as_ref()
    }

    /// There will be no other attempt.
    pub fn discard(&self) {
        if let Source::Replay { buffer, .. } = &self.source {
            buffer.discard();
        }
    }
}

fn gate(expectation: &Arc<Expectation>) -> ContinueGate {
    ContinueGate::new(Arc::clone(expectation), CONTINUE_PATIENCE)
}
