//! What one call to the stand-in is answered, when it is not left to the connection's own state.

use std::time::Duration;

use serde_json::{Value, json};

use super::render::Saying;
use crate::raw;

/// What one call answers.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) delay: Duration,
    pub(super) pace: Option<Duration>,
    pub(super) lost: bool,
    pub(super) reply: Reply,
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Genuine,
    Says(Saying),
    Raw(Vec<u8>),
    Hang,
    Close,
}

impl Answer {
    /// A 200 with `strategy` and `credentials`, shaped as the front shapes it.
    pub fn credential(strategy: Value, credentials: Value) -> Self {
        Reply::Says(Saying::Credential {
            strategy,
            credentials,
        })
        .into()
    }

    /// An OAuth 2 access token without an expiry and without a refresh token.
    pub fn oauth2(token: &str) -> Self {
        Self::credential(
            json!({"type": "oauth2"}),
            json!({"access_token": token, "token_type": "Bearer", "expired": false}),
        )
    }

    /// A key that goes into header `name`.
    pub fn header(name: &str, key: &str) -> Self {
        Self::credential(
            json!({"type": "header", "config": {"header_name": name, "credential_field": "api_key"}}),
            json!({"api_key": key}),
        )
    }

    /// A status with the broker's `{"error", "message"}`; the gateway passes only the status on.
    pub fn status(status: u16, error: &str) -> Self {
        let body = json!({"error": error, "message": "as scripted"});
        Reply::Says(Saying::Refused { status, body }).into()
    }

    /// What the connection would answer by itself: [`super::Broker::set`]'s answer, or its provider's.
    ///
    /// Useful with [`Self::after`], [`Self::trickled`] and [`Self::lost`], and between others in a script.
    pub fn genuine() -> Self {
        Reply::Genuine.into()
    }

    /// These bytes and nothing else.
    pub fn raw(response: impl Into<Vec<u8>>) -> Self {
        Reply::Raw(response.into()).into()
    }

    /// A 200 with this body, as JSON.
    pub fn body(body: &str) -> Self {
        Self::raw(raw::response(200, "application/json", body))
    }

    /// Takes the request and never answers.
    pub fn hang() -> Self {
        Reply::Hang.into()
    }

    /// Takes the request and closes the connection.
    pub fn close() -> Self {
        Reply::Close.into()
    }

    /// Answers after this time. What a token call says is read, and what a refresh does is done, before it.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends one byte, waits so long, sends the next.
    #[must_use]
    pub fn trickled(mut self, pause: Duration) -> Self {
        self.pace = Some(pause);
        self
    }

    /// This one, with `fixed` in the place of what is genuine.
    pub(super) fn over(mut self, fixed: Self) -> Self {
        if matches!(self.reply, Reply::Genuine) {
            self.delay += fixed.delay;
            self.pace = self.pace.or(fixed.pace);
            self.lost |= fixed.lost;
            self.reply = fixed.reply;
        }
        self
    }

    /// Does everything but answer: the connection closes instead.
    #[must_use]
    pub fn lost(mut self) -> Self {
        self.lost = true;
        self
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            delay: Duration::ZERO,
            pace: None,
            lost: false,
            reply,
        }
    }
}
