//! Step 8, respond: what of the upstream's answer reaches the agent. The body streams through the scrubber.

mod content;
mod cookies;
mod decode;
mod download;
mod head;

use std::borrow::Cow;
use std::sync::Arc;

use http::header::CONNECTION;
use http::response::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Body;
use nexus_crds::matcher::{ResponseRules, RewriteLinks, Scrub};
use tokio::time::Instant;

pub use decode::DecodeError;
pub use download::{AgentBody, Download};

use content::Content;
use download::Source;
use head::{has_validators, remove_validators, scrub_headers, scrub_reason, strip};

use super::body::BodyError;
use super::expectation::Expectation;
use super::links::{self, LinkStream, Sent};
use super::resolve::Addressing;
use super::scrub::Scrubber;
use super::streams::{Owner, Streams};
use crate::credential::Credential;
use crate::error::{Code, ProxyError, REQUEST_ID, is_grpc};
use crate::record::{Record, chain};
use crate::routes::Route;
use crate::upstream::UpstreamBody;

const CLOSE: HeaderValue = HeaderValue::from_static("close");

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
///
/// With `scrub: Block` an answer whose head holds a credential is refused with `upstream_unreachable`, and so is one
/// whose content does, as far as it has come with the head; later content is cut. With `Redact` a credential in what
/// has come with the head takes `ETag` and the digests with it. They have gone out when one is found later: a masked
/// body then does not match them, which whoever compares takes for damage.
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
    let closes = unwanted.as_ref().is_some_and(|unwanted| unwanted.closes);
    let rules = &route.compiled.response;
    let (mut parts, body) = response.into_parts();
    record.status(parts.status);
    let injected: Vec<&str> = credential
        .sets_query()
        .iter()
        .map(|pair| pair.name.as_str())
        .collect();
    let upstream = &route.compiled.upstream;
    let sent = Sent {
        tls: upstream.tls,
        authority: &upstream.authority,
        base_path: &upstream.base_path,
        path: sent.path(),
        injected_query: &injected,
    };
    let addressing = links::Addressing::from(&addressing);
    let hits = clean(&mut parts, rules, &credential, &sent, addressing);
    record.scrubbed(hits);
    if hits > 0 && rules.scrub == Scrub::Block {
        return refuse(&BodyError::Blocked, record, &parts.headers, closes);
    }
    let links = || LinkStream::new(&sent, addressing);
    let scrubber = scrubber(rules, &credential);
    let content = match Content::of(&mut parts, body.is_end_stream(), rules, scrubber, links) {
        Ok(content) => content,
        Err(error) => return refuse(&error.into(), record, &parts.headers, closes),
    };
    let source = Source {
        body,
        content,
        route,
        credential,
        deadline,
        owner,
        streams,
        unwanted,
    };
    let mut download = Download::new(source, record);
    if let Err(error) = download.look_ahead(|| has_validators(&parts.headers)) {
        return refuse(&error, download.into_record(), &parts.headers, closes);
    }
    if download.is_altered() {
        remove_validators(&mut parts.headers);
    }
    if closes {
        parts.headers.insert(CONNECTION, CLOSE);
    }
    let request_id = download.request_id().clone();
    parts.headers.insert(REQUEST_ID, request_id);
    Response::from_parts(parts, AgentBody::Stream(Box::new(download)))
}

/// Leaves of the head what may reach the agent, and says how many credentials were found in it.
fn clean(
    parts: &mut Parts,
    rules: &ResponseRules,
    credential: &Credential,
    sent: &Sent<'_>,
    addressing: links::Addressing<'_>,
) -> u64 {
    strip(&mut parts.headers, rules, credential);
    match rules.rewrite_links {
        RewriteLinks::Headers | RewriteLinks::Body => {
            links::rewrite(&mut parts.headers, sent, addressing, &rules.link_headers);
        }
        RewriteLinks::Off => {}
    }
    if rules.pass_cookies {
        cookies::rewrite(&mut parts.headers, sent, addressing);
    }
    scrubber(rules, credential).map_or(0, |scrubber| {
        scrub_headers(&mut parts.headers, scrubber) + scrub_reason(&mut parts.extensions, scrubber)
    })
}

/// Our own answer in place of one that must not be passed on, whose `headers` tell a gRPC caller from others.
fn refuse(
    reason: &BodyError,
    mut record: Record,
    headers: &HeaderMap,
    closes: bool,
) -> Response<AgentBody> {
    let detail: Cow<'static, str> = match reason {
        BodyError::Blocked => {
            "the upstream's answer repeats the credential, and the route's response.scrub is Block"
                .into()
        }
        BodyError::Compressed(error) => {
            format!("the upstream's answer is not passed on: {error}").into()
        }
        BodyError::Broken(_)
        | BodyError::Idle
        | BodyError::Superseded
        | BodyError::Unwanted
        | BodyError::Removed
        | BodyError::Deadline => "the upstream's answer broke off".into(),
    };
    let error = ProxyError::new(Code::UpstreamUnreachable, detail).internal(chain(reason));
    record.failed(&error);
    let mut response = error.response(record.request_id(), is_grpc(headers));
    if closes {
        response.headers_mut().insert(CONNECTION, CLOSE);
    }
    response
        .map(|body| AgentBody::Full(Some(body).filter(|body| !body.is_empty()), Box::new(record)))
}

fn scrubber<'a>(rules: &ResponseRules, credential: &'a Credential) -> Option<&'a Arc<Scrubber>> {
    match rules.scrub {
        Scrub::Redact | Scrub::Block => credential.scrubber(),
        Scrub::Off => None,
    }
}

impl<'a> From<&'a Addressing> for links::Addressing<'a> {
    fn from(addressing: &'a Addressing) -> Self {
        match addressing {
            Addressing::Headers => Self::Headers,
            Addressing::Prefix(prefix) => Self::Prefix(prefix),
            Addressing::Absolute(scheme) => Self::Absolute { scheme },
        }
    }
}
