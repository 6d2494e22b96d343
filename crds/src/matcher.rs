//! The table made ready for requests: every look-up is one hash look-up, whatever the number of routes.

pub(crate) mod intern;
mod lookup;
pub(crate) mod strict;
pub(crate) mod upstream;
pub(crate) mod values;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use http::{HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::names::ConnectionId;
use crate::strategy::StrategySpec;

pub use self::lookup::{LoadError, Matcher};

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
#[schemars(transform = crate::schema::undescribed)]
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
    pub by_tenant: HashMap<Arc<str>, Connection, RandomState>,
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

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_signed_body_bytes: 10 * 1024 * 1024,
            rate: None,
        }
    }
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

impl Default for Timeouts {
    fn default() -> Self {
        // Models think for minutes before the first byte of an answer.
        let silence = Duration::from_mins(11);
        Self {
            connect: Duration::from_secs(10),
            response_header: Some(silence),
            idle: Some(silence),
            request: None,
        }
    }
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

impl Default for Replay {
    fn default() -> Self {
        Self {
            on: vec![401],
            max_body_bytes: 1024 * 1024,
            methods: Vec::new(),
        }
    }
}

impl Replay {
    /// Whether a request with this method may be sent again.
    pub fn allows(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }
}

/// What is done to answers.
#[derive(Clone, Debug, Default)]
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
#[schemars(transform = crate::schema::undescribed)]
pub enum Scrub {
    /// Masked at the same length.
    #[default]
    Redact,
    /// The answer is cut.
    Block,
    /// Nothing.
    #[serde(rename = "None", alias = "Off")]
    Off,
}

/// Where links to the upstream are rewritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::schema::undescribed)]
pub enum RewriteLinks {
    /// In the link headers.
    #[default]
    Headers,
    /// There and in textual bodies.
    Body,
    /// Nowhere.
    #[serde(rename = "None", alias = "Off")]
    Off,
}
