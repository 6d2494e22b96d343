//! One connection's credential: a control-plane answer comes in, something that can be put on a request goes out.
//!
//! [`client`] fetches the answer, [`status`] says what a failed one means, [`payload`] and [`expiry`] parse a good
//! one into a [`Credential`], [`cache`] keeps it. [`crate::sign`] applies it. Only values that the strategy needs
//! outlive the parser.

pub mod cache;
pub mod client;
pub mod clock;
pub mod expiry;
pub mod payload;
pub mod refresh;
pub mod status;

#[cfg(test)]
pub(crate) mod wire;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use nexus_crds::strategy::{Strategy, StrategySpec};
use zeroize::Zeroizing;

use payload::Life;
pub use payload::PayloadError;

use crate::proxy::scrub::Scrubber;
use crate::sign::{hmac, sigv4};

/// A credential stops being used this long before it expires, so that a request under way is not refused.
/// Short-lived ones stop after three quarters of what is left when they are fetched, if that is later.
pub const EXPIRY_SKEW: Duration = Duration::from_secs(5);

/// A secret value that is overwritten when it is dropped.
pub(crate) type Secret = Zeroizing<Vec<u8>>;

/// A credential that can be put on requests, with the strategy that says how.
pub struct Credential {
    strategy: Strategy,
    application: Application,
    secrets: Vec<Secret>,
    sets_headers: Vec<HeaderName>,
    obtained_at: SystemTime,
    lives: (Life, Option<Life>),
    expires_at: Option<SystemTime>,
    usable_until: Option<SystemTime>,
    scrubber: OnceLock<Option<Arc<Scrubber>>>,
}

/// What is done to a request, as far as it can be prepared before there is one.
pub enum Application {
    /// Headers to set, replacing those of the same name. All values are sensitive.
    Headers(Vec<(HeaderName, HeaderValue)>),
    /// Query parameters to append.
    Query(Vec<QueryPair>),
    /// HMAC of the body in a header.
    Hmac(hmac::Signer),
    /// AWS Signature Version 4.
    Sigv4(sigv4::Signer),
}

/// A query parameter with a secret value.
#[derive(Clone)]
pub struct QueryPair {
    /// The parameter's name, before encoding.
    pub name: String,
    /// `name=value` as `application/x-www-form-urlencoded` writes it (space as `+`).
    pub encoded: Zeroizing<String>,
}

/// One of the two connections that a credential may be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `connectionId`.
    First,
    /// `keyConnectionId`.
    Second,
}

/// Whether the body has to be complete before a request can be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyMode {
    /// The body is not looked at.
    Stream,
    /// The body is hashed, so it has to be read first.
    Buffer,
}

/// What a scheme makes of a credential's fields.
pub(crate) struct Prepared {
    pub(crate) application: Application,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) sets_headers: Vec<HeaderName>,
}

impl Credential {
    /// Parses the body of a 200 answer of the token endpoint.
    ///
    /// `route` is the strategy the route asks for, `now` the time the answer was received: a relative expiry
    /// counts from it. An expired credential parses, but is not [usable](Self::is_usable).
    pub fn parse(
        payload: &[u8],
        route: Option<&StrategySpec>,
        now: SystemTime,
    ) -> Result<Self, PayloadError> {
        Self::parse_merged(payload, None, route, now)
    }

    /// Like [`parse`](Self::parse), with the fields of a second connection under those of the first
    /// (`keyConnectionId`). The strategy is the first's; the credential expires when either does.
    pub fn parse_merged(
        payload: &[u8],
        key_payload: Option<&[u8]>,
        route: Option<&StrategySpec>,
        now: SystemTime,
    ) -> Result<Self, PayloadError> {
        let parsed = payload::parse(payload, key_payload, route)?;
        let Prepared {
            application,
            secrets,
            sets_headers,
        } = crate::sign::prepare(&parsed.strategy, &parsed.fields)?;
        let mut credential = Self {
            strategy: parsed.strategy,
            application,
            secrets,
            sets_headers,
            obtained_at: now,
            lives: parsed.lives,
            expires_at: None,
            usable_until: None,
            scrubber: OnceLock::new(),
        };
        credential.set_expiry();
        Ok(credential)
    }

    /// The strategy that is applied.
    pub fn strategy(&self) -> &Strategy {
        &self.strategy
    }

    /// What is done to a request.
    pub fn application(&self) -> &Application {
        &self.application
    }

    /// When the credential expires; `None` if nothing says so.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// When the control plane handed the credential out.
    pub fn obtained_at(&self) -> SystemTime {
        self.obtained_at
    }

    /// Whose refresh would bring another credential: that of the connection that expires first, if its payload held a
    /// refresh token. The token's value is not kept.
    pub fn refreshes(&self) -> Option<Side> {
        let (first, second) = &self.lives;
        let (side, life) = match second {
            Some(second) if earlier(second.end(self.obtained_at), first.end(self.obtained_at)) => {
                (Side::Second, second)
            }
            Some(_) | None => (Side::First, first),
        };
        life.refreshable.then_some(side)
    }

    /// True until [`EXPIRY_SKEW`] before the expiry.
    pub fn is_usable(&self, now: SystemTime) -> bool {
        self.usable_until.is_none_or(|until| now < until)
    }

    /// For how much longer it is usable; `None` if nothing says that it ends.
    pub fn usable_for(&self, now: SystemTime) -> Option<Duration> {
        let until = self.usable_until?;
        Some(until.duration_since(now).unwrap_or_default())
    }

    /// True if both put the same secrets on a request.
    pub fn has_same_value(&self, other: &Self) -> bool {
        self.secrets == other.secrets
    }

    /// The secret values as raw bytes, for finding them in answers: never a user name, an access key id or a
    /// prefix. For `basic_auth` the pair `user:password` is among them.
    pub fn secrets(&self) -> impl Iterator<Item = &[u8]> {
        self.secrets.iter().map(|secret| secret.as_slice())
    }

    /// Finds this credential in answers; built at the first one. `None` if it is too short to be looked for.
    pub fn scrubber(&self) -> Option<&Arc<Scrubber>> {
        self.scrubber
            .get_or_init(|| {
                // The pair of `basic_auth` is among the secrets, so its base64 forms are among theirs.
                Scrubber::new(self.secrets(), std::iter::empty()).map(Arc::new)
            })
            .as_ref()
    }

    /// Headers that only the sidecar may set: the agent's copies are to be stripped before signing.
    ///
    /// `X-Amz-Content-Sha256` is not among them, since the agent's own value is signed; what
    /// [`sign`](crate::sign::sign) returns replaces it.
    pub fn sets_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.sets_headers.iter()
    }

    /// Query parameters that only the sidecar may set.
    pub fn sets_query(&self) -> &[QueryPair] {
        match &self.application {
            Application::Query(pairs) => pairs,
            Application::Headers(_) | Application::Hmac(_) | Application::Sigv4(_) => &[],
        }
    }

    /// Whether the body has to be read before the request can be signed. `headers` are the agent's.
    pub fn body_mode(&self, headers: &HeaderMap) -> BodyMode {
        match &self.application {
            Application::Headers(_) | Application::Query(_) => BodyMode::Stream,
            Application::Hmac(_) => BodyMode::Buffer,
            Application::Sigv4(signer) => signer.body_mode(headers),
        }
    }

    /// Counts a relative expiry from when `earlier` was obtained, if it has the same value. `expires_in` is the
    /// life at issue, so reading the same token again does not prolong it.
    pub fn keep_first_sight(&mut self, earlier: &Self) {
        if self.has_same_value(earlier) {
            self.obtained_at = earlier.obtained_at;
            self.set_expiry();
        }
    }

    fn set_expiry(&mut self) {
        let (first, second) = &self.lives;
        let first = first.end(self.obtained_at);
        let second = second.and_then(|life| life.end(self.obtained_at));
        self.expires_at = first.into_iter().chain(second).min();
        self.usable_until = self.expires_at.map(|at| {
            let left = at.duration_since(self.obtained_at).unwrap_or_default();
            at - EXPIRY_SKEW.min(left / 4)
        });
    }
}

fn earlier(one: Option<SystemTime>, other: Option<SystemTime>) -> bool {
    one.is_some_and(|one| other.is_none_or(|other| one < other))
}

impl Prepared {
    /// Ready-made headers.
    pub(crate) fn headers(headers: Vec<(HeaderName, HeaderValue)>, secrets: Vec<Secret>) -> Self {
        Self {
            sets_headers: headers.iter().map(|(name, _)| name.clone()).collect(),
            application: Application::Headers(headers),
            secrets,
        }
    }

    /// `Authorization`.
    pub(crate) fn authorization(value: HeaderValue, secrets: Vec<Secret>) -> Self {
        Self::headers(vec![(AUTHORIZATION, value)], secrets)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("strategy", &self.strategy)
            .field("expires_at", &self.expires_at)
            .field("refreshes", &self.refreshes())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Headers(headers) => f
                .debug_list()
                .entries(headers.iter().map(|(name, _)| name))
                .finish(),
            Self::Query(pairs) => f.debug_list().entries(pairs).finish(),
            Self::Hmac(signer) => signer.fmt(f),
            Self::Sigv4(signer) => signer.fmt(f),
        }
    }
}

impl fmt::Debug for QueryPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=[redacted]", self.name)
    }
}
