//! The usual arrangement: one control plane, one upstream, one sidecar with one route `p` of one connection.

use crate::agent::Call;
use crate::broker::{Answer, Broker};
use crate::connection;
use crate::route::Route;
use crate::sidecar::Sidecar;
use crate::upstream::Upstream;

/// The arrangement. Its parts end with it.
#[derive(Debug)]
pub struct Scene {
    /// The gateway.
    pub broker: Broker,
    /// The upstream.
    pub upstream: Upstream,
    /// The sidecar.
    pub sidecar: Sidecar,
}

impl Scene {
    /// With an OAuth 2 token.
    pub async fn bearer() -> Self {
        Self::answering(Answer::oauth2("access-token-of-the-scene")).await
    }

    /// With this answer of the gateway.
    pub async fn answering(answer: Answer) -> Self {
        Self::adapted(answer, |route| route).await
    }

    /// With this answer of the gateway and a route that `adapt` changes.
    pub async fn adapted(answer: Answer, adapt: impl FnOnce(Route) -> Route) -> Self {
        let upstream = Upstream::start().await;
        Self::with_upstream(answer, upstream, adapt).await
    }

    /// The same with an upstream of one's own.
    pub async fn with_upstream(
        answer: Answer,
        upstream: Upstream,
        adapt: impl FnOnce(Route) -> Route,
    ) -> Self {
        let broker = Broker::gateway().await;
        broker.set(&Self::id(), answer);
        let route = adapt(Route::new("p", &upstream.url()).connection(&Self::id()));
        let sidecar = Sidecar::with(&broker, &route).await;
        Self {
            broker,
            upstream,
            sidecar,
        }
    }

    /// Id of the one connection.
    pub fn id() -> String {
        connection(1)
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
