//! The arrangement for refresh: a connection with a provider behind it, an upstream that accepts the tokens it is
//! told to, and a sidecar between.

use std::sync::{Arc, Mutex};

use crate::agent::Call;
use crate::broker::{Broker, Front, Provider};
use crate::connection;
use crate::route::Route;
use crate::sidecar::Sidecar;
use crate::upstream::{Refusal, Upstream};

/// Which tokens the upstream accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// Any.
    Everything,
    /// This one.
    Only(String),
    /// None.
    Nothing,
}

/// How the upstream refuses a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refuses {
    /// Status.
    pub status: u16,
    /// `WWW-Authenticate`.
    pub challenge: &'static str,
}

impl Default for Refuses {
    fn default() -> Self {
        Self {
            status: 401,
            challenge: "Bearer error=\"invalid_token\"",
        }
    }
}

/// The body of every refusal.
pub const REFUSED: &str = r#"{"upstream":"does not accept this token"}"#;

/// The arrangement. Its parts end with it.
#[derive(Debug)]
pub struct Guarded {
    /// The broker.
    pub broker: Broker,
    /// The upstream.
    pub upstream: Upstream,
    /// The sidecar, with route `p`.
    pub sidecar: Sidecar,
    accepts: Arc<Mutex<Accepts>>,
}

impl Guarded {
    /// With this provider and a plain route.
    pub async fn by(provider: Provider) -> Self {
        Self::adapted(provider, Refuses::default(), |route| route).await
    }

    /// With this provider, this way of refusing, and a route that `adapt` changes.
    pub async fn adapted(
        provider: Provider,
        refuses: Refuses,
        adapt: impl FnOnce(Route) -> Route,
    ) -> Self {
        let accepts = Arc::new(Mutex::new(Accepts::Everything));
        let gate = Arc::clone(&accepts);
        let upstream = Upstream::builder()
            .gate(move |seen| {
                let token = bearer(seen.values("authorization").first().copied());
                let accepted = match &*gate.lock().unwrap() {
                    Accepts::Everything => true,
                    Accepts::Only(only) => token == *only,
                    Accepts::Nothing => false,
                };
                (!accepted).then(|| {
                    Refusal::new(refuses.status, REFUSED)
                        .header("content-type", "application/json")
                        .header("www-authenticate", refuses.challenge)
                        .header("x-upstream", "refused")
                })
            })
            .start()
            .await;
        let broker = Broker::start(Front::Broker, None).await;
        broker.connect(&Self::id(), provider);
        let route = adapt(Route::new("p", &upstream.url()).connection(&Self::id()));
        let sidecar = Sidecar::with(&broker, &route).await;
        Self {
            broker,
            upstream,
            sidecar,
            accepts,
        }
    }

    /// Id of the one connection.
    pub fn id() -> String {
        connection(1)
    }

    /// Changes what the upstream accepts.
    pub fn accept(&self, accepts: Accepts) {
        *self.accepts.lock().unwrap() = accepts;
    }

    /// The token is replaced in the control plane, and the upstream accepts the new one only.
    pub fn rotate(&self) {
        self.broker.rotate(&Self::id());
        self.accept(Accepts::Only(self.current()));
    }

    /// The token that the broker holds.
    pub fn current(&self) -> String {
        self.broker.current(&Self::id()).token
    }

    /// Token calls so far.
    pub fn calls(&self) -> usize {
        self.broker.calls(&Self::id())
    }

    /// Refreshes so far.
    pub fn refreshes(&self) -> usize {
        self.broker.refreshes(&Self::id())
    }

    /// The tokens that reached the upstream, in order.
    pub fn sent(&self) -> Vec<String> {
        self.upstream
            .seen()
            .iter()
            .map(|seen| bearer(Some(seen.header("authorization"))))
            .collect()
    }

    /// Starts a GET through the route.
    pub fn get(&self, path: &str) -> Call {
        self.sidecar.agent().get(path).provider("p")
    }

    /// Starts a POST through the route.
    pub fn post(&self, path: &str, body: impl Into<bytes::Bytes>) -> Call {
        self.sidecar.agent().post(path, body).provider("p")
    }
}

fn bearer(authorization: Option<&str>) -> String {
    let value = authorization.unwrap_or_default();
    value.strip_prefix("Bearer ").unwrap_or(value).to_owned()
}
