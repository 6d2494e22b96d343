//! Step 8, respond: what of the upstream's answer reaches the agent. The body streams through the scrubber.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::uri::PathAndQuery;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use nexus_crds::matcher::{ResponseRules, RewriteLinks, Scrub};
use tokio::time::{Instant, Sleep};

use super::body::{BodyError, Expectation, IdleTimer};
use super::headers::remove_connection_named;
use super::links;
use super::resolve::Addressing;
use super::scrub::{ScrubStream, Scrubber, is_textual};
use super::streams::{Listing, Owner, Streams};
use crate::credential::Credential;
use crate::error::{Code, REQUEST_ID};
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
    scrub: Option<ScrubStream>,
    idle: IdleTimer,
    deadline: Option<Pin<Box<Sleep>>>,
    ready: Option<Frame<Bytes>>,
    owner: Owner,
    streams: Arc<Streams>,
    listing: Option<Listing>,
    ended: bool,
    record: Record,
    _unwanted: Option<Unwanted>,
}

/// The upstream's answer and what is needed to give it back.
pub struct Answer {
    /// The answer as it came.
    pub response: Response<UpstreamBody>,
    /// The route that was asked for.
    pub route: Arc<Route>,
    /// The credential that was sent.
    pub credential: Arc<Credential>,
    /// Whose answer it is.
    pub owner: Owner,
    /// Where it is listed while it streams.
    pub streams: Arc<Streams>,
    /// How the caller addressed the upstream.
    pub addressing: Addressing,
    /// The body that the upstream did not ask for.
    pub unwanted: Option<Unwanted>,
    /// The target that was sent.
    pub sent: PathAndQuery,
    /// End of the whole exchange.
    pub deadline: Option<Instant>,
}

/// A body that the agent announced and the upstream answered without. Let go of when the answer has ended.
pub struct Unwanted {
    /// What holds the body.
    pub expectation: Arc<Expectation>,
    /// The agent speaks HTTP/1: nobody could tell its next request from the body, so there is none on this connection.
    pub closes: bool,
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.expectation.over();
    }
}

/// The answer as the agent gets it.
pub fn respond(answer: Answer, mut record: Record) -> Response<AgentBody> {
    let Answer {
        response,
        route,
        credential,
        owner,
        streams,
        addressing,
        unwanted,
        sent,
        deadline,
    } = answer;
    let rules = &route.compiled.response;
    let (mut parts, body) = response.into_parts();
    record.status(parts.status);
    strip(&mut parts.headers, rules, &credential);
    match rules.rewrite_links {
        RewriteLinks::Headers | RewriteLinks::Body => {
            rewrite_links(&mut parts.headers, &route, &credential, &addressing, &sent);
        }
        RewriteLinks::Off => {}
    }
    let mut scrub = None;
    if let Some(scrubber) = scrubber(rules, &credential) {
        record.scrubbed(scrub_headers(&mut parts.headers, scrubber));
        record.scrubbed(scrub_reason(&mut parts.extensions, scrubber));
        if !body.is_end_stream() && is_textual(parts.headers.get(CONTENT_TYPE)) {
            scrub = Some(ScrubStream::new(Arc::clone(scrubber)));
        }
    }
    if unwanted.as_ref().is_some_and(|unwanted| unwanted.closes) {
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    parts
        .headers
        .insert(REQUEST_ID, record.request_id().clone());
    let body = AgentBody::Stream(Box::new(Download {
        body,
        scrub,
        idle: IdleTimer::new(route.compiled.timeouts.idle),
        deadline: deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline))),
        ready: None,
        owner,
        streams,
        listing: None,
        ended: false,
        record,
        route,
        credential,
        _unwanted: unwanted,
    }));
    Response::from_parts(parts, body)
}

fn scrubber<'a>(rules: &ResponseRules, credential: &'a Credential) -> Option<&'a Arc<Scrubber>> {
    match rules.scrub {
        Scrub::Redact | Scrub::Block => credential.scrubber(),
        Scrub::Off => None,
    }
}

fn rewrite_links(
    headers: &mut HeaderMap,
    route: &Route,
    credential: &Credential,
    addressing: &Addressing,
    sent: &PathAndQuery,
) {
    let upstream = &route.compiled.upstream;
    let injected: Vec<&str> = credential
        .sets_query()
        .iter()
        .map(|pair| pair.name.as_str())
        .collect();
    let sent = links::Sent {
        tls: upstream.tls,
        authority: &upstream.authority,
        base_path: &upstream.base_path,
        path: sent.path(),
        injected_query: &injected,
    };
    let addressing = match addressing {
        Addressing::Headers => links::Addressing::Headers,
        Addressing::Prefix(prefix) => links::Addressing::Prefix(prefix),
        Addressing::Absolute(scheme) => links::Addressing::Absolute { scheme },
    };
    links::rewrite(
        headers,
        &sent,
        addressing,
        &route.compiled.response.link_headers,
    );
}

/// Hop-by-hop fields, and what would reach beyond the answer: cookies, transport policy for `localhost`,
/// connection-bound authentication.
fn strip(headers: &mut HeaderMap, rules: &ResponseRules, credential: &Credential) {
    remove_connection_named(headers);
    let doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| match name.as_str() {
            "connection"
            | "keep-alive"
            | "proxy-connection"
            | "transfer-encoding"
            | "upgrade"
            | "te"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "alt-svc"
            | "strict-transport-security"
            | "clear-site-data" => true,
            "set-cookie" | "set-cookie2" => !rules.pass_cookies,
            // The scrubber masks values; the field as a whole says only what we injected.
            "www-authenticate" => false,
            other => {
                other.starts_with("x-nexus-")
                    || credential.sets_headers().any(|set| set.as_str() == other)
            }
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
            let scheme = value
                .as_bytes()
                .split(|byte| *byte == b' ')
                .next()
                .unwrap_or_default();
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
        let doomed: Vec<HeaderName> = headers
            .keys()
            .filter(|name| validates_the_body(name))
            .cloned()
            .collect();
        for name in doomed {
            headers.remove(name);
        }
    }
    hits
}

/// HTTP/1.1 carries a text beside the status (RFC 9112 section 4), and some servers say there what they got.
fn scrub_reason(extensions: &mut Extensions, scrubber: &Scrubber) -> u64 {
    let said = extensions
        .get::<ReasonPhrase>()
        .is_some_and(|reason| scrubber.contains(reason.as_bytes()));
    if said {
        extensions.remove::<ReasonPhrase>();
    }
    u64::from(said)
}

fn validates_the_body(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "etag" | "content-md5" | "digest" | "repr-digest" | "content-digest"
    ) || name.as_str().starts_with("x-amz-checksum-")
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
            // Redaction keeps the length, so the upstream's is ours.
            Self::Stream(download) => download.body.size_hint(),
        }
    }
}

impl Download {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if let Some(frame) = self.ready.take() {
                return self.give(frame);
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
                Poll::Ready(Some(Err(error))) => return self.fail(BodyError::Broken(error)),
                Poll::Ready(None) => self.end(),
                Poll::Pending => return self.wait(cx),
            };
            if self.route.compiled.response.scrub == Scrub::Block
                && self.scrub.as_ref().is_some_and(|scrub| scrub.hits() > 0)
            {
                return self.fail(BodyError::Blocked);
            }
            if let Some(frame) = taken {
                return self.give(frame);
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

    /// What of a frame goes on at once; what comes after that waits in `ready`.
    fn take(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.into_data() {
            Ok(data) => {
                let Some(scrub) = &mut self.scrub else {
                    return Some(Frame::data(data));
                };
                let (held, fresh) = scrub.push(data);
                if held.is_empty() {
                    return Some(fresh)
                        .filter(|fresh| !fresh.is_empty())
                        .map(Frame::data);
                }
                self.ready = Some(fresh)
                    .filter(|fresh| !fresh.is_empty())
                    .map(Frame::data);
                Some(Frame::data(held))
            }
            Err(frame) => {
                let rest = self.end();
                if let Ok(mut trailers) = frame.into_trailers() {
                    self.clean_trailers(&mut trailers);
                    self.ready = Some(Frame::trailers(trailers));
                }
                rest.or_else(|| self.ready.take())
            }
        }
    }

    /// Whoever is told so does not poll again: what the scrubber holds back would be lost.
    fn is_end_stream(&self) -> bool {
        self.ready.is_none()
            && (self.ended
                || self.body.is_end_stream()
                    && !self.scrub.as_ref().is_some_and(ScrubStream::holds_bytes))
    }

    fn clean_trailers(&mut self, trailers: &mut HeaderMap) {
        let rules = &self.route.compiled.response;
        strip(trailers, rules, &self.credential);
        trailers.remove(CONTENT_LENGTH);
        if let Some(scrubber) = scrubber(rules, &self.credential) {
            self.record.scrubbed(scrub_headers(trailers, scrubber));
        }
    }

    /// What the scrubber still held back.
    fn end(&mut self) -> Option<Frame<Bytes>> {
        self.ended = true;
        let scrub = self.scrub.as_mut()?;
        let rest = scrub.finish();
        self.record.scrubbed(scrub.hits());
        Some(rest).filter(|rest| !rest.is_empty()).map(Frame::data)
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.ended = true;
        self.ready = None;
        if let Some(scrub) = &self.scrub {
            self.record.scrubbed(scrub.hits());
        }
        self.record.broke_off(
            match &error {
                BodyError::Idle | BodyError::Deadline => Code::UpstreamTimeout,
                BodyError::Removed => Code::ProviderUnknown,
                BodyError::Broken(_)
                | BodyError::Blocked
                | BodyError::Superseded
                | BodyError::Unwanted => Code::UpstreamUnreachable,
            },
            &error,
        );
        Poll::Ready(Some(Err(error)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const TOKEN: &str = "tok_0123456789abcdef";

    fn credential() -> Credential {
        let payload = format!(
            r#"{{"strategy": {{"type": "header", "config": {{"header_name": "X-My-Key"}}}}, "credentials": {{"api_key": "{TOKEN}"}}}}"#
        );
        Credential::parse(payload.as_bytes(), None, SystemTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_secret_in_the_reason_phrase_takes_the_phrase_with_it() {
        let credential = credential();
        let scrubber = credential.scrubber().unwrap();
        for (reason, kept) in [(format!("Bad token {TOKEN}"), false), ("Fine".into(), true)] {
            let mut extensions = Extensions::new();
            extensions.insert(ReasonPhrase::try_from(reason).unwrap());
            assert_eq!(scrub_reason(&mut extensions, scrubber), u64::from(!kept));
            assert_eq!(extensions.get::<ReasonPhrase>().is_some(), kept);
        }
    }

    #[test]
    fn what_we_injected_and_our_own_names_do_not_come_back() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-my-key",
            "x-nexus-error",
            "set-cookie",
            "connection",
            "x-b",
            "x-c",
        ] {
            headers.insert(name, HeaderValue::from_static("x-b"));
        }
        strip(&mut headers, &ResponseRules::default(), &credential());
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-c"]);
    }
}
