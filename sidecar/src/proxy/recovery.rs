//! When a request goes out again, and what becomes of an attempt.

use std::sync::Arc;

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, Response};

use super::outgoing::Outgoing;
use crate::credential::Credential;
use crate::upstream::{SendError, UpstreamBody};

/// What was done already for a request that did not succeed.
#[derive(Default)]
pub(super) struct Recovery {
    reconnected: bool,
    pub(super) replayed: bool,
}

impl Recovery {
    /// Whether the request goes out once more after its connection broke. Only what is idempotent does where the
    /// upstream may have acted on it (RFC 9110 section 9.2.2).
    pub(super) fn reconnects(&mut self, error: &SendError, request: &Outgoing) -> bool {
        let again = !self.reconnected
            && !error.nothing_sent()
            && error.may_be_repeated()
            && (error.is_unprocessed() || is_idempotent(request));
        self.reconnected |= again;
        again
    }
}

/// What becomes of an attempt.
pub(super) enum Recovered {
    /// This goes to the agent.
    Answer(Response<UpstreamBody>),
    /// The request goes out again; `answer` is what there is if it cannot.
    Again {
        request: Outgoing,
        credential: Arc<Credential>,
        answer: Result<Response<UpstreamBody>, SendError>,
    },
}

fn is_idempotent(request: &Outgoing) -> bool {
    // The header says so of the others (draft-ietf-httpapi-idempotency-key-header).
    request.method.is_idempotent()
        || request.headers.contains_key("idempotency-key")
        || request.headers.contains_key("x-idempotency-key")
}

/// RFC 6750 section 3.1.
pub(super) fn wants_other_scope(headers: &HeaderMap) -> bool {
    headers.get_all(WWW_AUTHENTICATE).iter().any(|challenge| {
        let challenge = challenge.as_bytes();
        challenge
            .windows(b"insufficient_scope".len())
            .any(|part| part.eq_ignore_ascii_case(b"insufficient_scope"))
    })
}
