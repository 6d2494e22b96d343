//! The table made ready for requests: every look-up is one hash look-up, whatever the number of routes.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::names::ConnectionId;
use crate::strategy::StrategySpec;
use crate::table::RouteTable;

/// One route, strict: everything was judged when the table was compiled.
#[derive(Debug)]
pub struct CompiledRoute {
    /// `namespace/name`, the oldest of those merged.
    pub name: Arc<str>,
    /// Value of `X-Nexus-Provider`.
    pub provider: Arc<str>,
    /// Where requests go.
    pub upstream: Upstream,
    /// Which credential a tenant has.
    pub connections: Connections,
    /// How to present the credential, where the route says so.
    pub strategy: Option<StrategySpec>,
    /// Headers to set, remove and keep.
    pub headers: HeaderRules,
    /// Access rules; `None` allows everything under the base path.
    pub access: Option<Arc<Access>>,
    /// Sizes and rates.
    pub limits: Limits,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// What may be sent again.
    pub replay: Replay,
    /// What is done to answers.
    pub response: ResponseRules,
    /// A must-understand field of the route is not known to this version: requests are answered `not_ready`.
    pub not_ready: bool,
}

/// Where requests of a route go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// TLS is used.
    pub tls: bool,
    /// Host name or address (IPv6 without brackets), lower case.
    pub host: Arc<str>,
    /// Port; the scheme's default where the URL has none.
    pub port: u16,
    /// `Host` / `:authority`: host, and port where it is not the scheme's default.
    pub authority: Arc<str>,
    /// Path every request is put under, without trailing slash; empty for the root.
    pub base_path: Arc<str>,
    /// HTTP version to speak.
    pub protocol: UpstreamProtocol,
    /// PEM roots that replace the public ones.
    pub ca_bundle: Option<Arc<str>>,
    /// Private addresses may be connected to.
    pub allow_private_addresses: bool,
}

/// HTTP version to speak to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UpstreamProtocol {
    /// ALPN decides over TLS; HTTP/1.1 in clear text.
    #[default]
    Auto,
    /// HTTP/1.1.
    #[serde(rename = "HTTP1")]
    Http1,
    /// HTTP/2 over TLS.
    #[serde(rename = "HTTP2")]
    Http2,
    /// HTTP/2 in clear text with prior knowledge.
    #[serde(rename = "H2C")]
    H2c,
}

/// Which connection a tenant's requests use.
#[derive(Debug, Default)]
pub struct Connections {
    /// For requests that name no tenant.
    pub tenantless: Option<Connection>,
    /// By tenant.
    pub by_tenant: std::collections::HashMap<Box<str>, Connection, foldhash::fast::RandomState>,
    /// For any other tenant (`tenant: "*"`).
    pub any_tenant: Option<Connection>,
}

/// A connection of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The connection whose credential is applied.
    pub id: ConnectionId,
    /// A second one whose credential fields are merged under the first's.
    pub key_id: Option<ConnectionId>,
}

/// Header rules of a route.
#[derive(Clone, Debug, Default)]
pub struct HeaderRules {
    /// Set on every request.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Removed from every request.
    pub remove: Vec<HeaderName>,
    /// Let through although they would be stripped.
    pub keep: Vec<HeaderName>,
}

/// Sizes and rates.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body that is buffered in order to sign it, in bytes.
    pub max_signed_body_bytes: u64,
    /// Rate per sidecar, route and tenant.
    pub rate: Option<Rate>,
}

/// A rate limit.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Requests a second in the long run.
    pub per_second: u32,
    /// Requests at once.
    pub burst: u32,
}

/// Timeouts of a route; `None` is no limit.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until the upstream connection stands, TLS included.
    pub connect: Duration,
    /// From the end of the request to the answer's head.
    pub response_header: Option<Duration>,
    /// Between two pieces of a body.
    pub idle: Option<Duration>,
    /// The whole request and answer.
    pub request: Option<Duration>,
}

/// What may be sent again, and when.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Statuses that mean a dead credential.
    pub on: Vec<u16>,
    /// Largest body kept for it, in bytes.
    pub max_body_bytes: u64,
    /// Methods it holds for; empty is all.
    pub methods: Vec<Method>,
}

/// What is done to answers.
#[derive(Clone, Debug)]
pub struct ResponseRules {
    /// Credentials found in an answer.
    pub scrub: Scrub,
    /// `Accept-Encoding` is passed on instead of replaced by `identity`.
    pub pass_compression: bool,
    /// Cookies go both ways.
    pub pass_cookies: bool,
    /// Where links to the upstream are rewritten.
    pub rewrite_links: RewriteLinks,
    /// Further headers that hold links.
    pub link_headers: Vec<HeaderName>,
}

/// What happens to a credential found in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Scrub {
    /// Masked at the same length.
    #[default]
    Redact,
    /// The answer is cut.
    Block,
    /// Nothing.
    Off,
}

/// Where links to the upstream are rewritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RewriteLinks {
    /// In the link headers.
    #[default]
    Headers,
    /// There and in textual bodies.
    Body,
    /// Nowhere.
    Off,
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("route {route}: {reason}")]
pub struct LoadError {
    /// `namespace/name`.
    pub route: String,
    /// What is wrong.
    pub reason: String,
}

/// The look-ups of one table. `R` is what the user of the table keeps for a route.
#[derive(Debug)]
pub struct Matcher<R> {
    routes: Vec<R>,
}

impl<R> Matcher<R> {
    /// Makes a table ready. `keep` turns each route into what the look-ups return.
    pub fn load(
        _table: &RouteTable,
        _keep: impl FnMut(CompiledRoute) -> R,
    ) -> Result<Self, LoadError> {
        unimplemented!()
    }

    /// The route of a provider.
    pub fn by_provider(&self, _provider: &str) -> Option<&R> {
        unimplemented!()
    }

    /// The route of an absolute-form target: same scheme-independent host and port, longest base path first.
    /// `host` is lower case, `port` the explicit one or the default of the target's scheme.
    pub fn by_host(&self, _host: &str, _port: u16, _path: &str) -> Option<&R> {
        unimplemented!()
    }

    /// The route and tenant (`None`: the tenantless one) that use a connection.
    pub fn by_connection(&self, _id: ConnectionId) -> Option<(&R, Option<&str>)> {
        unimplemented!()
    }

    /// Every route, in table order.
    pub fn routes(&self) -> &[R] {
        &self.routes
    }
}
