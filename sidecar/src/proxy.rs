//! One request, step by step: resolve, authorise, credential, prepare, sign, forward, recover, respond, record.
//!
//! Every step is one file; this one says in which order they happen and what passes between them.

pub mod body;
pub mod buffer;
pub mod expectation;
pub mod guard;
pub mod headers;
pub mod links;
mod outgoing;
pub mod payload;
mod recovery;
pub mod replay;
pub mod resolve;
pub mod respond;
pub mod scrub;
pub mod streams;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRAILER, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use nexus_crds::access::AccessRequest;
use nexus_crds::path;
use tokio::time::{Instant, timeout, timeout_at};

use self::body::RequestBody;
use self::guard::BrowserGuard;
use self::outgoing::Outgoing;
use self::payload::Payload;
use self::recovery::{Recovered, Recovery, wants_other_scope};
use self::resolve::Target;
use self::respond::{AgentBody, Answer, Unwanted};
use self::streams::{Owner, Streams};
use crate::credential::cache::CredentialCache;
use crate::credential::clock::Moment;
use crate::credential::{BodyMode, Credential};
use crate::error::{Code, ProxyError, is_grpc};
use crate::limiter::RateLimiter;
use crate::record::{Record, Recorder};
use crate::routes::{Route, SharedRoutes, Tenants};
use crate::server::activity::InFlight;
use crate::sign::{self, SignInput};
use crate::upstream::{SendError, UpstreamBody};

/// What every request of the process shares.
pub struct Proxy {
    /// The current routes.
    pub routes: SharedRoutes,
    /// Tenants that may be named.
    pub tenants: Tenants,
    /// Answers on their way.
    pub streams: Arc<Streams>,
    /// Credentials.
    pub credentials: Arc<CredentialCache>,
    /// Rates.
    pub limiter: RateLimiter,
    /// Access log, audit and metrics.
    pub recorder: Arc<Recorder>,
    /// Who is refused before anything is looked up.
    pub guard: BrowserGuard,
    /// Where the limiter's clock begins.
    pub started: std::time::Instant,
    /// Bytes of signed bodies in memory.
    pub signed: Arc<AtomicU64>,
    /// Bytes of bodies that may be sent again in memory.
    pub replays: Arc<AtomicU64>,
}

impl Proxy {
    /// Answers one request. Never fails: what goes wrong is an answer too.
    pub async fn handle(
        &self,
        request: Request<Incoming>,
        in_flight: InFlight,
    ) -> Response<AgentBody> {
        let (parts, body) = request.into_parts();
        let mut record = self.recorder.begin(&parts, in_flight);
        let grpc = is_grpc(&parts.headers);
        let closes = parts.version < http::Version::HTTP_2 && !body.is_end_stream();
        match self.exchange(parts, body, &mut record).await {
            Ok(answer) => respond::respond(answer, record),
            Err(error) => {
                record.failed(&error);
                let mut response = error.response(record.request_id(), grpc);
                if closes {
                    // What may be left of the body is not read.
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                response.map(|body| {
                    AgentBody::Full(Some(body).filter(|body| !body.is_empty()), Box::new(record))
                })
            }
        }
    }

    async fn exchange(
        &self,
        mut parts: Parts,
        body: Incoming,
        record: &mut Record,
    ) -> Result<Answer, ProxyError> {
        let version = parts.version;
        let target = self.resolve(&parts)?;
        record.resolved(&target);
        let route = Arc::clone(&target.route);
        let deadline = route
            .compiled
            .timeouts
            .request
            .map(|limit| Instant::now() + limit);

        // The rules judge what is sent, and what `Connection` names is not.
        headers::remove_connection_named(&mut parts.headers);
        self.authorise(&parts, &target)?;
        let mut credential = within(deadline, self.credential(&target))
            .await
            .unwrap_or_else(|| {
                Err(ProxyError::new(
                    Code::BrokerUnavailable,
                    "no credential within the route's timeouts.request",
                )
                .retry_after(Duration::from_secs(1)))
            })?;
        let mut outgoing = Outgoing::new(parts, &target)?;
        outgoing.prepare(&route, &credential)?;
        let mut payload = self
            .payload(&mut outgoing, body, &route, &credential)
            .await?;

        let mut recovery = Recovery::default();
        let (response, sent) = loop {
            let again = payload.may_be_sent_again().then(|| outgoing.clone());
            let request = sign(outgoing, payload.take(), &route, &credential)?;
            let sent = request.uri().path_and_query().cloned();
            let result = forward(&route, request, &payload, deadline).await;
            let step = self.recover(&mut recovery, result, &target, &credential, again, deadline);
            match step.await? {
                Recovered::Answer(response) => break (response, sent),
                Recovered::Again {
                    request,
                    credential: next,
                    answer,
                } => {
                    if payload.rewind(&route, &next).await {
                        match &answer {
                            Ok(_) => route.metrics.add_replay(),
                            Err(_) => route.metrics.add_reconnect(),
                        }
                        (outgoing, credential) = (request, next);
                        outgoing.prepare(&route, &credential)?;
                        continue;
                    }
                    // The body has outgrown its buffer in the meantime.
                    break (answer.map_err(ProxyError::from)?, sent);
                }
            }
        };
        payload.discard();
        let expectation = payload.expectation().cloned();

        Ok(Answer {
            response,
            credential,
            owner: Owner {
                provider: Arc::clone(&route.compiled.provider),
                tenant: target.tenant,
                connection: target.connection,
            },
            streams: Arc::clone(&self.streams),
            addressing: target.addressing,
            unwanted: expectation
                .filter(|expectation| expectation.answered())
                .map(|expectation| Unwanted {
                    expectation,
                    closes: version < http::Version::HTTP_2,
                }),
            sent: sent.unwrap_or_else(|| PathAndQuery::from_static("/")),
            deadline,
            route,
        })
    }

    /// Step 1.
    fn resolve(&self, parts: &Parts) -> Result<Target, ProxyError> {
        resolve::refuse_method(&parts.method)?;
        self.guard.check(parts)?;
        let routes = self.routes.load();
        let Some(routes) = routes.as_ref() else {
            return Err(ProxyError::new(Code::NotReady, "no routes were loaded yet")
                .retry_after(Duration::from_secs(1)));
        };
        resolve::resolve(parts, routes, &self.tenants)
    }

    /// Step 2.
    fn authorise(&self, parts: &Parts, target: &Target) -> Result<(), ProxyError> {
        let compiled = &target.route.compiled;
        path::check(target.path_and_query.path())
            .map_err(|error| ProxyError::new(Code::BadRequest, error.to_string()))?;
        if let Some(access) = &compiled.access {
            let request = AccessRequest {
                method: &parts.method,
                path: target.path_and_query.path(),
                query: target.path_and_query.query(),
                headers: &parts.headers,
            };
            if !access.allows(&request) {
                if !access.warn_only {
                    return Err(ProxyError::new(
                        Code::RequestDenied,
                        "an access rule of the route denies this method and path",
                    ));
                }
                target.route.metrics.add_access_warning();
                tracing::warn!(route = %compiled.name, method = %parts.method, "an access rule would deny the request");
            }
        }
        let Some(rate) = target.route.rate else {
            return Ok(());
        };
        let tenant = target
            .tenant
            .as_ref()
            .and_then(|tenant| tenant.to_str().ok());
        let key = self.limiter.key(&compiled.name, tenant);
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.limiter.check(key, rate, now).map_err(|after| {
            ProxyError::new(
                Code::RateLimited,
                "the route's limits.requestsPerSecond is used up",
            )
            .retry_after(after)
        })
    }

    /// Step 3.
    async fn credential(&self, target: &Target) -> Result<Arc<Credential>, ProxyError> {
        let key = target.route.credential_key(target.connection);
        if let Some(credential) = self.credentials.cached(&key, Moment::now()) {
            return Ok(credential);
        }
        self.credentials
            .get(key, target.connection, target.route.strategy.as_ref())
            .await
    }

    /// The body, read first only for schemes that hash it.
    async fn payload(
        &self,
        outgoing: &mut Outgoing,
        body: Incoming,
        route: &Arc<Route>,
        credential: &Arc<Credential>,
    ) -> Result<Payload, ProxyError> {
        let again = route.compiled.replay.allows(&outgoing.method);
        match credential.body_mode(&outgoing.headers) {
            BodyMode::Stream => {
                let replays = again.then_some(&self.replays);
                let headers = &outgoing.headers;
                Ok(Payload::stream(headers, body, replays, route, credential))
            }
            BodyMode::Buffer => {
                outgoing.headers.remove(EXPECT);
                // They are not part of what is signed and do not survive the buffer.
                outgoing.headers.remove(TRAILER);
                let body = buffer::read(body, &self.signed, &route.compiled).await?;
                Ok(Payload::buffered(body, again))
            }
        }
    }

    /// Step 7. At most one replay after a rejected credential, and one after a connection that died while it was kept.
    /// `request` is there if the request may be sent again.
    async fn recover(
        &self,
        recovery: &mut Recovery,
        result: Result<Response<UpstreamBody>, SendError>,
        target: &Target,
        credential: &Arc<Credential>,
        request: Option<Outgoing>,
        deadline: Option<Instant>,
    ) -> Result<Recovered, ProxyError> {
        let route = &target.route;
        let replay = &route.compiled.replay;
        match result {
            Err(error) => match request {
                Some(request) if recovery.reconnects(&error, &request) => Ok(Recovered::Again {
                    request,
                    credential: Arc::clone(credential),
                    answer: Err(error),
                }),
                Some(_) | None => Err(error.into()),
            },
            Ok(mut response) => {
                settle(&mut response)?;
                if !replay.on.contains(&response.status().as_u16()) || recovery.replayed {
                    return Ok(Recovered::Answer(response));
                }
                let next = self.credentials.replace(
                    route.credential_key(target.connection),
                    target.connection,
                    route.strategy.as_ref(),
                    credential,
                    wants_other_scope(response.headers()),
                );
                let next = within(deadline, next).await.flatten();
                Ok(match (next, request) {
                    (Some(next), Some(request)) => {
                        recovery.replayed = true;
                        Recovered::Again {
                            request,
                            credential: next,
                            answer: Ok(response),
                        }
                    }
                    (Some(_) | None, _) => Recovered::Answer(response),
                })
            }
        }
    }
}

/// What comes of `work`, unless the time for the whole request is over before.
async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

/// Step 5.
fn sign(
    mut outgoing: Outgoing,
    body: RequestBody,
    route: &Route,
    credential: &Credential,
) -> Result<Request<RequestBody>, ProxyError> {
    let buffered = match &body {
        RequestBody::Full(bytes) => bytes.as_deref(),
        RequestBody::Empty => Some(&[][..]),
        RequestBody::Stream(_) => None,
    };
    let input = SignInput {
        method: &outgoing.method,
        path_and_query: outgoing.target.as_str(),
        headers: &outgoing.headers,
        host: &route.compiled.upstream.authority,
        tls: route.compiled.upstream.tls,
        body: buffered,
        now: SystemTime::now(),
        region_hint: None,
    };
    let instructions = sign::sign(credential, &input)?;
    for (name, value) in instructions.headers.iter() {
        outgoing.headers.insert(name.clone(), value.clone());
    }
    let mut request = Request::new(body);
    *request.uri_mut() = Outgoing::uri(outgoing.target, &instructions.query)?;
    *request.method_mut() = outgoing.method;
    *request.headers_mut() = outgoing.headers;
    Ok(request)
}

/// Step 6. Waits for the answer's head; the time starts anew as long as the upload makes progress.
async fn forward(
    route: &Route,
    mut request: Request<RequestBody>,
    payload: &Payload,
    deadline: Option<Instant>,
) -> Result<Response<UpstreamBody>, SendError> {
    let timeouts = &route.compiled.timeouts;
    if let Some(expectation) = payload.expectation().cloned() {
        hyper::ext::on_informational(&mut request, move |answer| {
            if answer.status() == StatusCode::CONTINUE {
                expectation.asked();
            }
        });
    }
    let mut send = pin!(route.pool.send(request, timeouts.connect));
    let mut taken = 0;
    loop {
        let wait = match (
            timeouts.response_header,
            deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
        ) {
            (Some(limit), Some(left)) => limit.min(left),
            (Some(limit), None) => limit,
            (None, Some(left)) => left,
            (None, None) => return send.await,
        };
        if let Ok(result) = timeout(wait, &mut send).await {
            return result;
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(SendError::Late("timeouts.request"));
        }
        let (uploading, uploaded) = payload.progress();
        if !uploading || uploaded == taken {
            return Err(SendError::Late("timeouts.responseHeader"));
        }
        taken = uploaded;
    }
}

/// Refuses what is no answer to pass on.
fn settle(response: &mut Response<UpstreamBody>) -> Result<(), ProxyError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(ProxyError::new(
            Code::UpstreamUnreachable,
            "the upstream switched protocols without being asked to",
        ));
    }
    settle_framing(response.headers_mut())
}

/// `Transfer-Encoding` overrides `Content-Length` (RFC 9112 section 6.3), which would frame the answer to the agent
/// otherwise. A coding beside `chunked` was not asked for, and nobody would decode it once the field is gone.
fn settle_framing(headers: &mut HeaderMap) -> Result<(), ProxyError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        return Ok(());
    };
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(ProxyError::new(
            Code::UpstreamUnreachable,
            "the upstream's answer has a transfer coding other than chunked",
        ));
    }
    headers.remove(CONTENT_LENGTH);
    Ok(())
}

#[cfg(test)]
mod tests {

    use super::*;

    fn framed(fields: &[(http::HeaderName, &'static str)]) -> (bool, bool) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_static(value));
        }
        let settled = settle_framing(&mut headers).is_ok();
        (settled, headers.contains_key(CONTENT_LENGTH))
    }

    #[test]
    fn chunks_override_the_length_and_other_codings_are_refused() {
        let coding = |value| (TRANSFER_ENCODING, value);
        let length = || (CONTENT_LENGTH, "5");
        assert_eq!(framed(&[length()]), (true, true));
        assert_eq!(framed(&[length(), coding("Chunked")]), (true, false));
        for refused in ["gzip, chunked", "chunked, gzip", "gzip", "identity", ""] {
            assert!(!framed(&[coding(refused)]).0, "{refused}");
        }
        assert!(!framed(&[coding("chunked"), coding("chunked")]).0);
    }
}
