mod faults;
mod grants;
mod warnings;

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::grants::{ClusterGrants, ConnectionGrant, InlineUpstreams};
use crate::matcher::{LoadError, Matcher};

const ID_1: &str = "11111111-1111-4111-8111-111111111111";
const ID_2: &str = "22222222-2222-4222-8222-222222222222";
/// No provider.
const NOBODY: &[NexusProvider] = &[];

#[expect(clippy::needless_pass_by_value, reason = "reads better with literals")]
fn route(name: &str, spec: Value) -> NexusRoute {
    serde_json::from_value(json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute",
        "metadata": {"name": name, "namespace": "agents"},
        "spec": spec,
    }))
    .unwrap()
}

fn route_in(namespace: &str, name: &str, created: u8, spec: Value) -> NexusRoute {
    let mut route = route(name, spec);
    route.metadata.namespace = Some(namespace.to_owned());
    let created = format!("2026-01-{created:02}T00:00:00Z");
    route.metadata.creation_timestamp = Some(serde_json::from_value(json!(created)).unwrap());
    route
}

#[expect(clippy::needless_pass_by_value, reason = "reads better with literals")]
fn provider(name: &str, spec: Value) -> NexusProvider {
    serde_json::from_value(json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusProvider",
        "metadata": {"name": name},
        "spec": spec,
    }))
    .unwrap()
}

fn minimal(tenant: &str) -> Value {
    json!({
        "provider": "p",
        "upstream": {"url": "https://h.example"},
        "connections": [{"tenant": tenant, "connectionId": ID_1}],
    })
}

fn local(routes: &[NexusRoute], providers: &[NexusProvider]) -> Compiled {
    compile(routes, providers, &Grants::Local)
}

fn cluster(grants: ClusterGrants) -> Grants {
    Grants::Cluster(grants)
}

/// Reasons of the routes' verdicts, in the order given.
fn reasons(compiled: &Compiled) -> Vec<Reason> {
    let routes = compiled.verdicts.iter().filter(|v| v.kind == Kind::Route);
    routes.map(Verdict::reason).collect()
}

/// Reason and field of the only route's verdict.
#[test]
fn a_valid_route_is_accepted_and_stands_in_the_table() {
    let compiled = local(&[route("r", minimal("t"))], &[]);
    assert_eq!(reasons(&compiled), [Reason::Accepted]);
    let table = &compiled.tables["agents"];
    assert_eq!(table.routes[0].provider, "p");
    assert_eq!(table.hash, table.content_hash());
}

#[test]
fn the_provider_defaults_to_the_name() {
    let compiled = local(
        &[route(
            "github",
            json!({"upstream": {"url": "https://h.example"}}),
        )],
        &[],
    );
    assert_eq!(compiled.tables["agents"].routes[0].provider, "github");
}

#[test]
fn a_bad_route_leaves_the_others_in_the_table() {
    let routes = [
        route("a", json!({"provider": "a"})),
        route("b", minimal("t")),
    ];
    let compiled = local(&routes, &[]);
    assert_eq!(
        reasons(&compiled),
        [Reason::InvalidUpstream, Reason::Accepted]
    );
    assert_eq!(compiled.tables["agents"].routes.len(), 1);
}

#[test]
fn a_provider_fills_in_what_a_route_does_not_say() {
    let github = provider(
        "p",
        json!({
            "upstream": {"url": "https://h.example", "protocol": "HTTP1"},
            "strategy": {"type": "oauth2"},
            "headers": {"set": {"Accept": "a", "X-V": "1"}, "remove": ["X-R"]},
            "access": {"allow": [{"paths": ["/a"]}], "deny": [{"paths": ["/p"]}], "pathsIgnoreCase": true},
            "limits": {"requestsPerSecond": 5, "burst": 9, "maxSignedBodyBytes": 7},
            "timeouts": {"idle": "5s", "connect": "1s"},
            "response": {"scrub": "Block"},
        }),
    );
    let own = json!({
        "provider": "p",
        "upstream": {"protocol": "HTTP2"},
        "headers": {"set": {"accept": "b"}, "keep": ["X-K"]},
        "access": {"allow": [{"paths": ["/b"]}], "deny": [{"paths": ["/r"]}], "pathsIgnoreCase": false},
        "limits": {"requestsPerSecond": 50},
        "timeouts": {"idle": "6s"},
    });
    let compiled = local(&[route("r", own)], &[github]);
    assert_eq!(reasons(&compiled), [Reason::Accepted]);
    let merged = serde_json::to_value(&compiled.tables["agents"].routes[0]).unwrap();
    assert_eq!(
        merged,
        json!({
            "name": "r", "provider": "p", "connections": [],
            "upstream": {"url": "https://h.example", "protocol": "HTTP2"},
            "strategy": {"type": "oauth2"},
            "headers": {"set": {"X-V": "1", "accept": "b"}, "remove": ["X-R"], "keep": ["X-K"]},
            "access": {"allow": [{"paths": ["/b"]}], "deny": [{"paths": ["/r"]}, {"paths": ["/p"]}], "pathsIgnoreCase": true},
            "limits": {"maxSignedBodyBytes": 7, "requestsPerSecond": 50},
            "timeouts": {"connect": "1s", "idle": "6s"},
            "response": {"scrub": "Block"},
        })
    );
}

#[test]
fn a_route_in_warn_mode_does_not_lift_what_its_provider_denies() {
    let modes = |provider_access: Value| {
        let github = provider(
            "p",
            json!({"upstream": {"url": "https://h.example"}, "access": provider_access}),
        );
        let own = json!({"provider": "p", "access": {"mode": "Warn"}});
        let compiled = local(&[route("r", own)], &[github]);
        let merged = serde_json::to_value(&compiled.tables["agents"].routes[0]).unwrap();
        merged["access"]["mode"].clone()
    };
    let deny = json!([{"paths": ["/keys/**"]}]);
    assert_eq!(modes(json!({"deny": deny})), "Enforce");
    assert_eq!(modes(json!({"deny": deny, "mode": "Warn"})), "Warn");
    assert_eq!(modes(json!({"allow": [{"paths": ["/a"]}]})), "Warn");
}

#[test]
fn an_invalid_provider_takes_its_routes_with_it() {
    let broken = provider(
        "p",
        json!({"upstream": {"url": "https://h.example"}, "origins": ["https://*"]}),
    );
    let compiled = local(&[route("r", minimal("t"))], &[broken]);
    let [provider, route] = &compiled.verdicts[..] else {
        panic!("two verdicts")
    };
    let problem = provider.result.clone().unwrap_err();
    assert_eq!(
        (provider.kind, problem.field.as_str()),
        (Kind::Provider, "spec.origins[0]")
    );
    let problem = route.result.clone().unwrap_err();
    assert_eq!(problem.field, "spec.provider");
    assert!(problem.message.contains("spec.origins[0]"), "{problem}");
}

#[test]
fn routes_that_differ_in_connections_only_become_one() {
    let compiled = local(&[route("a", minimal("t")), route("b", minimal("u"))], &[]);
    assert_eq!(reasons(&compiled), [Reason::Accepted, Reason::Accepted]);
    let routes = &compiled.tables["agents"].routes;
    assert_eq!(routes.len(), 1);
    assert_eq!(routes[0].name, "a");
    assert_eq!(routes[0].connections.len(), 2);
}

#[test]
fn a_tenant_in_two_routes_that_would_merge_is_a_duplicate() {
    let compiled = local(&[route("a", minimal("t")), route("b", minimal("t"))], &[]);
    assert_eq!(
        reasons(&compiled),
        [Reason::Accepted, Reason::DuplicateTenant]
    );
    assert_eq!(compiled.tables["agents"].routes[0].connections.len(), 1);
}

#[test]
fn of_two_different_routes_for_a_provider_the_older_wins() {
    let other = json!({"provider": "p", "upstream": {"url": "https://other.example"}});
    let grants = cluster(ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        ..ClusterGrants::default()
    });
    let routes = [
        route_in("agents", "a", 2, minimal("t")),
        route_in("agents", "z", 1, other.clone()),
    ];
    let compiled = compile(&routes, NOBODY, &grants);
    assert_eq!(
        reasons(&compiled),
        [Reason::ProviderConflict, Reason::Accepted]
    );
    let same_age = [
        route_in("agents", "z", 1, other.clone()),
        route_in("agents", "a", 1, minimal("t")),
    ];
    let compiled = compile(&same_age, NOBODY, &grants);
    assert_eq!(
        reasons(&compiled),
        [Reason::ProviderConflict, Reason::Accepted]
    );
    // Files have no age: the first one wins.
    let compiled = local(&same_age, &[]);
    assert_eq!(
        reasons(&compiled),
        [Reason::Accepted, Reason::ProviderConflict]
    );
    let message = compiled.verdicts[1].result.clone().unwrap_err().message;
    assert!(
        message.contains("\"z\"") && message.contains("upstream"),
        "{message}"
    );
}

#[test]
fn disjoint_selectors_and_other_namespaces_do_not_conflict() {
    let with = |app: &str, url: &str| json!({"provider": "p", "upstream": {"url": url}, "podSelector": {"matchLabels": {"app": app}}});
    let routes = [
        route("a", with("a", "https://a.example")),
        route("b", with("b", "https://b.example")),
        route("c", with("b", "https://c.example")),
        route_in("other", "d", 1, with("b", "https://c.example")),
    ];
    let compiled = local(&routes, &[]);
    let accepted = Reason::Accepted;
    assert_eq!(
        reasons(&compiled),
        [accepted, accepted, Reason::ProviderConflict, accepted]
    );
    assert_eq!(compiled.tables["other"].routes.len(), 1);
}

#[test]
fn what_was_accepted_loads() {
    let routes = [
        route("a", minimal("t")),
        route(
            "b",
            json!({"upstream": {"url": "https://b.example"}, "strategy": {"type": "dpop"},
            "access": {"deny": [{"paths": ["/{a,b}/**"]}]}}),
        ),
    ];
    let compiled = local(&routes, &[]);
    let wire = compiled.tables["agents"].encode().unwrap();
    let table = RouteTable::decode(wire.as_bytes()).unwrap();
    let matcher = Matcher::load(&table, Ok::<_, LoadError>).unwrap();
    assert_eq!(matcher.routes().len(), 2);
}

#[test]
fn the_result_depends_on_the_objects_and_not_on_their_order() {
    let mut routes: Vec<_> = (1..=6)
        .map(|n| {
            route_in(
                "agents",
                &format!("r{n}"),
                n,
                minimal(&format!("t{}", n % 4)),
            )
        })
        .collect();
    let grants = cluster(ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        ..ClusterGrants::default()
    });
    let forward = compile(&routes, NOBODY, &grants).tables;
    routes.reverse();
    assert_eq!(compile(&routes, NOBODY, &grants).tables, forward);
}

#[test]
fn shared_objects_are_judged_as_owned_ones() {
    let routes = [
        route("a", minimal("t")),
        route("b", json!({"provider": "b"})),
    ];
    let providers = [provider(
        "p",
        json!({"upstream": {"url": "https://h.example"}}),
    )];
    let shared: Vec<Arc<NexusRoute>> = routes.iter().cloned().map(Arc::new).collect();
    let granted: Vec<Arc<NexusProvider>> = providers.iter().cloned().map(Arc::new).collect();
    for grants in [Grants::Local, cluster(ClusterGrants::default())] {
        let owned = compile(&routes, &providers, &grants);
        assert_eq!(compile(&shared, &granted, &grants), owned);
    }
}

#[test]
fn unknown_fields_of_a_manifest_are_errors() {
    for spec in [
        json!({"upstraem": {}}),
        json!({"upstream": {"uri": "https://h.example"}}),
        json!({"connections": [{"connectionId": ID_1, "tennant": "t"}]}),
        json!({"access": {"deny": [{"path": "/a"}]}}),
    ] {
        let object = json!({"apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute",
            "metadata": {"name": "a"}, "spec": spec});
        assert!(
            serde_json::from_value::<NexusRoute>(object).is_err(),
            "{spec}"
        );
    }
}
