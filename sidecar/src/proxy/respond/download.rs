//! The body of an answer while it streams to the agent.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};
use nexus_crds::matcher::Scrub;
use tokio::time::{Instant, Sleep};

use super::content::{Content, Judges};
use super::decode::DecodeError;
use super::head::{remove_validators, scrub_headers, strip};
use super::{Unwanted, scrubber};
use crate::credential::Credential;
use crate::error::Code;
use crate::proxy::body::{BodyError, IdleTimer};
use crate::proxy::streams::{Listing, Owner, Streams};
use crate::record::Record;
use crate::routes::Route;
use crate::upstream::UpstreamBody;

/// What goes to the agent. Owns the record of the request, which is written when the last byte was handed
/// over or the agent went away.
pub enum AgentBody {
    /// An answer of our own.
    Full(Option<Bytes>, Box<Record>),
    /// The upstream's answer.
    Stream(Box<Download>),
}

/// A streaming answer.
pub struct Download {
    body: UpstreamBody,
    route: Arc<Route>,
    credential: Arc<Credential>,
    content: Content,
    idle: IdleTimer,
    deadline: Option<Pin<Box<Sleep>>>,
    ready: Ready,
    owner: Owner,
    streams: Arc<Streams>,
    listing: Option<Listing>,
    ended: bool,
    /// What went wrong before the agent asked for more.
    failed: Option<BodyError>,
    /// Hits that the record knows of.
    recorded: u64,
    record: Record,
    _unwanted: Option<Unwanted>,
}

/// What a [`Download`] begins with.
pub(super) struct Source {
    pub(super) body: UpstreamBody,
    pub(super) content: Content,
    pub(super) route: Arc<Route>,
    pub(super) credential: Arc<Credential>,
    pub(super) deadline: Option<Instant>,
    pub(super) owner: Owner,
    pub(super) streams: Arc<Streams>,
    pub(super) unwanted: Option<Unwanted>,
}

/// What goes out next. One piece of content makes two frames at most, and the end of it one and the trailers.
#[derive(Default)]
struct Ready {
    first: Option<Frame<Bytes>>,
    second: Option<Frame<Bytes>>,
}

impl Ready {
    fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.push_frame(Frame::data(data));
        }
    }

    fn push_frame(&mut self, frame: Frame<Bytes>) {
        debug_assert!(self.second.is_none());
        match self.first {
            None => self.first = Some(frame),
            Some(_) => self.second = Some(frame),
        }
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        std::mem::replace(&mut self.first, self.second.take())
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn bytes(&self) -> usize {
        [&self.first, &self.second]
            .into_iter()
            .flatten()
            .filter_map(Frame::data_ref)
            .map(Bytes::len)
            .sum()
    }
}

impl Body for AgentBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Full(bytes, record) => Poll::Ready(bytes.take().map(|bytes| {
                record.sent(bytes.len());
                Ok(Frame::data(bytes))
            })),
            Self::Stream(download) => download.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes, _) => bytes.is_none(),
            Self::Stream(download) => download.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes, _) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(download) => download.size_hint(),
        }
    }
}

impl Download {
    pub(super) fn new(source: Source, record: Record) -> Self {
        let Source {
            body,
            content,
            route,
            credential,
            deadline,
            owner,
            streams,
            unwanted,
        } = source;
        Self {
            body,
            content,
            idle: IdleTimer::new(route.compiled.timeouts.idle),
            deadline: deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline))),
            ready: Ready::default(),
            owner,
            streams,
            listing: None,
            ended: false,
            failed: None,
            recorded: 0,
            record,
            route,
            credential,
            _unwanted: unwanted,
        }
    }

    /// Looks at the content that has come with the head, if it decides something about the head: whether there is to be
    /// an answer, or whether it keeps the validators that it may have.
    ///
    /// An error means that the answer is to be refused.
    pub(super) fn look_ahead(
        &mut self,
        has_validators: impl FnOnce() -> bool,
    ) -> Result<(), BodyError> {
        match self.content.judges() {
            Judges::Nothing => return Ok(()),
            Judges::Validators if !has_validators() => return Ok(()),
            Judges::Validators | Judges::Answer => {}
        }
        // The agent's side polls again and is woken then.
        let mut context = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.body).poll_frame(&mut context) {
            Poll::Ready(Some(Ok(frame))) => self.take(frame),
            Poll::Ready(Some(Err(error))) => {
                self.failed = Some(BodyError::Broken(error));
                Ok(())
            }
            Poll::Ready(None) => self.end(),
            Poll::Pending => Ok(()),
        }
    }

    /// True if content that was looked at goes out otherwise than it came.
    pub(super) fn is_altered(&self) -> bool {
        self.content.is_altered()
    }

    /// Gives the answer up.
    pub(super) fn into_record(self) -> Record {
        self.record
    }

    /// The id that the record gave the request.
    pub(super) fn request_id(&self) -> &http::HeaderValue {
        self.record.request_id()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if let Some(frame) = self.ready.pop() {
                return self.give(frame);
            }
            if let Some(error) = self.failed.take() {
                return self.fail(error);
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if self.listing.as_ref().is_some_and(Listing::ended) {
                return self.fail(BodyError::Removed);
            }
            if let Some(deadline) = &mut self.deadline
                && deadline.as_mut().poll(cx).is_ready()
            {
                return self.fail(BodyError::Deadline);
            }
            let taken = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.idle.progressed();
                    self.take(frame)
                }
                Poll::Ready(Some(Err(error))) => Err(BodyError::Broken(error)),
                Poll::Ready(None) => self.end(),
                Poll::Pending => return self.wait(cx),
            };
            if let Err(error) = taken {
                return self.fail(error);
            }
        }
    }

    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.listing {
            Some(listing) => listing.wakes(cx.waker()),
            listing => *listing = Some(self.streams.list(self.owner.clone(), cx.waker())),
        }
        match self.idle.poll(cx) {
            Poll::Ready(()) => self.fail(BodyError::Idle),
            Poll::Pending => Poll::Pending,
        }
    }

    fn give(&mut self, frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = frame.data_ref() {
            self.record.sent(data.len());
        }
        Poll::Ready(Some(Ok(frame)))
    }

    /// Makes ready what of a frame may go on.
    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), BodyError> {
        match frame.into_data() {
            Ok(data) => {
                let pieces = self.content.push(data);
                self.record_hits(pieces.as_ref().err());
                let (held, fresh) = pieces?;
                self.ready.push(held);
                self.ready.push(fresh);
            }
            Err(frame) => {
                self.end()?;
                if let Ok(mut trailers) = frame.into_trailers() {
                    self.clean_trailers(&mut trailers)?;
                    self.ready.push_frame(Frame::trailers(trailers));
                }
            }
        }
        Ok(())
    }

    /// Makes ready what was still held back.
    fn end(&mut self) -> Result<(), BodyError> {
        self.ended = true;
        let rest = self.content.finish();
        self.record_hits(rest.as_ref().err());
        self.ready.push(rest?);
        Ok(())
    }

    /// At once, since the agent may go away any time and a hit must not be forgotten then.
    fn record_hits(&mut self, error: Option<&BodyError>) {
        let hits = self.content.hits();
        self.record.scrubbed(hits - self.recorded);
        self.recorded = hits;
        if let Some(BodyError::Compressed(DecodeError::Credential)) = error {
            self.record.scrubbed(1);
        }
    }

    fn clean_trailers(&mut self, trailers: &mut HeaderMap) -> Result<(), BodyError> {
        let rules = &self.route.compiled.response;
        strip(trailers, rules, &self.credential);
        trailers.remove(CONTENT_LENGTH);
        if let Some(scrubber) = scrubber(rules, &self.credential) {
            let hits = scrub_headers(trailers, scrubber);
            self.record.scrubbed(hits);
            if hits > 0 && rules.scrub == Scrub::Block {
                return Err(BodyError::Blocked);
            }
        }
        if self.is_altered() {
            remove_validators(trailers);
        }
        Ok(())
    }

    /// Whoever is told so does not poll again: what is held back would be lost.
    fn is_end_stream(&self) -> bool {
        self.ready.is_empty()
            && self.failed.is_none()
            && (self.ended || self.body.is_end_stream() && self.content.is_settled())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(held) = self.content.held() else {
            return SizeHint::default();
        };
        let ours = (held + self.ready.bytes()) as u64;
        let left = self.body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = left.upper() {
            hint.set_upper(upper + ours);
        }
        hint.set_lower(left.lower() + ours);
        hint
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.ended = true;
        self.ready = Ready::default();
        self.record.broke_off(
            match &error {
                BodyError::Idle | BodyError::Deadline => Code::UpstreamTimeout,
                BodyError::Removed => Code::ProviderUnknown,
                BodyError::Broken(_)
                | BodyError::Blocked
                | BodyError::Compressed(_)
                | BodyError::Superseded
                | BodyError::Unwanted => Code::UpstreamUnreachable,
            },
            &error,
        );
        Poll::Ready(Some(Err(error)))
    }
}
