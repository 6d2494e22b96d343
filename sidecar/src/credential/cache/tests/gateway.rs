//! A control plane in memory, and a cache in front of it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use tokio::time::sleep;

use super::*;
use crate::credential::Application;
use crate::credential::status::Answer;

/// A control plane whose connections are scripted.
#[derive(Default)]
pub(super) struct Gateway {
    pub(super) connections: Mutex<HashMap<u128, Scripted>>,
    pub(super) audited: AtomicUsize,
}

#[derive(Clone)]
pub(super) struct Scripted {
    pub(super) status: u16,
    pub(super) body: String,
    pub(super) delay: Duration,
    pub(super) refresh: Refresh,
    pub(super) reads: usize,
    pub(super) refreshes: usize,
    pub(super) in_flight: usize,
    pub(super) most_in_flight: usize,
    /// A refresh started while another one had not ended.
    pub(super) raced: bool,
    pub(super) rejected: Option<[u8; 32]>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            status: 404,
            body: String::new(),
            delay: Duration::ZERO,
            refresh: Refresh::Fails(400, "static_token"),
            reads: 0,
            refreshes: 0,
            in_flight: 0,
            most_in_flight: 0,
            raced: false,
            rejected: None,
        }
    }
}

/// What a refresh does.
#[derive(Clone, Copy)]
pub(super) enum Refresh {
    /// A new token with this life is stored.
    Issues(Duration),
    /// The same, and the answer is lost.
    Loses(Duration),
    /// Nothing changes, and no answer comes.
    Vanishes,
    /// An answer that changes nothing.
    Fails(u16, &'static str),
    /// Success is claimed and nothing has changed.
    Pretends,
}

impl Gateway {
    pub(super) fn with<T>(&self, number: u128, act: impl FnOnce(&mut Scripted) -> T) -> T {
        act(self.connections.lock().unwrap().entry(number).or_default())
    }

    pub(super) fn set(&self, number: u128, status: u16, body: impl Into<String>) {
        self.with(number, |it| (it.status, it.body) = (status, body.into()));
    }

    pub(super) fn delay(&self, number: u128, delay: Duration) {
        self.with(number, |it| it.delay = delay);
    }

    /// A token with so much life left, and a refresh token.
    pub(super) fn stores(&self, number: u128, token: &str, left: Duration, refresh: Refresh) {
        self.set(
            number,
            200,
            expiring(token, left, r#","refresh_token":"r""#),
        );
        self.with(number, |it| it.refresh = refresh);
    }

    pub(super) fn reads(&self, number: u128) -> usize {
        self.with(number, |it| it.reads)
    }

    pub(super) fn refreshes(&self, number: u128) -> usize {
        self.with(number, |it| it.refreshes)
    }

    async fn call(&self, number: u128, begin: impl FnOnce(&mut Scripted)) -> Scripted {
        let scripted = self.with(number, |it| {
            begin(it);
            it.in_flight += 1;
            it.most_in_flight = it.most_in_flight.max(it.in_flight);
            it.clone()
        });
        sleep(scripted.delay).await;
        self.with(number, |it| it.in_flight -= 1);
        scripted
    }
}

impl Source for Arc<Gateway> {
    async fn token(&self, id: ConnectionId) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let scripted = self.call(id.as_u128(), |it| it.reads += 1).await;
        if scripted.status == 200 {
            return Ok(Zeroizing::new(scripted.body.into_bytes()));
        }
        Err(failed(scripted.status, &scripted.body))
    }

    async fn refresh(&self, id: ConnectionId, rejected: &[u8; 32]) -> Result<(), FetchError> {
        let rejected = *rejected;
        let number = id.as_u128();
        let scripted = self
            .call(number, |it| {
                it.refreshes += 1;
                it.rejected = Some(rejected);
                it.raced |= it.in_flight > 0;
            })
            .await;
        let issue = |life| {
            let token = format!("refreshed-{}", scripted.refreshes);
            self.stores(number, &token, life, scripted.refresh);
        };
        match scripted.refresh {
            Refresh::Issues(life) => issue(life),
            Refresh::Loses(life) => {
                issue(life);
                return Err(FetchError::TimedOut);
            }
            Refresh::Vanishes => return Err(FetchError::TimedOut),
            Refresh::Fails(status, code) => return Err(failed(status, code)),
            Refresh::Pretends => {}
        }
        Ok(())
    }
}

pub(super) fn failed(status: u16, code: &str) -> FetchError {
    FetchError::Answer(Answer {
        status,
        code: Some(code.to_owned()).filter(|code| !code.is_empty()),
        empty: code.is_empty(),
        retry_after: None,
    })
}

pub(super) type TestCache = CredentialCache<Arc<Gateway>>;

pub(super) fn start() -> (Arc<Gateway>, Arc<TestCache>) {
    start_with(CacheSettings::default())
}

pub(super) fn start_with(settings: CacheSettings) -> (Arc<Gateway>, Arc<TestCache>) {
    let gateway = Arc::new(Gateway::default());
    let cache = another(&gateway, settings);
    (gateway, cache)
}

pub(super) fn another(gateway: &Arc<Gateway>, settings: CacheSettings) -> Arc<TestCache> {
    let audited = Arc::clone(gateway);
    let audit = move |_, _| {
        audited.audited.fetch_add(1, Ordering::SeqCst);
    };
    CredentialCache::new(
        Arc::clone(gateway),
        settings,
        Arc::default(),
        Box::new(audit),
    )
}

pub(super) fn connection(number: u128) -> Connection {
    Connection {
        id: uuid::Uuid::from_u128(number).into(),
        key_id: None,
    }
}

pub(super) fn key(number: u128) -> CredentialKey {
    CredentialKey::new(connection(number), 0)
}

pub(super) async fn get_one(
    cache: &Arc<TestCache>,
    number: u128,
) -> Result<Arc<Credential>, ProxyError> {
    match cache.cached(&key(number), Moment::now()) {
        Some(credential) => Ok(credential),
        None => cache.get(key(number), connection(number), None).await,
    }
}

/// The header's value, or the code of the error.
pub(super) async fn got(cache: &Arc<TestCache>, number: u128) -> Result<String, Code> {
    let got = get_one(cache, number).await;
    got.map(|it| value(&it)).map_err(|error| error.code)
}

pub(super) async fn reject(
    cache: &Arc<TestCache>,
    number: u128,
    rejected: &Arc<Credential>,
) -> Option<String> {
    let next = cache
        .replace(key(number), connection(number), None, rejected, false)
        .await;
    next.map(|it| value(&it))
}

/// Lets what runs in the background end.
pub(super) async fn settle() {
    sleep(SECOND).await;
}

pub(super) fn bearer(token: &str, rest: &str) -> String {
    format!(
        r#"{{"strategy":{{"type":"oauth2"}},"credentials":{{"access_token":"{token}"{rest}}}}}"#
    )
}

pub(super) fn expiring(token: &str, left: Duration, rest: &str) -> String {
    // A little earlier, so that nothing left is nothing left although the number is rounded.
    let at = Now::read().wall + left - MILLI;
    let unix = at
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    bearer(token, &format!(r#","expires_at":{unix}{rest}"#))
}

pub(super) fn value(credential: &Credential) -> String {
    let Application::Headers(headers) = credential.application() else {
        panic!("not headers");
    };
    headers[0]
        .1
        .to_str()
        .unwrap()
        .trim_start_matches("Bearer ")
        .to_owned()
}
