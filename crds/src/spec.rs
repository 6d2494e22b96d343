//! The parts that NexusRoute, NexusProvider and the route table have in common, loose as documents are.
//!
//! Nothing is judged here; `compile` does, and turns what passes into the strict types of `matcher`.

#![allow(
    unreachable_pub,
    reason = "the derived schema has private copies of the types"
)]

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::matcher::{RewriteLinks, Scrub, UpstreamProtocol};

/// Where requests go. The host comes from here and never from a caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.url) || !self.url.startsWith('http://') || (has(self.allowInsecure) && self.allowInsecure)").message("an http:// upstream needs allowInsecure: true"),
    validation = Rule::new("!has(self.url) || self.url.startsWith('http://') || !has(self.protocol) || self.protocol != 'H2C'").message("protocol H2C is for http:// upstreams"),
    validation = Rule::new("!has(self.url) || self.url.startsWith('https://') || !has(self.protocol) || self.protocol != 'HTTP2'").message("protocol HTTP2 is for https:// upstreams; in clear text it is H2C")
)]
pub struct UpstreamSpec {
    /// Scheme, host, and optionally a port and a base path that every request is put under, such as
    /// `https://api.github.com` or `https://gitlab.example.com/api/v4`. May be left out where a NexusProvider has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 8, max = 2048),
        regex(pattern = "^https?://[^/?#@\\\\\\s]+(/[^?#\\\\\\s]*)?$")
    )]
    pub url: Option<String>,
    /// HTTP version to speak. `Auto` lets the TLS handshake decide, and speaks HTTP/1.1 in clear text. Default: `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<UpstreamProtocol>,
    /// Allows an `http://` upstream, over which the credential travels unencrypted. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_insecure: Option<bool>,
    /// PEM certificates to trust for this upstream. They replace the public roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 131_072))]
    pub ca_bundle: Option<String>,
    /// Allows in-cluster and private addresses (loopback, RFC 1918, CGNAT, unique local). Cloud metadata addresses
    /// are always refused. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_private_addresses: Option<bool>,
}

/// Header rules. Values are written into objects that many can read: no secrets here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeadersSpec {
    /// Headers set on every request, in place of what the agent sent. `Host`, framing and credential headers are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub set: BTreeMap<String, String>,
    /// Headers removed from every request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    pub remove: Option<Vec<String>>,
    /// Headers of the agent that are let through although they could carry a credential, such as `X-Api-Key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    pub keep: Option<Vec<String>>,
}

/// What requests may do. Left out, everything under the base path is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessSpec {
    /// `Warn` lets through what the rules refuse, counts and logs it. Tenants and the base path are enforced in
    /// either mode, and so is every rule where a NexusProvider that enforces denies something. Default: `Enforce`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<AccessMode>,
    /// A request must match one of these rules. Left out, every request does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub allow: Option<Vec<AccessRuleSpec>>,
    /// A request must match none of these rules: deny wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub deny: Option<Vec<AccessRuleSpec>>,
    /// Paths are compared without regard to case, for APIs that do so themselves. Default: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths_ignore_case: Option<bool>,
}

/// Whether access rules refuse or only report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::schema::undescribed)]
pub enum AccessMode {
    /// A request that breaks a rule is refused.
    #[default]
    Enforce,
    /// A request that breaks a rule is counted, logged and let through.
    Warn,
}

/// One rule. All conditions must hold; one that is left out holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRuleSpec {
    /// Methods such as `GET`; `*` is any. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 32)))]
    pub methods: Option<Vec<String>>,
    /// Patterns for the full path at the upstream, base path included. `*` is any run of characters within a
    /// segment, `**` zero or more whole segments, `{a,b}` either; nothing else is special. Every way in which a server
    /// might read a path must match an allow rule, and none may match a deny rule. Default: any path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 256),
        inner(length(min = 1, max = 1024), regex(pattern = "^/"))
    )]
    pub paths: Option<Vec<String>>,
    /// Header fields that must have exactly these values, such as `X-Amz-Target`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub headers: BTreeMap<String, String>,
    /// Query parameters that must have exactly these values once decoded. In an allow rule every occurrence
    /// must, in a deny rule one is enough.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub query_params: BTreeMap<String, String>,
    /// Query parameters that must be there, whatever their value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    pub query_params_present: Vec<String>,
}

/// Sizes and rates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.burst) || has(self.requestsPerSecond)").message("burst needs requestsPerSecond"))]
pub struct LimitsSpec {
    /// Largest body that is buffered where the strategy signs it, in bytes. Default: 10485760.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 67_108_864))]
    pub max_signed_body_bytes: Option<u64>,
    /// Requests a second in the long run, per sidecar, route and tenant. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_second: Option<u32>,
    /// Requests at once. Default: `requestsPerSecond`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
}

/// Timeouts: whole numbers with `ms`, `s`, `m` or `h`, such as `10s`, `1m30s`; `none` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeoutsSpec {
    /// Until the connection to the upstream stands, TLS included; cannot be `none`. Default: `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = "^([0-9]+(ms|s|m|h))+$"))]
    pub connect: Option<String>,
    /// From the end of the request to the head of the answer. Default: `660s`, since models are silent for minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = "^(none|([0-9]+(ms|s|m|h))+)$"))]
    pub response_header: Option<String>,
    /// Between two pieces of a body. Default: `660s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = "^(none|([0-9]+(ms|s|m|h))+)$"))]
    pub idle: Option<String>,
    /// The whole request and its whole answer. Default: `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = "^(none|([0-9]+(ms|s|m|h))+)$"))]
    pub request: Option<String>,
}

/// When a request is sent again with a fresh credential.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplaySpec {
    /// Statuses that mean a dead credential at this API. Default: `[401]`.
    // The first manifests and tables say `on`, which kubectl, whose YAML is 1.1, takes for `true`.
    #[serde(default, alias = "on", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(range(min = 400, max = 599)))]
    pub status_codes: Option<Vec<u16>>,
    /// Largest request body that is kept to be sent again, in bytes. Default: 1048576.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 33_554_432))]
    pub max_body_bytes: Option<u64>,
    /// Methods that may be sent again; `*` is any. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 32)))]
    pub methods: Option<Vec<String>>,
}

/// What is done to answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResponseSpec {
    /// What happens to a credential that an answer repeats: masked, the answer cut, or nothing. Default: `Redact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<Scrub>,
    /// `Identity` asks for uncompressed answers, so that they can be searched for credentials; `Pass` lets the agent choose. Default: `Identity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Cookies of the upstream are stripped or passed both ways. Default: `Strip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_cookie: Option<SetCookie>,
    /// Where links to the upstream are turned into links through the sidecar. Default: `Headers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite_links: Option<RewriteLinks>,
    /// Further headers that hold links, beside `Location`, `Link`, `Content-Location`, `Refresh` and `Operation-Location`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
    pub link_headers: Option<Vec<String>>,
}

/// Whether an agent's `Accept-Encoding` reaches the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::schema::undescribed)]
pub enum Compression {
    /// Uncompressed answers are asked for.
    #[default]
    Identity,
    /// The agent's choice is passed on.
    Pass,
}

/// What happens to cookies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::schema::undescribed)]
pub enum SetCookie {
    /// The agent sees none.
    #[default]
    Strip,
    /// They go both ways.
    Pass,
}

/// Which connection of the control plane a tenant's requests use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionSpec {
    /// The tenant; `*` is any other tenant that the pod is allowed. Left out: requests that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^(\*|[A-Za-z0-9._:-]+)$")
    )]
    pub tenant: Option<String>,
    /// Id of the connection: a UUID.
    #[schemars(length(min = 1, max = 64))]
    pub connection_id: String,
    /// A second connection, whose credential fields are merged under those of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub key_connection_id: Option<String>,
    /// Values for the variables of a templated upstream host.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    pub variables: BTreeMap<String, String>,
}
