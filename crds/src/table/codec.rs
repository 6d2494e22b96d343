//! Table to bytes and back.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::table::compact::CompactRoute;
use crate::table::{FORMAT, OLDEST_WRITABLE, RouteTable, TableRoute};

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
    Gzip(#[source] io::Error),
    /// Larger than any table.
    #[error("the route table is larger than {MAX_SIZE} bytes")]
    TooLarge,
    /// Asked to write a format that this version does not have.
    #[error(
        "route tables are written in the formats {OLDEST_WRITABLE} to {FORMAT}, not in {format}"
    )]
    Unwritable {
        /// The format asked for.
        format: u32,
    },
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

/// A table as it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    format: u32,
    min_reader: u32,
    revision: u64,
    hash: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    ca_certificates: &'a str,
    routes: Routes<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Routes<'a> {
    Plain(&'a [TableRoute]),
    Compact(Vec<CompactRoute<'a>>),
}

impl RouteTable {
    /// The wire form in the newest format, see [`Self::encode_as`].
    pub fn encode(&self) -> Result<Encoded, TableError> {
        self.encode_as(FORMAT)
    }

    /// The wire form in a format from [`OLDEST_WRITABLE`] to [`FORMAT`]: JSON, gzip-compressed above 256 KiB. Equal
    /// tables have equal bytes. An error is a format that is not written, or a table that no reader would take.
    pub fn encode_as(&self, format: u32) -> Result<Encoded, TableError> {
        let json = self.json(format)?;
        if json.len() <= COMPRESS_ABOVE {
            return Ok(Encoded::Json(json));
        }
        compress(&json, usize::MAX)
            .map(Encoded::Gzip)
            .map_err(TableError::Gzip)
    }

    /// Whether the wire form is one that readers take and has at most `limit` bytes.
    pub(crate) fn fits(&self, format: u32, limit: usize) -> Result<bool, TableError> {
        let json = match self.json(format) {
            Ok(json) => json,
            Err(TableError::TooLarge) => return Ok(false),
            Err(error) => return Err(error),
        };
        if json.len() <= COMPRESS_ABOVE {
            return Ok(json.len() <= limit);
        }
        match compress(&json, limit) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => Ok(false),
            Err(error) => Err(TableError::Gzip(error)),
        }
    }

    fn json(&self, format: u32) -> Result<Vec<u8>, TableError> {
        let Self {
            format: _,
            min_reader: _,
            revision,
            hash,
            namespace,
            ca_certificates,
            routes,
        } = self;
        let routes = match format {
            1 => Routes::Plain(routes),
            2 => Routes::Compact(routes.iter().map(CompactRoute::from).collect()),
            _ => return Err(TableError::Unwritable { format }),
        };
        let wire = Wire {
            format,
            // A reader of format 1 would find a connection without id in every block.
            min_reader: format,
            revision: *revision,
            hash,
            namespace,
            ca_certificates,
            routes,
        };
        let json = serde_json::to_vec(&wire).map_err(TableError::Json)?;
        if json.len() as u64 > MAX_SIZE {
            return Err(TableError::TooLarge);
        }
        Ok(json)
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

/// Compresses; more than `limit` bytes are `QuotaExceeded`, found before all of the input was looked at.
fn compress(json: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let bytes = Vec::new();
    let mut encoder = GzEncoder::new(Limited { bytes, limit }, Compression::default());
    encoder.write_all(json)?;
    encoder.finish().map(|limited| limited.bytes)
}

struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
