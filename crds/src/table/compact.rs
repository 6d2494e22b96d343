//! Connections on the wire: one by one, or in blocks that take two thirds of the room.
//!
//! A connection that is nothing but a tenant and an id stands in a block with its neighbours of that kind:
//! `{"tenants": ["a", "b"], "ids": "..."}`, the ids being their 16 bytes each, one after the other, in base64url without
//! padding. A list may hold blocks and single connections in any order; readers take both, and format 1 is a list without
//! blocks. `codec` calls this to write format 2, and serde to read either.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::names::ConnectionId;
use crate::spec::{
    AccessSpec, HeadersSpec, LimitsSpec, ReplaySpec, ResponseSpec, TimeoutsSpec, UpstreamSpec,
};
use crate::strategy::StrategySpec;
use crate::table::{TableConnection, TableRoute};

/// Bytes of an id.
const ID_SIZE: usize = 16;

/// A route as format 2 writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CompactRoute<'a> {
    name: &'a str,
    provider: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    requires: &'a [String],
    upstream: &'a UpstreamSpec,
    connections: Compact<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strategy: Option<&'a StrategySpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<&'a HeadersSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<&'a AccessSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<&'a LimitsSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeouts: Option<&'a TimeoutsSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<&'a ReplaySpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a ResponseSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_selector: Option<&'a LabelSelector>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    service_accounts: &'a [String],
}

impl<'a> From<&'a TableRoute> for CompactRoute<'a> {
    fn from(route: &'a TableRoute) -> Self {
        let TableRoute {
            name,
            provider,
            requires,
            upstream,
            connections,
            strategy,
            headers,
            access,
            limits,
            timeouts,
            replay,
            response,
            pod_selector,
            service_accounts,
        } = route;
        Self {
            name,
            provider,
            requires,
            upstream,
            connections: Compact(connections),
            strategy: strategy.as_deref(),
            headers: headers.as_deref(),
            access: access.as_deref(),
            limits: limits.as_deref(),
            timeouts: timeouts.as_deref(),
            replay: replay.as_deref(),
            response: response.as_deref(),
            pod_selector: pod_selector.as_deref(),
            service_accounts,
        }
    }
}

/// A list with blocks wherever two plain connections meet.
struct Compact<'a>(&'a [TableConnection]);

#[derive(Serialize)]
struct Block<'a> {
    tenants: Vec<&'a str>,
    ids: String,
}

impl Serialize for Compact<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        let both_plain = |one: &_, other: &_| plain(one).is_some() && plain(other).is_some();
        for run in self.0.chunk_by(both_plain) {
            if let [single] = run {
                list.serialize_element(single)?;
                continue;
            }
            let mut ids = Vec::with_capacity(run.len() * ID_SIZE);
            let mut tenants = Vec::with_capacity(run.len());
            for (tenant, id) in run.iter().filter_map(plain) {
                tenants.push(tenant);
                ids.extend(id.as_u128().to_be_bytes());
            }
            let ids = URL_SAFE_NO_PAD.encode(ids);
            list.serialize_element(&Block { tenants, ids })?;
        }
        list.end()
    }
}

/// Tenant and id of a connection that has nothing else.
fn plain(connection: &TableConnection) -> Option<(&str, ConnectionId)> {
    match connection {
        TableConnection {
            tenant: Some(tenant),
            id,
            key_id: None,
            variables: None,
        } => Some((tenant, *id)),
        TableConnection { .. } => None,
    }
}

/// What a list may hold: a connection or a block. Not an enum, whose variants would be tried on a copy of the input.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry<'a> {
    tenant: Option<Box<str>>,
    id: Option<ConnectionId>,
    key_id: Option<ConnectionId>,
    variables: Option<BTreeMap<String, String>>,
    tenants: Option<Vec<Box<str>>>,
    // Not an `Option`, in which serde would not borrow.
    #[serde(borrow, default)]
    ids: Cow<'a, str>,
}

impl Entry<'_> {
    fn add_to<E: Error>(self, connections: &mut Vec<TableConnection>) -> Result<(), E> {
        let Self {
            tenant,
            id,
            key_id,
            variables,
            tenants,
            ids,
        } = self;
        let Some(tenants) = tenants else {
            connections.push(TableConnection {
                tenant,
                id: id.ok_or_else(|| E::missing_field("id"))?,
                key_id,
                variables: variables.map(Box::new),
            });
            return Ok(());
        };
        if tenant.is_some() || id.is_some() || key_id.is_some() || variables.is_some() {
            return Err(E::custom("a block of tenants is no connection as well"));
        }
        let ids = URL_SAFE_NO_PAD
            .decode(ids.as_bytes())
            .map_err(|error| E::custom(format_args!("ids: {error}")))?;
        let (ids, rest) = ids.as_chunks::<ID_SIZE>();
        if !rest.is_empty() || ids.len() != tenants.len() {
            let found = ids.as_flattened().len() + rest.len();
            return Err(E::custom(format_args!(
                "ids: {found} bytes are not {ID_SIZE} for each of {} tenants",
                tenants.len()
            )));
        }
        connections.reserve(tenants.len());
        for (tenant, id) in tenants.into_iter().zip(ids) {
            connections.push(TableConnection {
                tenant: Some(tenant),
                id: ConnectionId::from_bytes(*id),
                key_id: None,
                variables: None,
            });
        }
        Ok(())
    }
}

/// Reads a list of either format.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<TableConnection>, D::Error> {
    struct List;

    impl<'de> Visitor<'de> for List {
        type Value = Vec<TableConnection>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of connections")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut connections = Vec::new();
            while let Some(entry) = list.next_element::<Entry<'de>>()? {
                entry.add_to(&mut connections)?;
            }
            Ok(connections)
        }
    }

    deserializer.deserialize_seq(List)
}
