//! The route table: what the operator writes and the sidecar reads.

use serde::{Deserialize, Serialize};

/// A compiled table. The wire form is JSON, gzip-compressed where it is large.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTable {
    /// Version of the format this was written in.
    pub format: u32,
    /// Oldest reader that understands it.
    pub min_reader: u32,
    /// Grows with every change.
    pub revision: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub hash: String,
    /// Namespace the routes belong to.
    pub namespace: String,
}
