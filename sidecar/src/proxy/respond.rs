//! Step 8, respond: what of the upstream's answer reaches the agent. The body streams through the scrubber.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use nexus_crds::matcher::{ResponseRules, Scrub};
use tokio::time::{Instant, Sleep};

use super::body::{BodyError, IdleTimer};
use super::headers::remove_connection_named;
use super::scrub::{ScrubStream, Scrubber, is_textual};
use crate::credential::Credential;
use crate::error::{Code, REQUEST_ID};
use crate::record::Record;
use crate::upstream::UpstreamBody;

/// What goes to the agent. Owns the record of the request, which is written when the last byte was handed
/// over or the agent went away.
pub enum AgentBody {
    /// An answer of our own.
    Full(Option<Bytes>, Record),
    /// The upstream's answer.
    Stream(Box<Download>),
}

/// A streaming answer.
pub struct Download {
    body: UpstreamBody,
    scrub: Option<ScrubStream>,
    block: bool,
    idle: IdleTimer,
    deadline: Option<Pin<Box<Sleep>>>,
    ready: VecDeque<Frame<Bytes>>,
    ended: bool,
    record: Record,
}

/// Timeouts that hold while an answer streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Between two pieces.
    pub idle: Option<Duration>,
    /// End of the whole exchange.
    pub deadline: Option<Instant>,
}

/// The answer as the agent gets it.
pub fn respond(
    response: Response<UpstreamBody>,
    rules: &ResponseRules,
    credential: &Credential,
    limits: StreamLimits,
    mut record: Record,
) -> Response<AgentBody> {
    let (mut parts, body) = response.into_parts();
    record.status(parts.status);
    strip(&mut parts.headers, rules, credential);
    let scrubber = match rules.scrub {
        Scrub::Redact | Scrub::Block => credential.scrubber(),
        Scrub::Off => None,
    };
    let mut stream = None;
    if let Some(scrubber) = scrubber {
        let hits = scrub_headers(&mut parts.headers, scrubber);
        record.scrubbed(hits);
        if is_textual(parts.headers.get(CONTENT_TYPE)) && !body.is_end_stream() {
            stream = Some(ScrubStream::new(Arc::clone(scrubber)));
        }
    }
    parts.headers.insert(REQUEST_ID, record.request_id().clone());
    let body = AgentBody::Stream(Box::new(Download {
        body,
        scrub: stream,
        block: rules.scrub == Scrub::Block,
        idle: IdleTimer::new(limits.idle),
        deadline: limits.deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline))),
        ready: VecDeque::new(),
        ended: false,
        record,
    }));
    Response::from_parts(parts, body)
}

/// Hop-by-hop fields, and what would reach beyond the answer: cookies, transport policy for `localhost`,
/// connection-bound authentication.
fn strip(headers: &mut HeaderMap, rules: &ResponseRules, credential: &Credential) {
    remove_connection_named(headers);
    let doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| match name.as_str() {
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "te"
            | "proxy-authenticate" | "proxy-authentication-info" | "alt-svc" | "strict-transport-security"
            | "clear-site-data" => true,
            "set-cookie" | "set-cookie2" => !rules.pass_cookies,
            // The scrubber masks values; the field as a whole says only what we injected.
            "www-authenticate" => false,
            other => other.starts_with("x-nexus-") || credential.sets_headers().any(|set| set.as_str() == other),
        })
        .cloned()
        .collect();
    for name in &doomed {
        headers.remove(name);
    }
    if headers.contains_key(WWW_AUTHENTICATE) {
        drop_connection_bound_challenges(headers);
    }
}

fn drop_connection_bound_challenges(headers: &mut HeaderMap) {
    let kept: Vec<HeaderValue> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter(|value| {
            let scheme = value.as_bytes().split(|byte| *byte == b' ').next().unwrap_or_default();
            !scheme.eq_ignore_ascii_case(b"negotiate") && !scheme.eq_ignore_ascii_case(b"ntlm")
        })
        .cloned()
        .collect();
    headers.remove(WWW_AUTHENTICATE);
    for value in kept {
        headers.append(WWW_AUTHENTICATE, value);
    }
}

/// Masks credentials in header values and says in how many. Validators of a changed body go with them.
fn scrub_headers(headers: &mut HeaderMap, scrubber: &Scrubber) -> u64 {
    let mut hits = 0;
    for value in headers.values_mut() {
        if let Some(masked) = scrubber.header(value) {
            *value = masked;
            hits += 1;
        }
    }
    if hits > 0 {
        let doomed: Vec<HeaderName> = headers.keys().filter(|name| validates_the_body(name)).cloned().collect();
        for name in doomed {
            headers.remove(name);
        }
    }
    hits
}

fn validates_the_body(name: &HeaderName) -> bool {
    matches!(name.as_str(), "etag" | "content-md5" | "digest" | "repr-digest" | "content-digest")
        || name.as_str().starts_with("x-amz-checksum-")
}

impl Body for AgentBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
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
            Self::Stream(download) => download.ready.is_empty() && (download.ended || download.body.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            // Redaction keeps the length, so the upstream's is ours.
            Self::Stream(download) => download.body.size_hint(),
        }
    }
}

impl Download {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                if let Some(data) = frame.data_ref() {
                    self.record.sent(data.len());
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(deadline) = &mut self.deadline
                && deadline.as_mut().poll(cx).is_ready()
            {
                return self.fail(BodyError::Deadline);
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.idle.progressed();
                    self.take(frame);
                }
                Poll::Ready(Some(Err(error))) => return self.fail(BodyError::Broken(error)),
                Poll::Ready(None) => self.end(),
                Poll::Pending => {
                    return match self.idle.poll(cx) {
                        Poll::Ready(()) => self.fail(BodyError::Idle),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
            if self.block && self.scrub.as_ref().is_some_and(|scrub| scrub.hits() > 0) {
                return self.fail(BodyError::Blocked);
            }
        }
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => match &mut self.scrub {
                Some(scrub) => {
                    let pieces = scrub.push(data);
                    self.ready.extend(pieces.into_iter().filter(|piece| !piece.is_empty()).map(Frame::data));
                }
                None => self.ready.push_back(Frame::data(data)),
            },
            Err(frame) => {
                self.end();
                if let Ok(mut trailers) = frame.into_trailers() {
                    self.scrub_trailers(&mut trailers);
                    self.ready.push_back(Frame::trailers(trailers));
                }
            }
        }
    }

    fn scrub_trailers(&mut self, trailers: &mut HeaderMap) {
        for name in [CONNECTION, TRANSFER_ENCODING, SET_COOKIE, UPGRADE, TE] {
            trailers.remove(name);
        }
        if let Some(scrub) = &self.scrub {
            let hits = scrub_headers(trailers, scrub.scrubber());
            self.record.scrubbed(hits);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(scrub) = &mut self.scrub {
            let rest = scrub.finish();
            if !rest.is_empty() {
                self.ready.push_back(Frame::data(rest));
            }
            self.record.scrubbed(scrub.hits());
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.ended = true;
        self.ready.clear();
        if let Some(scrub) = &self.scrub {
            self.record.scrubbed(scrub.hits());
        }
        self.record.broke_off(
            match &error {
                BodyError::Idle | BodyError::Deadline => Code::UpstreamTimeout,
                BodyError::Broken(_) | BodyError::Blocked => Code::UpstreamUnreachable,
            },
            &error,
        );
        Poll::Ready(Some(Err(error)))
    }
}
