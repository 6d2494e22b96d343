//! Table to bytes and back.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde_json::Value;

use crate::table::{FORMAT, RouteTable, TableRoute};

/// JSON beyond this size is compressed.
const COMPRESS_ABOVE: usize = 256 * 1024;
/// Largest table that is read, uncompressed: far above what a ConfigMap's 1 MiB can hold in practice.
const MAX_SIZE: u64 = 64 * 1024 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The wire form of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// JSON, for a ConfigMap's `data`.
    Json(Vec<u8>),
    /// Compressed JSON, for a ConfigMap's `binaryData`.
    Gzip(Vec<u8>),
}

impl Encoded {
    /// The bytes to write.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Json(bytes) | Self::Gzip(bytes) => bytes,
        }
    }
}

/// Why bytes are not a table, or a table cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Not JSON, or JSON of another shape.
    #[error("not a route table")]
    Json(#[source] serde_json::Error),
    /// Compression failed or the compressed bytes are damaged.
    #[error("the compressed route table is damaged")]
    Gzip(#[source] std::io::Error),
    /// Larger than any table.
    #[error("the route table is larger than {MAX_SIZE} bytes")]
    TooLarge,
    /// Written for newer readers only.
    #[error(
        "the route table needs a reader of format {min_reader}, this one reads {FORMAT}; upgrade the sidecar"
    )]
    TooNew {
        /// Format that a reader must know.
        min_reader: u32,
    },
    /// A route does not parse and requires nothing that would excuse it.
    #[error("route {name:?} of the route table does not parse")]
    Route {
        /// Its name, or its place where it has none.
        name: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
}

impl RouteTable {
    /// The wire form: JSON, gzip-compressed above 256 KiB. Equal tables have equal bytes.
    pub fn encode(&self) -> Result<Encoded, TableError> {
        let json = serde_json::to_vec(self).map_err(TableError::Json)?;
        if json.len() <= COMPRESS_ABOVE {
            return Ok(Encoded::Json(json));
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder
            .write_all(&json)
            .and_then(|()| encoder.finish())
            .map(Encoded::Gzip)
            .map_err(TableError::Gzip)
    }

    /// Reads a table, compressed or not.
    ///
    /// Unknown fields are ignored. A route that does not parse becomes a stub if it requires a feature that is not
    /// known here, and an error otherwise.
    pub fn decode(bytes: &[u8]) -> Result<Self, TableError> {
        let unpacked;
        let json = if bytes.starts_with(&GZIP_MAGIC) {
            unpacked = unpack(bytes)?;
            &unpacked
        } else if bytes.len() as u64 > MAX_SIZE {
            return Err(TableError::TooLarge);
        } else {
            bytes
        };
        // The usual case in one pass; the tolerant one looks at every field by itself.
        match serde_json::from_slice::<Self>(json) {
            Ok(table) => readable(table.min_reader).map(|()| table),
            Err(error) => decode_tolerantly(json, error),
        }
    }
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, TableError> {
    let mut json = Vec::new();
    GzDecoder::new(bytes)
        .take(MAX_SIZE + 1)
        .read_to_end(&mut json)
        .map_err(TableError::Gzip)?;
    if json.len() as u64 > MAX_SIZE {
        return Err(TableError::TooLarge);
    }
    Ok(json)
}

fn readable(min_reader: u32) -> Result<(), TableError> {
    if min_reader > FORMAT {
        return Err(TableError::TooNew { min_reader });
    }
    Ok(())
}

/// Takes each route by itself, without the fields that are not known.
fn decode_tolerantly(json: &[u8], error: serde_json::Error) -> Result<RouteTable, TableError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        min_reader: u32,
    }

    let mut value: Value = serde_json::from_slice(json).map_err(TableError::Json)?;
    let head = Head::deserialize(&value).map_err(TableError::Json)?;
    readable(head.min_reader)?;
    let Some(Value::Array(routes)) = value.get_mut("routes").map(Value::take) else {
        return Err(TableError::Json(error));
    };
    if let Value::Object(table) = &mut value {
        table.remove("routes");
    }
    let mut table: RouteTable = serde_json::from_value(value).map_err(TableError::Json)?;
    let schema = SchemaSettings::openapi3()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<TableRoute>()
        .to_value();
    table.routes = routes
        .into_iter()
        .enumerate()
        .map(|(index, route)| decode_route(index, route, &schema))
        .collect::<Result<_, _>>()?;
    Ok(table)
}

fn decode_route(index: usize, mut route: Value, schema: &Value) -> Result<TableRoute, TableError> {
    /// What every format has.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Stub {
        name: String,
        provider: String,
        #[serde(default)]
        requires: Vec<String>,
        #[serde(default)]
        pod_selector: Value,
        #[serde(default)]
        service_accounts: Value,
    }

    prune(&mut route, schema);
    let stub = Stub::deserialize(&route);
    let source = match serde_json::from_value(route) {
        Ok(route) => return Ok(route),
        Err(source) => source,
    };
    let name = match stub {
        Ok(Stub {
            name,
            provider,
            requires,
            pod_selector,
            service_accounts,
        }) => {
            let stub = TableRoute {
                name,
                provider,
                requires,
                // Other pods need not be told `not_ready`. Where the newer version says it in another way, all are.
                pod_selector: serde_json::from_value(pod_selector).unwrap_or_default(),
                service_accounts: serde_json::from_value(service_accounts).unwrap_or_default(),
                ..TableRoute::default()
            };
            if stub.requires_unknown() {
                return Ok(stub);
            }
            stub.name
        }
        Err(_) => format!("#{index}"),
    };
    Err(TableError::Route { name, source })
}

/// Drops the fields that a schema does not name, as an API server does with an object of a newer client.
fn prune(value: &mut Value, schema: &Value) {
    let branches = ["anyOf", "oneOf", "allOf"]
        .iter()
        .filter_map(|key| schema.get(key)?.as_array())
        .flatten();
    for branch in branches {
        prune(value, branch);
    }
    match value {
        Value::Object(fields) => {
            if let Some(Value::Object(known)) = schema.get("properties") {
                fields.retain(|name, _| known.contains_key(name));
                for (name, field) in fields {
                    prune(field, &known[name]);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for item in items {
                    prune(item, schema);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
