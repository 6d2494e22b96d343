//! One request, step by step: resolve, authorise, credential, prepare, sign, forward, respond, record.
//!
//! Every step is one file; this one says in which order they happen and what passes between them.

pub mod body;
pub mod buffer;
pub mod guard;
pub mod headers;
pub mod links;
pub mod resolve;
pub mod respond;
pub mod scrub;
pub mod streams;

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use http::header::{CONTENT_LENGTH, EXPECT, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use nexus_crds::access::AccessRequest;
use nexus_crds::path;
use tokio::time::{Instant, timeout};

use self::body::{ContinueGate, Expectation, Progress, RequestBody};
use self::guard::BrowserGuard;
use self::resolve::Target;
use self::respond::{AgentBody, Answer, Unwanted};
use self::streams::{Owner, Streams};
use crate::credential::cache::CredentialCache;
use crate::credential::{BodyMode, Credential, QueryPair};
use crate::error::{Code, ProxyError, is_grpc};
use crate::limiter::RateLimiter;
use crate::record::{Record, Recorder};
use crate::routes::{Route, SharedRoutes, Tenants};
use crate::server::activity::InFlight;
use crate::sign::{SignInput, sign};
use crate::upstream::{SendError, UpstreamBody};

/// How long a body that the agent announced with `Expect: 100-continue` is held back.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

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
        match self.exchange(parts, body, &mut record).await {
            Ok(answer) => respond::respond(answer, record),
            Err(error) => {
                record.failed(&error);
                let response = error.response(record.request_id(), grpc);
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
        let credential = self.credential(&target).await?;
        let outgoing = prepare(&mut parts, &target, &credential)?;
        let signed = self
            .sign(&mut parts, outgoing, body, &route, &credential)
            .await?;
        let sent = parts
            .uri
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        let expectation = signed.expectation.clone();
        let response = forward(&route, parts, signed, deadline).await?;

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
            sent,
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
        if let Some(credential) = self.credentials.cached(&key, SystemTime::now()) {
            return Ok(credential);
        }
        self.credentials
            .get(key, target.connection, target.route.strategy.as_ref())
            .await
    }

    /// Step 5. Buffers the body only for schemes that hash it.
    async fn sign(
        &self,
        parts: &mut Parts,
        outgoing: Outgoing,
        body: Incoming,
        route: &Arc<Route>,
        credential: &Arc<Credential>,
    ) -> Result<Signed, ProxyError> {
        let signed = match credential.body_mode(&parts.headers) {
            BodyMode::Stream => Signed::stream(&parts.headers, body, route, credential),
            BodyMode::Buffer => {
                parts.headers.remove(EXPECT);
                // They are not part of what is signed and do not survive the buffer.
                parts.headers.remove(TRAILER);
                Signed {
                    body: buffer::read(body, &self.signed, &route.compiled).await?,
                    progress: None,
                    expectation: None,
                }
            }
        };
        let buffered = match &signed.body {
            RequestBody::Full(bytes) => bytes.as_deref(),
            RequestBody::Empty => Some(&[][..]),
            RequestBody::Stream(_) => None,
        };
        let input = SignInput {
            method: &parts.method,
            path_and_query: outgoing.path_and_query(),
            headers: &parts.headers,
            host: &route.compiled.upstream.authority,
            tls: route.compiled.upstream.tls,
            body: buffered,
            now: SystemTime::now(),
            region_hint: None,
        };
        let instructions = sign(credential, &input)?;
        for (name, value) in instructions.headers.iter() {
            parts.headers.insert(name.clone(), value.clone());
        }
        parts.uri = outgoing.uri(&instructions.query)?;
        Ok(signed)
    }
}

/// Step 4. Leaves in `parts.headers` exactly what is sent, and says which target.
fn prepare(
    parts: &mut Parts,
    target: &Target,
    credential: &Credential,
) -> Result<Outgoing, ProxyError> {
    let route = &target.route;
    if parts.headers.contains_key(UPGRADE) && is_websocket(&parts.headers) {
        return Err(ProxyError::new(
            Code::UpgradeRefused,
            "this version does not carry WebSockets",
        ));
    }
    headers::prepare(&mut parts.headers, &route.compiled, &route.host, credential);
    parts.version = http::Version::HTTP_11;
    let target = &target.path_and_query;
    let Some(query) = target.query() else {
        return Ok(Outgoing(target.clone()));
    };
    match headers::prepare_query(query, credential.sets_query()) {
        Cow::Borrowed(_) => Ok(Outgoing(target.clone())),
        Cow::Owned(clean) => {
            let separator = if clean.is_empty() { "" } else { "?" };
            PathAndQuery::try_from(format!("{}{separator}{clean}", target.path()))
                .map(Outgoing)
                .map_err(|_| ProxyError::new(Code::BadRequest, "the query is not valid"))
        }
    }
}

/// Path and query as they are sent, without what the strategy adds to the query.
struct Outgoing(PathAndQuery);

impl Outgoing {
    fn path_and_query(&self) -> &str {
        self.0.as_str()
    }

    fn uri(self, injected: &[QueryPair]) -> Result<Uri, ProxyError> {
        let target = if injected.is_empty() {
            self.0
        } else {
            let mut text = self.0.as_str().to_owned();
            for pair in injected {
                match text.find('?') {
                    Some(mark) if mark + 1 == text.len() => {}
                    Some(_) => text.push('&'),
                    None => text.push('?'),
                }
                text.push_str(&pair.encoded);
            }
            PathAndQuery::try_from(text).map_err(|_| {
                ProxyError::new(
                    Code::CredentialInvalid,
                    "the credential does not fit into a query",
                )
            })?
        };
        Ok(Uri::from(target))
    }
}

/// A request body ready to send.
struct Signed {
    body: RequestBody,
    progress: Option<Arc<Progress>>,
    /// Of a body that was announced with `Expect: 100-continue`.
    expectation: Option<Arc<Expectation>>,
}

impl Signed {
    fn stream(
        headers: &HeaderMap,
        body: Incoming,
        route: &Arc<Route>,
        credential: &Arc<Credential>,
    ) -> Self {
        let expects = headers
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let expectation = expects.then(Arc::<Expectation>::default);
        let gate = expectation
            .clone()
            .map(|expectation| ContinueGate::new(expectation, CONTINUE_PATIENCE));
        let (body, progress) = RequestBody::stream(body, gate, route, credential);
        Self {
            body,
            // An empty body cannot be asked for.
            expectation: expectation.filter(|_| progress.is_some()),
            progress,
        }
    }
}

/// Step 6. Waits for the answer's head; the time starts anew as long as the upload makes progress.
async fn forward(
    route: &Route,
    parts: Parts,
    signed: Signed,
    deadline: Option<Instant>,
) -> Result<Response<UpstreamBody>, ProxyError> {
    let timeouts = &route.compiled.timeouts;
    let mut request = Request::from_parts(parts, signed.body);
    if let Some(expectation) = signed.expectation {
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
            (None, None) => return answered(send.await),
        };
        if let Ok(result) = timeout(wait, &mut send).await {
            return answered(result);
        }
        let late = deadline.is_some_and(|deadline| deadline <= Instant::now());
        let uploaded = signed
            .progress
            .as_ref()
            .map_or(0, |progress| progress.bytes());
        let uploading = signed
            .progress
            .as_ref()
            .is_some_and(|progress| !progress.finished());
        if late || !uploading || uploaded == taken {
            let name = if late {
                "timeouts.request"
            } else {
                "timeouts.responseHeader"
            };
            let detail = format!("the upstream did not answer within the route's {name}");
            return Err(ProxyError::new(Code::UpstreamTimeout, detail));
        }
        taken = uploaded;
    }
}

fn answered(
    result: Result<Response<UpstreamBody>, SendError>,
) -> Result<Response<UpstreamBody>, ProxyError> {
    let mut response = result.map_err(ProxyError::from)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(ProxyError::new(
            Code::UpstreamUnreachable,
            "the upstream switched protocols without being asked to",
        ));
    }
    settle_framing(response.headers_mut())?;
    Ok(response)
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

fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get_all(UPGRADE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|protocol| protocol.trim().eq_ignore_ascii_case("websocket"))
        })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

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
