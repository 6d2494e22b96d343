use serde_json::{Value, json};

use super::*;
use crate::matcher::{Timeouts, UpstreamProtocol};
use crate::spec::UpstreamSpec;
use crate::table::TableRoute;

const ID_1: &str = "11111111-1111-4111-8111-111111111111";
const ID_2: &str = "22222222-2222-4222-8222-222222222222";
const ID_3: &str = "33333333-3333-4333-8333-333333333333";

fn load(routes: Value) -> Matcher<CompiledRoute> {
    Matcher::load(&table(routes), Ok::<_, LoadError>).unwrap()
}

fn table(routes: Value) -> RouteTable {
    RouteTable::new("ns", serde_json::from_value(routes).unwrap())
}

fn id(text: &str) -> ConnectionId {
    text.parse().unwrap()
}

fn name(route: Option<&CompiledRoute>) -> Option<&str> {
    route.map(|route| &*route.name)
}

#[test]
fn a_minimal_route_has_the_documented_defaults() {
    let matcher =
        load(json!([{"name": "a", "provider": "p", "upstream": {"url": "https://h.example"}}]));
    let route = matcher.by_provider("p").unwrap();
    assert_eq!(&*route.name, "ns/a");
    assert_eq!(route.upstream.protocol, UpstreamProtocol::Auto);
    assert_eq!(route.limits.max_signed_body_bytes, 10_485_760);
    assert!(route.limits.rate.is_none());
    let Timeouts {
        connect,
        response_header,
        idle,
        request,
    } = route.timeouts;
    assert_eq!(connect.as_secs(), 10);
    assert_eq!(response_header.unwrap().as_secs(), 660);
    assert_eq!(idle.unwrap().as_secs(), 660);
    assert!(request.is_none());
    assert_eq!(route.replay.on, [401]);
    assert_eq!(route.replay.max_body_bytes, 1_048_576);
    assert!(route.replay.methods.is_empty());
    assert!(!route.response.pass_cookies && !route.response.pass_compression);
    assert!(route.access.is_none() && !route.not_ready);
}

#[test]
fn every_field_reaches_the_compiled_route() {
    let matcher = load(json!([{
        "name": "a", "provider": "p",
        "upstream": {"url": "http://h:81/b", "allowInsecure": true, "protocol": "H2C", "allowPrivateAddresses": true},
        "connections": [
            {"id": ID_1},
            {"tenant": "t", "id": ID_2, "keyId": ID_3},
            {"tenant": "*", "id": ID_3},
        ],
        "strategy": {"type": "dpop"},
        "headers": {"set": {"X-A": "1"}, "remove": ["X-B"], "keep": ["X-Api-Key"]},
        "access": {"mode": "Warn"},
        "limits": {"maxSignedBodyBytes": 5, "requestsPerSecond": 50, "burst": 100},
        "timeouts": {"connect": "1s", "responseHeader": "none", "idle": "2s", "request": "3s"},
        "replay": {"on": [403], "maxBodyBytes": 7, "methods": ["GET"]},
        "response": {"scrub": "Block", "compression": "Pass", "setCookie": "Pass", "rewriteLinks": "None", "linkHeaders": ["X-L"]},
    }]));
    let route = matcher.by_provider("p").unwrap();
    assert!(route.upstream.allow_private_addresses && !route.upstream.tls);
    assert_eq!(route.connections.tenantless.unwrap().id, id(ID_1));
    let tenant = route.connections.by_tenant["t"];
    assert_eq!((tenant.id, tenant.key_id), (id(ID_2), Some(id(ID_3))));
    assert_eq!(route.connections.any_tenant.unwrap().id, id(ID_3));
    assert_eq!(route.strategy.as_ref().unwrap().kind, "dpop");
    assert_eq!(route.headers.set[0].0, "x-a");
    assert_eq!(route.headers.remove[0], "x-b");
    assert_eq!(route.headers.keep[0], "x-api-key");
    assert!(route.access.as_ref().unwrap().warn_only);
    assert_eq!(route.limits.max_signed_body_bytes, 5);
    let rate = route.limits.rate.unwrap();
    assert_eq!((rate.per_second, rate.burst), (50, 100));
    assert_eq!(route.timeouts.connect.as_secs(), 1);
    assert!(route.timeouts.response_header.is_none());
    assert_eq!(route.timeouts.request.unwrap().as_secs(), 3);
    assert_eq!(route.replay.on, [403]);
    assert_eq!(route.replay.methods, ["GET"]);
    assert!(route.response.pass_cookies && route.response.pass_compression);
    assert_eq!(route.response.link_headers[0], "x-l");
}

#[test]
fn a_host_is_found_by_its_longest_base_path_at_a_segment_boundary() {
    let matcher = load(json!([
        {"name": "root", "provider": "a", "upstream": {"url": "https://h.example"}},
        {"name": "v1", "provider": "b", "upstream": {"url": "https://h.example/api/v1"}},
        {"name": "api", "provider": "c", "upstream": {"url": "https://h.example/api"}},
        {"name": "port", "provider": "d", "upstream": {"url": "https://h.example:8443/only"}},
        {"name": "second", "provider": "e", "upstream": {"url": "https://h.example/api"}},
    ]));
    for (port, path, expected) in [
        (443, "/", Some("ns/root")),
        (443, "/api", Some("ns/api")),
        (443, "/api/", Some("ns/api")),
        (443, "/apis", Some("ns/root")),
        (443, "/api/v1", Some("ns/v1")),
        (443, "/api/v1/x/y/z", Some("ns/v1")),
        (443, "/api/v10", Some("ns/api")),
        (80, "/api/v1/x", Some("ns/v1")),
        (8443, "/only/x", Some("ns/port")),
        (8443, "/other", None),
        (9000, "/", None),
    ] {
        assert_eq!(
            name(matcher.by_host("h.example", port, path)),
            expected,
            "{port} {path}"
        );
    }
    assert!(matcher.by_host("other.example", 443, "/").is_none());
}

#[test]
fn a_connection_leads_to_its_route_and_tenant() {
    let matcher = load(json!([
        {"name": "a", "provider": "a", "upstream": {"url": "https://a.example"}, "connections": [
            {"id": ID_1}, {"tenant": "*", "id": ID_3},
        ]},
        {"name": "b", "provider": "b", "upstream": {"url": "https://b.example"}, "connections": [
            {"tenant": "z", "id": ID_2}, {"tenant": "t", "id": ID_2},
            {"tenant": "u", "id": ID_1},
        ]},
    ]));
    let found = |text| {
        matcher
            .by_connection(id(text))
            .map(|(route, tenant)| (&*route.name, tenant))
    };
    assert_eq!(found(ID_1), Some(("ns/a", None)));
    assert_eq!(found(ID_2), Some(("ns/b", Some("t"))));
    assert_eq!(found(ID_3), None);
}

#[test]
fn routes_share_what_they_have_in_common() {
    let route = |n: usize| {
        json!({
            "name": format!("r{n}"), "provider": format!("p{n}"),
            "upstream": {"url": "https://h.example/base", "caBundle": null},
            "access": {"deny": [{"paths": ["/a/**"]}]},
            "connections": [{"tenant": "shared", "id": ID_1}],
        })
    };
    let matcher = load((0..3).map(route).collect());
    let [first, .., last] = matcher.routes() else {
        panic!("three routes")
    };
    assert!(Arc::ptr_eq(
        first.access.as_ref().unwrap(),
        last.access.as_ref().unwrap()
    ));
    assert!(Arc::ptr_eq(&first.upstream.host, &last.upstream.host));
    assert!(Arc::ptr_eq(
        &first.upstream.base_path,
        &last.upstream.base_path
    ));
    let tenant =
        |route: &CompiledRoute| Arc::clone(route.connections.by_tenant.keys().next().unwrap());
    assert!(Arc::ptr_eq(&tenant(first), &tenant(last)));
}

#[test]
fn a_route_that_requires_the_unknown_answers_not_ready() {
    let matcher = load(json!([
        {"name": "a", "provider": "a", "requires": ["later"]},
        {"name": "b", "provider": "b", "upstream": {"url": "https://b.example"}},
    ]));
    assert!(matcher.by_provider("a").unwrap().not_ready);
    assert!(!matcher.by_provider("b").unwrap().not_ready);
    assert!(matcher.by_host("", 0, "/").is_none());
}

#[test]
fn a_fault_names_the_route() {
    let table = table(json!([{"name": "a", "provider": "a"}]));
    let error = Matcher::load(&table, Ok::<_, LoadError>).unwrap_err();
    assert_eq!(error.route, "ns/a");
    assert!(error.to_string().contains("spec.upstream.url"), "{error}");
}

#[test]
fn an_empty_table_serves_nothing() {
    let matcher = load(json!([]));
    assert!(matcher.routes().is_empty());
    assert!(matcher.by_provider("a").is_none());
}

#[test]
fn ten_thousand_routes_with_a_hundred_thousand_tenants_load() {
    let route = |n: usize| TableRoute {
        name: format!("r{n}"),
        provider: format!("p{n}"),
        upstream: UpstreamSpec {
            url: Some(format!("https://h{}.example", n % 50)),
            ..UpstreamSpec::default()
        },
        connections: (0..10)
            .map(|tenant| {
                serde_json::from_value(json!({
                    "tenant": format!("t{tenant}"),
                    "id": format!("{:08x}-1111-4111-8111-{:012x}", n, tenant),
                }))
                .unwrap()
            })
            .collect(),
        ..TableRoute::default()
    };
    let table = RouteTable::new("ns", (0..10_000).map(route).collect());
    let matcher = Matcher::load(&table, Ok::<_, LoadError>).unwrap();
    let (found, tenant) = matcher
        .by_connection(id("0000270f-1111-4111-8111-000000000003"))
        .unwrap();
    assert_eq!((&*found.name, tenant), ("ns/r9999", Some("t3")));
}
