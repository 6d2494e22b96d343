//! An OAuth 2 connection with a provider behind it: tokens that are issued, expire, are refreshed and are used up.
//!
//! This is v0.2 as recorded: nothing is refreshed by a token call, a refresh replaces the stored record, and a
//! provider's refusal puts the connection in `attention` for good.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::render::Saying;

/// What a provider does with refresh tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshToken {
    /// Each is good for one refresh, which brings the next one. A second use is refused.
    OneTime,
    /// Always the same, and repeated in every answer.
    Kept,
    /// Always the same, and given out at consent only: the broker's record loses it at the first refresh.
    Omitted,
    /// There is none.
    None,
}

/// What a provider does with one refresh instead of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Answers 400 `invalid_grant`.
    Refuses,
    /// Answers 503 and changes nothing.
    Fails,
    /// Answers 200 with an error object, which the broker stores.
    AnswersWithError,
    /// Issues tokens, but the broker gives up before it has read them.
    LosesItsAnswer,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The user has not finished consenting.
    Pending,
    /// Usable.
    Active,
    /// The user has to consent again.
    Attention,
    /// Consent went wrong.
    Failed,
    /// Taken back.
    Revoked,
}

/// How the provider behind a connection behaves.
#[derive(Clone, Debug)]
pub struct Provider {
    name: String,
    life: Option<Duration>,
    refresh_token: RefreshToken,
    latency: Duration,
    troubles: VecDeque<Trouble>,
}

impl Provider {
    /// Tokens that live an hour, and one-time refresh tokens.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            life: Some(Duration::from_hours(1)),
            refresh_token: RefreshToken::OneTime,
            latency: Duration::ZERO,
            troubles: VecDeque::new(),
        }
    }

    /// Access tokens live so long, in whole seconds.
    #[must_use]
    pub fn life(mut self, life: Duration) -> Self {
        self.life = Some(life);
        self
    }

    /// Access tokens come without any expiry.
    #[must_use]
    pub fn without_expiry(mut self) -> Self {
        self.life = None;
        self
    }

    /// What it does with refresh tokens.
    #[must_use]
    pub fn refresh_token(mut self, kind: RefreshToken) -> Self {
        self.refresh_token = kind;
        self
    }

    /// A refresh takes it so long; it looks at the refresh token half-way.
    #[must_use]
    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// The next refresh that has no trouble yet gets this one.
    #[must_use]
    pub fn trouble(mut self, trouble: Trouble) -> Self {
        self.troubles.push_back(trouble);
        self
    }
}

/// An access token that the broker has stored at some time.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Connection it belongs to.
    pub connection: String,
    /// Position among the tokens of the connection, from 0.
    pub number: usize,
    /// The token.
    pub token: String,
    /// When it was stored.
    pub stored: Instant,
    /// The expiry that payloads name.
    pub expires_at: Option<SystemTime>,
    /// When the next one was stored.
    pub superseded: Option<Instant>,
    /// When a token answer that holds it was first written to its end.
    pub delivered: Option<Instant>,
}

/// The broker's record of a connection, and its provider.
#[derive(Debug)]
pub(super) struct Account {
    id: String,
    provider: Provider,
    pub(super) standing: Standing,
    record: Map<String, Value>,
    expires_at: Option<SystemTime>,
    /// What the provider accepts next.
    accepted: Option<String>,
    /// Refreshes that have read the refresh token and not yet stored what it brought.
    refreshing: usize,
    issued_by_provider: usize,
    pub(super) history: Vec<Issued>,
    /// Positions in the history.
    numbers: HashMap<String, usize>,
}

/// What the provider made of a refresh.
pub(super) enum Grant {
    Answer(Map<String, Value>),
    Refused,
    Failed(String),
}

impl Account {
    pub(super) fn new(id: &str, provider: Provider) -> Self {
        let mut account = Self {
            id: id.to_owned(),
            provider,
            standing: Standing::Active,
            record: Map::new(),
            expires_at: None,
            accepted: None,
            refreshing: 0,
            issued_by_provider: 0,
            history: Vec::new(),
            numbers: HashMap::new(),
        };
        let mut answer = account.issue();
        if account.provider.refresh_token == RefreshToken::Omitted {
            let kept = account.secret("rt", 0);
            answer.insert("refresh_token".to_owned(), kept.clone().into());
            account.accepted = Some(kept);
        }
        account.store(answer);
        account
    }

    pub(super) fn find(&self, token: &str) -> Option<&Issued> {
        self.history.get(*self.numbers.get(token)?)
    }

    pub(super) fn latency(&self) -> Duration {
        self.provider.latency
    }

    /// What a token call says now.
    pub(super) fn token(&self) -> Saying {
        match self.standing {
            Standing::Active => Saying::Credential {
                strategy: json!({"type": "oauth2"}),
                credentials: self.credentials().into(),
            },
            Standing::Attention => {
                Saying::attention("Connection requires attention. The user must re-authenticate.")
            }
            Standing::Pending | Standing::Failed | Standing::Revoked => {
                Saying::refused(403, "connection_not_active", "Connection not active")
            }
        }
    }

    fn credentials(&self) -> Map<String, Value> {
        let mut fields = self.record.clone();
        if let Some(at) = self.expires_at {
            let expired = SystemTime::now() >= at;
            fields.insert("expires_at".to_owned(), rfc3339(at).into());
            fields.insert("expired".to_owned(), expired.into());
        }
        fields
    }

    /// The refresh token that the broker sends to the provider, or why it does not.
    pub(super) fn begin_refresh(&mut self) -> Result<String, Saying> {
        if self.standing != Standing::Active {
            let message = "Connection not active or not found";
            return Err(Saying::refused(404, "connection_not_found", message));
        }
        match self.record.get("refresh_token") {
            Some(Value::String(token)) => {
                self.refreshing += 1;
                Ok(token.clone())
            }
            _ => Err(Saying::refused(
                400,
                "no_refresh_token",
                "No refresh_token available",
            )),
        }
    }

    /// The provider's answer to a refresh with this token.
    pub(super) fn grant(&mut self, refresh_token: &str) -> Grant {
        match self.provider.troubles.pop_front() {
            Some(Trouble::Refuses) => return Grant::Refused,
            Some(Trouble::Fails) => {
                let said = r#"token refresh failed: {"error": "server_error"}"#;
                return Grant::Failed(said.to_owned());
            }
            Some(Trouble::AnswersWithError) => {
                self.accepted = None;
                let error = json!({"ok": false, "error": "bad_refresh_token"});
                return Grant::Answer(error.as_object().cloned().unwrap_or_default());
            }
            Some(Trouble::LosesItsAnswer) => {
                if self.accepted.as_deref() == Some(refresh_token) {
                    self.issue();
                }
                return Grant::Failed("context deadline exceeded".to_owned());
            }
            None => {}
        }
        if self.accepted.as_deref() == Some(refresh_token) {
            Grant::Answer(self.issue())
        } else {
            Grant::Refused
        }
    }

    /// What the broker makes of the provider's answer.
    pub(super) fn finish_refresh(&mut self, grant: Grant) -> Saying {
        self.refreshing -= 1;
        match grant {
            Grant::Answer(answer) => {
                self.store(answer.clone());
                Saying::Refreshed(answer)
            }
            Grant::Failed(message) => Saying::refused(502, "upstream_error", &message),
            Grant::Refused => {
                self.standing = Standing::Attention;
                Saying::attention(
                    "The connection credentials are invalid or expired and cannot be refreshed. User re-consent is required.",
                )
            }
        }
    }

    pub(super) fn is_refreshing(&self) -> bool {
        self.refreshing > 0
    }

    /// The provider issues the next tokens.
    fn issue(&mut self) -> Map<String, Value> {
        let number = self.issued_by_provider;
        self.issued_by_provider += 1;
        let mut answer = Map::new();
        answer.insert("access_token".to_owned(), self.secret("at", number).into());
        answer.insert("token_type".to_owned(), "Bearer".into());
        answer.insert("scope".to_owned(), "read".into());
        if let Some(life) = self.provider.life {
            answer.insert("expires_in".to_owned(), life.as_secs().into());
        }
        let refresh_token = match self.provider.refresh_token {
            RefreshToken::OneTime => Some(self.secret("rt", number)),
            RefreshToken::Kept => Some(self.secret("rt", 0)),
            RefreshToken::Omitted | RefreshToken::None => None,
        };
        if let Some(token) = refresh_token {
            answer.insert("refresh_token".to_owned(), token.clone().into());
            self.accepted = Some(token);
        }
        answer
    }

    /// Replaces the record, as v0.2 does: what the provider left out is gone.
    pub(super) fn store(&mut self, answer: Map<String, Value>) {
        let now = Instant::now();
        let life = answer.get("expires_in").and_then(Value::as_u64);
        self.expires_at = life.map(|seconds| SystemTime::now() + Duration::from_secs(seconds));
        if let Some(last) = self.history.last_mut() {
            last.superseded.get_or_insert(now);
        }
        if let Some(token) = answer.get("access_token").and_then(Value::as_str) {
            self.numbers.insert(token.to_owned(), self.history.len());
            self.history.push(Issued {
                connection: self.id.clone(),
                number: self.history.len(),
                token: token.to_owned(),
                stored: now,
                expires_at: self.expires_at.map(whole_seconds),
                superseded: None,
                delivered: None,
            });
        }
        self.record = answer;
    }

    /// New tokens without a refresh of ours: another replica's, or a new consent.
    pub(super) fn rotate(&mut self) {
        let mut answer = self.issue();
        if self.provider.refresh_token == RefreshToken::Omitted
            && let Some(kept) = &self.accepted
        {
            answer.insert("refresh_token".to_owned(), kept.clone().into());
        }
        self.store(answer);
    }

    /// Takes over a record and its expiry, as recorded.
    #[cfg(test)]
    pub(super) fn adopt(&mut self, record: Map<String, Value>, expires_at: Option<SystemTime>) {
        let refresh_token = record.get("refresh_token").and_then(Value::as_str);
        self.accepted = refresh_token.map(str::to_owned);
        self.record = record;
        self.expires_at = expires_at;
    }

    pub(super) fn add_trouble(&mut self, trouble: Trouble) {
        self.provider.troubles.push_back(trouble);
    }

    fn secret(&self, kind: &str, number: usize) -> String {
        let digest = Sha256::digest(format!("{kind} {number} of {}", self.id));
        let random = URL_SAFE_NO_PAD.encode(&digest[..12]);
        format!("{kind}-{}-{random}", self.provider.name)
    }
}

fn whole_seconds(at: SystemTime) -> SystemTime {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn rfc3339(at: SystemTime) -> String {
    Timestamp::try_from(whole_seconds(at)).unwrap().to_string()
}
