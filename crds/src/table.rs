//! The route table: what the operator writes and the sidecar reads.
//!
//! A table comes out of `compile` and goes into `Matcher::load`. Writers and readers may be releases apart: a reader
//! ignores fields it does not know, unless a route says that it must understand them.

mod codec;
mod compact;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::codec::{Encoded, TableError};
use crate::names::ConnectionId;
use crate::spec::{
    AccessSpec, HeadersSpec, LimitsSpec, ReplaySpec, ResponseSpec, TimeoutsSpec, UpstreamSpec,
};
use crate::strategy::StrategySpec;

/// Newest format that this version writes and reads.
///
/// - 1: JSON as [`RouteTable`] stands here.
/// - 2: neighbouring connections that are nothing but tenant and id are written as one block, so that a ConfigMap holds
///   up to 40 % more of them.
pub const FORMAT: u32 = 2;

/// Oldest format that this version still writes, for sidecars that were injected by earlier versions.
pub const OLDEST_WRITABLE: u32 = 1;

/// Features that a route may require of its reader, as far as this version has them.
pub const FEATURES: &[&str] = &[];

/// A compiled table. The wire form is JSON, gzip-compressed where it is large.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTable {
    /// Version of the format this was written in. The writer sets this and the next, whatever they hold here.
    pub format: u32,
    /// Oldest reader that understands it.
    pub min_reader: u32,
    /// Grows with every change.
    pub revision: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub hash: String,
    /// Namespace the routes belong to.
    pub namespace: String,
    /// PEM certificates that the relay's identity is checked against; empty where there is no relay.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
    /// The routes, oldest first.
    #[serde(default)]
    pub routes: Vec<TableRoute>,
}

/// One route of a table. Already judged, still in the words of the document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TableRoute {
    /// Name of the NexusRoute, the oldest of those merged.
    pub name: String,
    /// Value of `X-Nexus-Provider`.
    pub provider: String,
    /// Features a reader must have to serve this route; one that lacks any answers `not_ready` for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Where requests go.
    #[serde(default)]
    pub upstream: UpstreamSpec,
    /// Which credential a tenant has.
    #[serde(default, deserialize_with = "compact::deserialize")]
    #[schemars(with = "Vec<compact::Entry<'static>>")]
    pub connections: Vec<TableConnection>,
    /// How to present the credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Box<StrategySpec>>,
    /// Headers to set, remove and keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Box<HeadersSpec>>,
    /// Access rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Box<AccessSpec>>,
    /// Sizes and rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Box<LimitsSpec>>,
    /// Timeouts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Box<TimeoutsSpec>>,
    /// What may be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Box<ReplaySpec>>,
    /// What is done to answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<Box<ResponseSpec>>,
    /// Pods the route is for; absent is all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<Box<LabelSelector>>,
    /// Service accounts the route is for; empty is all of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
}

/// Which connection of the control plane a tenant's requests use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableConnection {
    /// The tenant; `*` is any other, absent is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Box<str>>,
    /// The connection whose credential is applied.
    pub id: ConnectionId,
    /// A second one whose credential fields are merged under the first's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<ConnectionId>,
    /// Values for the variables of a templated upstream host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variables: Option<Box<BTreeMap<String, String>>>,
}

impl TableRoute {
    /// `true` if the route requires something that this version does not have.
    pub fn requires_unknown(&self) -> bool {
        self.requires
            .iter()
            .any(|feature| !FEATURES.contains(&feature.as_str()))
    }
}

impl RouteTable {
    /// A table with revision 0; who publishes it sets the revision by [`next_revision`].
    pub fn new(namespace: impl Into<String>, routes: Vec<TableRoute>) -> Self {
        let mut table = Self {
            format: FORMAT,
            min_reader: FORMAT,
            revision: 0,
            hash: String::new(),
            namespace: namespace.into(),
            ca_certificates: String::new(),
            routes,
        };
        table.hash = table.content_hash();
        table
    }

    /// SHA-256 of what readers act on, in hexadecimal: equal for tables that differ in nothing but the revision and the
    /// format they are written in. A table that changes its format only has to be written all the same, under a higher
    /// revision; its readers find nothing new in it.
    pub fn content_hash(&self) -> String {
        let Self {
            format: _,
            min_reader: _,
            revision: _,
            hash: _,
            namespace,
            ca_certificates,
            routes,
        } = self;
        let content = (namespace, ca_certificates, routes);
        let mut hasher = Sha256::new();
        // Into a hasher nothing can fail, and these types have string keys only.
        let written = serde_json::to_writer(HashWriter(&mut hasher), &content);
        debug_assert!(written.is_ok());
        format!("{:x}", HexDigest(hasher.finalize().as_slice()))
    }
}

/// Revision for a table that takes the place of one with revision `previous`.
///
/// `now` is in milliseconds since the Unix epoch. The result exceeds `previous` whatever clocks do.
pub fn next_revision(previous: Option<u64>, now: u64) -> u64 {
    previous.map_or(now, |previous| now.max(previous.saturating_add(1)))
}

/// The format to write for readers that read up to these: the oldest of theirs, as far as this version writes it.
/// Without readers the newest.
pub fn format_for(readers: impl IntoIterator<Item = u32>) -> u32 {
    let oldest = readers.into_iter().min().unwrap_or(FORMAT);
    oldest.clamp(OLDEST_WRITABLE, FORMAT)
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct HexDigest<'a>(&'a [u8]);

impl std::fmt::LowerHex for HexDigest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests;
