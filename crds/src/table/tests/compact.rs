use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::table::compact::CompactRoute;

/// [`ID`] as a block has it: once, twice and three times.
const ONE: &str = "ERERERERQRGBEREREREREQ";
const TWO: &str = "ERERERERQRGBEREREREREREREREREUERgRERERERERE";
const THREE: &str = "ERERERERQRGBEREREREREREREREREUERgRERERERERERERERERFBEYERERERERER";
const KEY: &str = "22222222-2222-4222-8222-222222222222";

/// A table of one route with these connections, in the words of format 1.
#[expect(clippy::needless_pass_by_value, reason = "reads better with literals")]
fn table(connections: Value) -> RouteTable {
    let route = json!({"name": "r", "provider": "p", "connections": connections});
    RouteTable::new("agents", vec![serde_json::from_value(route).unwrap()])
}

fn plain(tenant: &str) -> Value {
    json!({"tenant": tenant, "id": ID})
}

/// What is written of the route's connections.
fn written(table: &RouteTable, format: u32) -> Value {
    let encoded = table.encode_as(format).unwrap();
    let wire: Value = serde_json::from_slice(encoded.as_bytes()).unwrap();
    assert_eq!(
        (&wire["format"], &wire["minReader"]),
        (&json!(format), &json!(format))
    );
    wire["routes"][0]["connections"].clone()
}

/// What a reader makes of connections that it finds; an error is its text with every cause.
#[expect(clippy::needless_pass_by_value, reason = "reads better with literals")]
fn read(connections: Value) -> Result<Vec<TableConnection>, String> {
    let route = json!([{"name": "r", "provider": "p", "connections": connections}]);
    match RouteTable::decode(&wire(route)) {
        Ok(table) => Ok(table.routes[0].connections.clone()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            Err(format!("{error}: {}", cause.unwrap_or_default()))
        }
    }
}

#[test]
fn plain_neighbours_stand_in_one_block_and_the_order_is_kept() {
    let connections = json!([
        {"id": ID}, plain("a"), plain("*"), {"tenant": "k", "id": ID, "keyId": KEY}, plain("b"),
        {"tenant": "v", "id": ID, "variables": {"x": "1"}}, plain("c"), plain("d"), plain("e"),
    ]);
    let table = table(connections.clone());
    assert_eq!(written(&table, 1), connections);
    assert_eq!(
        written(&table, 2),
        json!([
            {"id": ID}, {"tenants": ["a", "*"], "ids": TWO},
            {"tenant": "k", "id": ID, "keyId": KEY}, plain("b"),
            {"tenant": "v", "id": ID, "variables": {"x": "1"}},
            {"tenants": ["c", "d", "e"], "ids": THREE},
        ])
    );
}

#[test]
fn a_table_is_the_same_in_either_format() {
    let mut original = table(json!([plain("a"), plain("b"), {"id": KEY}, plain("c")]));
    original.revision = 7;
    original.ca_certificates = "PEM".to_owned();
    original.hash = original.content_hash();
    for format in OLDEST_WRITABLE..=FORMAT {
        let read = RouteTable::decode(original.encode_as(format).unwrap().as_bytes()).unwrap();
        let expected = RouteTable {
            format,
            min_reader: format,
            ..original.clone()
        };
        assert_eq!(read, expected);
        assert_eq!(
            read.content_hash(),
            original.hash,
            "the format is not content"
        );
    }
    assert_eq!(
        original.encode().unwrap(),
        original.encode_as(FORMAT).unwrap()
    );
}

#[test]
fn a_route_is_written_whole_in_either_format() {
    let whole = json!({
        "name": "r", "provider": "p", "requires": ["x"],
        "upstream": {"url": "https://h.example", "protocol": "HTTP1"},
        "connections": [{"tenant": "t", "id": ID}],
        "strategy": {"type": "header", "config": {"header_name": "X-Key"}},
        "headers": {"set": {"A": "b"}, "remove": ["C"], "keep": ["D"]},
        "access": {"deny": [{"paths": ["/a"]}]},
        "limits": {"requestsPerSecond": 5},
        "timeouts": {"idle": "5s"},
        "replay": {"statusCodes": [403]},
        "response": {"scrub": "Block"},
        "podSelector": {"matchLabels": {"app": "x"}},
        "serviceAccounts": ["robot"],
    });
    let route: TableRoute = serde_json::from_value(whole.clone()).unwrap();
    assert_eq!(serde_json::to_value(&route).unwrap(), whole);
    let compact = CompactRoute::from(&route);
    assert_eq!(serde_json::to_value(&compact).unwrap(), whole);
    let empty = TableRoute::default();
    let compact = CompactRoute::from(&empty);
    assert_eq!(
        serde_json::to_value(&compact).unwrap(),
        serde_json::to_value(&empty).unwrap()
    );
}

#[test]
fn a_malformed_block_is_an_error_that_names_its_route() {
    for (connections, message) in [
        (
            json!([{"tenants": ["a"]}]),
            "0 bytes are not 16 for each of 1 tenants",
        ),
        (
            json!([{"tenants": ["a", "b"], "ids": ONE}]),
            "16 bytes are not 16 for each of 2 tenants",
        ),
        (
            json!([{"tenants": ["a"], "ids": TWO}]),
            "32 bytes are not 16 for each of 1 tenants",
        ),
        (
            json!([{"tenants": [], "ids": "AAAA"}]),
            "3 bytes are not 16 for each of 0 tenants",
        ),
        (json!([{"tenants": ["a"], "ids": "!"}]), "ids: "),
        (
            json!([{"tenants": ["a"], "ids": format!("{ONE}==")}]),
            "ids: ",
        ),
        (json!([{"tenants": ["a"], "ids": 5}]), "invalid type"),
        (json!([{"tenants": "a", "ids": ONE}]), "invalid type"),
        (json!([{"tenants": [1], "ids": ONE}]), "invalid type"),
        (json!([{"ids": ONE}]), "missing field `id`"),
        (json!([{"tenant": "a"}]), "missing field `id`"),
        (
            json!([{"tenants": ["a"], "ids": ONE, "keyId": KEY}]),
            "no connection as well",
        ),
        (
            json!([{"tenants": ["a"], "ids": ONE, "tenant": "b"}]),
            "no connection as well",
        ),
        (json!({"tenants": []}), "a list of connections"),
    ] {
        let error = read(connections.clone()).unwrap_err();
        assert!(error.contains("route \"r\""), "{connections} {error}");
        assert!(error.contains(message), "{connections} {error}");
    }
}

#[test]
fn what_is_new_in_a_block_is_ignored() {
    let block =
        json!([{"tenants": ["a"], "ids": ONE, "new": {"x": 1}}, {"tenants": [], "ids": ""}]);
    let expected = table(json!([plain("a")])).routes[0].connections.clone();
    assert_eq!(read(block.clone()).unwrap(), expected);
    // Also where another route makes the reader look at every field by itself.
    let routes = json!([
        {"name": "a", "provider": "a", "requires": ["http3"], "upstream": {"protocol": "HTTP3"}},
        {"name": "b", "provider": "b", "connections": block},
    ]);
    let table = RouteTable::decode(&wire(routes)).unwrap();
    assert_eq!(table.routes[1].connections, expected);
}

#[test]
fn a_reader_of_the_first_format_refuses_a_block_by_its_min_reader() {
    // What readers of format 1 ask first.
    let wire = table(json!([plain("a"), plain("b")])).encode_as(2).unwrap();
    let head: Value = serde_json::from_slice(wire.as_bytes()).unwrap();
    assert_eq!(head["minReader"], 2);
    let wire = table(json!([plain("a"), plain("b")])).encode_as(1).unwrap();
    let head: Value = serde_json::from_slice(wire.as_bytes()).unwrap();
    assert_eq!(head["minReader"], 1);
}

#[test]
fn a_format_that_is_not_written_is_an_error() {
    for format in [0, FORMAT + 1, u32::MAX] {
        let error = table(json!([])).encode_as(format).unwrap_err();
        assert!(
            error.to_string().contains(&format!("not in {format}")),
            "{error}"
        );
    }
}

#[test]
fn the_format_is_that_of_the_oldest_reader() {
    for (readers, expected) in [
        (&[][..], FORMAT),
        (&[1], 1),
        (&[2, 1, 9], 1),
        (&[2, 9], 2),
        (&[9], FORMAT),
        (&[0], OLDEST_WRITABLE),
    ] {
        assert_eq!(format_for(readers.iter().copied()), expected, "{readers:?}");
    }
}

fn connection() -> impl Strategy<Value = TableConnection> {
    let variables =
        prop::option::weighted(0.1, prop::collection::btree_map("[a-z]", "[a-z]", 1..3));
    (
        prop::option::weighted(0.9, ".{0,6}"),
        any::<[u8; 16]>(),
        prop::option::weighted(0.2, any::<[u8; 16]>()),
        variables,
    )
        .prop_map(|(tenant, id, key, variables)| TableConnection {
            tenant: tenant.map(Box::from),
            id: ConnectionId::from_bytes(id),
            key_id: key.map(ConnectionId::from_bytes),
            variables: variables.map(Box::new),
        })
}

proptest! {
    #[test]
    fn every_list_of_connections_survives_either_format(
        connections in prop::collection::vec(connection(), 0..12),
    ) {
        let route = TableRoute { connections, ..route("r") };
        let original = RouteTable::new("agents", vec![route]);
        for format in OLDEST_WRITABLE..=FORMAT {
            let read = RouteTable::decode(original.encode_as(format).unwrap().as_bytes()).unwrap();
            prop_assert_eq!(&read.routes, &original.routes);
        }
    }

    #[test]
    fn an_odd_block_never_panics(tenants in 0..3_usize, ids in "[A-Za-z0-9_=-]{0,48}") {
        drop(read(json!([{"tenants": vec!["t"; tenants], "ids": ids}])));
    }
}
