use std::fmt::Write as _;

use serde_json::{Value, json};

use super::*;

const ID_1: &str = "11111111-1111-4111-8111-111111111111";
const ID_2: &str = "22222222-2222-4222-8222-222222222222";

#[expect(clippy::needless_pass_by_value, reason = "reads better with literals")]
fn object(namespace: &str, name: &str, created: u8, spec: Value) -> NexusRoute {
    let created = (created > 0).then(|| format!("2026-01-{created:02}T00:00:00Z"));
    serde_json::from_value(json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusRoute",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": spec,
    }))
    .unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "reads better with literals")]
fn granting(name: &str, spec: Value) -> NexusProvider {
    serde_json::from_value(json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": "NexusProvider", "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

/// A sound route of provider `p`, with these fields on top.
fn sound(fields: Value) -> Value {
    let mut spec = json!({
        "provider": "p",
        "upstream": {"url": "https://h.example"},
        "connections": [{"tenant": "t", "connectionId": ID_1}],
    });
    if let (Value::Object(spec), Value::Object(fields)) = (&mut spec, fields) {
        spec.extend(fields);
    }
    spec
}

/// A cluster in which an administrator granted `https://h.example` to provider `p`.
#[derive(Default)]
struct Scene {
    routes: Vec<Arc<NexusRoute>>,
    providers: Vec<Arc<NexusProvider>>,
    grants: ClusterGrants,
}

impl Scene {
    fn new(routes: impl IntoIterator<Item = NexusRoute>) -> Self {
        let granted = granting("p", json!({"origins": ["https://h.example"]}));
        Self {
            routes: routes.into_iter().map(Arc::new).collect(),
            providers: vec![Arc::new(granted)],
            grants: ClusterGrants::default(),
        }
    }

    fn create(&self, new: &NexusRoute) -> Judgement {
        route(new, None, &self.routes, &self.providers, &self.grants)
    }

    /// `old` is what the API server has, whatever the cluster shows.
    fn update(&self, old: &NexusRoute, new: &NexusRoute) -> Judgement {
        route(new, Some(old), &self.routes, &self.providers, &self.grants)
    }

    fn provide(&self, old: Option<&NexusProvider>, new: &NexusProvider) -> Judgement {
        provider(new, old, &self.routes, &self.providers, &self.grants)
    }
}

fn warnings(judgement: Judgement) -> Vec<String> {
    assert_eq!(judgement.refusal, None);
    judgement.warnings
}

/// The only warning of an object that is let through.
fn warning(judgement: Judgement) -> String {
    let mut warnings = warnings(judgement);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    warnings.remove(0)
}

#[test]
fn a_sound_route_passes_without_a_word() {
    let scene = Scene::new([object("other", "a", 1, sound(json!({"connections": []})))]);
    let new = object("agents", "r", 0, sound(json!({})));
    assert_eq!(scene.create(&new), Judgement::default());
}

#[test]
fn what_no_other_object_can_heal_is_refused_with_field_and_reason() {
    let scene = Scene::new([]);
    for (fields, expected, reason) in [
        (
            json!({"upstream": {"url": "https://u:p@h.example"}}),
            "spec.upstream.url: ",
            "InvalidUpstream",
        ),
        (
            json!({"upstream": {"url": "http://h.example", "allowInsecure": true}}),
            "spec.upstream.url: is http://, which this cluster does not allow",
            "InvalidUpstream",
        ),
        (
            json!({"upstream": {"url": "https://h.example", "caBundle": "x"}}),
            "spec.upstream.caBundle: ",
            "InvalidCABundle",
        ),
        (
            // The upstream may still come, and heals nothing.
            json!({"upstream": {"caBundle": "x"}}),
            "spec.upstream.caBundle: ",
            "InvalidCABundle",
        ),
        (
            json!({"strategy": {"type": "bearer"}}),
            "spec.strategy.type: ",
            "InvalidStrategy",
        ),
        (
            json!({"access": {"deny": [{"paths": ["/a?"]}]}}),
            "spec.access.deny[0].paths[0]: ",
            "InvalidAccessRule",
        ),
        (
            json!({"connections": [{"connectionId": "nonsense"}]}),
            "spec.connections[0].connectionId: ",
            "InvalidValue",
        ),
        (
            json!({"connections": [
                {"tenant": "t", "connectionId": ID_1}, {"tenant": "t", "connectionId": ID_2}]}),
            "spec.connections[1].tenant: ",
            "DuplicateTenant",
        ),
    ] {
        let judgement = scene.create(&object("agents", "r", 0, sound(fields.clone())));
        let refusal = judgement.refusal.unwrap_or_else(|| panic!("{fields}"));
        assert!(refusal.starts_with(expected), "{refusal}");
        assert!(refusal.ends_with(&format!("({reason})")), "{refusal}");
    }
}

#[test]
fn what_others_may_heal_is_a_warning_that_says_what_will_be() {
    let claimed = json!({"connections": [{"connectionId": ID_1}]});
    let scene = Scene::new([
        object(
            "agents",
            "older",
            1,
            sound(json!({"connections": [{"tenant": "t", "connectionId": ID_2}]})),
        ),
        object("secret", "older", 1, sound(claimed.clone())),
    ]);
    for (fields, reason, expected) in [
        (
            json!({"provider": "nobody", "upstream": {}}),
            "InvalidUpstream",
            "spec.upstream.url: is missing",
        ),
        (
            json!({"upstream": {"protocol": "H2C"}, "provider": "nobody"}),
            "InvalidUpstream",
            "spec.upstream.url: is missing",
        ),
        (
            json!({"provider": "nobody", "connections": []}),
            "OriginNotGranted",
            "spec.upstream.url: nobody granted https://h.example to provider \"nobody\"; an administrator would apply",
        ),
        (
            json!({"access": {"allow": [{"paths": ["/a"]}]}}),
            "ProviderConflict",
            "spec.provider: NexusRoute \"older\" is older",
        ),
        (
            json!({}),
            "DuplicateTenant",
            "spec.connections[0].tenant: NexusRoute \"older\"",
        ),
        (
            claimed,
            "ConnectionClaimed",
            "spec.connections[0].connectionId: connection 11111111-1111-4111-8111-111111111111 belongs to another namespace",
        ),
    ] {
        let warnings = warnings(scene.create(&object("agents", "r", 2, sound(fields.clone()))));
        let expected = format!("will not be accepted ({reason}): {expected}");
        assert!(warnings[0].starts_with(&expected), "{fields} {warnings:?}");
        assert!(!warnings[0].contains("secret"), "{warnings:?}");
    }
}

#[test]
fn a_route_that_its_provider_makes_sound_passes() {
    let mut scene = Scene::new([]);
    scene.providers = vec![Arc::new(granting(
        "p",
        json!({"upstream": {"url": "https://h.example"}, "limits": {"requestsPerSecond": 5}}),
    ))];
    let new = object(
        "agents",
        "p",
        0,
        json!({"limits": {"burst": 9}, "connections": [{"connectionId": ID_1}]}),
    );
    assert_eq!(scene.create(&new), Judgement::default());
    // An invalid provider is its administrator's to heal.
    scene.providers = vec![Arc::new(granting("p", json!({"origins": ["https://*"]})))];
    let text = warning(scene.create(&object("agents", "r", 0, sound(json!({})))));
    assert!(
        text.contains("NexusProvider \"p\" is not valid: spec.origins[0]"),
        "{text}"
    );
}

#[test]
fn the_compilers_warnings_come_after_what_keeps_the_object_from_being_served() {
    let scene = Scene::new([]);
    let fields = json!({"provider": "nobody", "response": {"scrub": "Off"}, "connections": []});
    let all = warnings(scene.create(&object("agents", "r", 0, sound(fields))));
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(
        all[0].starts_with("will not be accepted (OriginNotGranted)"),
        "{all:?}"
    );
    assert!(all[1].starts_with("spec.connections: is empty"), "{all:?}");
    assert!(
        all[2].starts_with("spec.response.scrub: a credential"),
        "{all:?}"
    );
}

#[test]
fn an_update_that_leaves_the_spec_alone_and_an_object_that_goes_are_not_judged() {
    let scene = Scene::new([]);
    let broken = object(
        "agents",
        "r",
        1,
        sound(json!({"strategy": {"type": "bearer"}})),
    );
    assert!(scene.create(&broken).refusal.is_some());
    let mut labelled = broken.clone();
    labelled.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    assert_eq!(scene.update(&broken, &labelled), Judgement::default());

    let mut going = object(
        "agents",
        "r",
        1,
        sound(json!({"strategy": {"type": "worse"}})),
    );
    going.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-02T00:00:00Z")).unwrap();
    assert_eq!(scene.update(&broken, &going), Judgement::default());

    let broken = granting("q", json!({"origins": ["https://*"]}));
    assert!(scene.provide(None, &broken).refusal.is_some());
    assert_eq!(scene.provide(Some(&broken), &broken), Judgement::default());
}

#[test]
fn an_update_may_keep_the_fault_that_is_there_and_not_bring_another() {
    let scene = Scene::new([]);
    let broken = |kind: &str, fields: Value| {
        let mut spec = sound(json!({"strategy": {"type": kind}}));
        if let (Value::Object(spec), Value::Object(fields)) = (&mut spec, fields) {
            spec.extend(fields);
        }
        object("agents", "r", 1, spec)
    };
    let old = broken("bearer", json!({}));
    let same = warning(scene.update(&old, &broken("bearer", json!({"timeouts": {"idle": "5s"}}))));
    assert!(
        same.starts_with("will not be accepted (InvalidStrategy): spec.strategy.type: "),
        "{same}"
    );
    assert!(
        scene
            .update(&old, &broken("basic", json!({})))
            .refusal
            .is_some()
    );
    let healthy = object("agents", "r", 1, sound(json!({})));
    assert!(scene.update(&healthy, &old).refusal.is_some());
    assert_eq!(scene.update(&old, &healthy), Judgement::default());

    let old = granting("q", json!({"origins": ["https://*"]}));
    let same = granting(
        "q",
        json!({"origins": ["https://*"], "timeouts": {"idle": "5s"}}),
    );
    let other = granting("q", json!({"origins": ["https://h.example", "https://*"]}));
    let text = warning(scene.provide(Some(&old), &same));
    assert!(
        text.starts_with("will not be accepted (InvalidUpstream): spec.origins[0]: "),
        "{text}"
    );
    assert!(scene.provide(Some(&old), &other).refusal.is_some());
}

#[test]
fn an_update_is_judged_in_place_of_what_the_cluster_shows() {
    let old = object("agents", "r", 1, sound(json!({})));
    let scene = Scene::new([old.clone()]);
    let new = object("agents", "r", 1, sound(json!({"timeouts": {"idle": "5s"}})));
    assert_eq!(
        scene.update(&old, &new),
        Judgement::default(),
        "no conflict with itself"
    );
    // A watch may be behind, either way.
    assert_eq!(Scene::new([]).update(&old, &new), Judgement::default());
    assert_eq!(scene.create(&old), Judgement::default());
}

#[test]
fn whoever_takes_something_from_other_routes_is_told() {
    let narrow = json!({"podSelector": {"matchLabels": {"app": "x"}}, "connections": [{"tenant": "a", "connectionId": ID_1}]});
    let old = object("agents", "old", 1, sound(narrow));
    let scene = Scene::new([
        old.clone(),
        object(
            "agents",
            "newer",
            2,
            sound(json!({
            "podSelector": {"matchLabels": {"app": "y"}}, "connections": [{"tenant": "b", "connectionId": ID_1}]})),
        ),
        object(
            "secret",
            "newer",
            3,
            sound(json!({"connections": [{"connectionId": ID_2}]})),
        ),
    ]);
    let wider = object(
        "agents",
        "old",
        1,
        sound(json!({
        "connections": [{"tenant": "a", "connectionId": ID_1}, {"tenant": "b", "connectionId": ID_2}]})),
    );
    let all = warnings(scene.update(&old, &wider));
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(
        all[0].starts_with(
            "NexusRoute agents/newer will no longer be accepted (ProviderConflict): spec.provider: "
        ),
        "{all:?}"
    );
    assert_eq!(
        all[1],
        "1 NexusRoutes of other namespaces will no longer be accepted"
    );
}

#[test]
fn a_provider_that_takes_origins_away_names_the_routes_that_lose_them() {
    let own = |n: u8| {
        let connection = format!("{n:08x}-1111-4111-8111-111111111111");
        object(
            &format!("team-{n}"),
            "r",
            n,
            sound(json!({"connections": [{"connectionId": connection}]})),
        )
    };
    let mut scene = Scene::new((1..=5).map(own));
    scene
        .routes
        .push(Arc::new(object("other", "r", 9, json!({"provider": "q"}))));
    let old = (*scene.providers[0]).clone();
    let narrower = granting("p", json!({"origins": ["https://i.example"]}));
    let all = warnings(scene.provide(Some(&old), &narrower));
    assert_eq!(all.len(), 4, "{all:?}");
    for (n, text) in all[..3].iter().enumerate() {
        let expected = format!(
            "NexusRoute team-{}/r will no longer be accepted (OriginNotGranted): spec.upstream.url: ",
            n + 1
        );
        assert!(text.starts_with(&expected), "{text}");
    }
    assert_eq!(all[3], "2 more NexusRoutes will no longer be accepted");

    let wider = granting(
        "p",
        json!({"origins": ["https://i.example", "https://*.example"]}),
    );
    assert!(
        scene.provide(Some(&old), &wider).refusal.is_some(),
        "too wide"
    );
    let wider = granting(
        "p",
        json!({"origins": ["https://i.example", "https://h.example"]}),
    );
    assert_eq!(scene.provide(Some(&old), &wider), Judgement::default());
}

#[test]
fn a_new_provider_may_take_what_the_control_plane_gave() {
    let mut scene = Scene::new([object("agents", "r", 1, sound(json!({})))]);
    scene.providers.clear();
    scene.grants.gateway_urls = [("p".to_owned(), "https://h.example/api".to_owned())].into();
    let new = granting("p", json!({"origins": ["https://i.example"]}));
    let text = warning(scene.provide(None, &new));
    assert!(
        text.starts_with("NexusRoute agents/r will no longer be accepted (OriginNotGranted)"),
        "{text}"
    );
    let text = warning(scene.provide(None, &granting("q", json!({}))));
    assert!(
        text.starts_with("spec.origins: neither origins nor upstream.url are set"),
        "{text}"
    );
}

#[test]
fn an_object_whose_name_is_still_to_be_made_is_judged() {
    let scene = Scene::new([]);
    let mut new = object("agents", "", 0, sound(json!({})));
    new.metadata.name = None;
    assert_eq!(scene.create(&new), Judgement::default());
    new.metadata.generate_name = Some("r-".to_owned());
    new.spec.provider = None;
    let text = warning(scene.create(&new));
    assert!(text.contains("provider \"r-\""), "{text}");
}

/// What is left out of the compilation does not matter: the verdict is that of the whole cluster.
#[test]
fn a_route_is_judged_as_the_whole_cluster_would_judge_it() {
    let mut id = String::new();
    for seed in 0..200_u32 {
        let mut next = seed.wrapping_mul(2_654_435_761) | 1;
        let mut pick = |of: u32| {
            next ^= next << 13;
            next ^= next >> 17;
            next ^= next << 5;
            next % of
        };
        let mut routes: Vec<NexusRoute> = (0..12_u8)
            .map(|n| {
                id.clear();
                write!(id, "{:08x}-1111-4111-8111-111111111111", pick(6)).unwrap();
                let fields = json!({
                    "provider": format!("p{}", pick(3)),
                    "connections": [{"tenant": format!("t{}", pick(3)), "connectionId": id}],
                    "timeouts": {"idle": format!("{}s", 1 + pick(2))},
                });
                object(
                    &format!("ns-{}", pick(3)),
                    &format!("r{n}"),
                    n + 1,
                    sound(fields),
                )
            })
            .collect();
        let mut scene = Scene::new(routes.clone());
        scene.grants.inline_upstreams = InlineUpstreams::Allow;
        let place = usize::try_from(pick(12)).unwrap();
        let (old, mut new) = (routes[place].clone(), routes[place].clone());
        new.spec.connections[0].tenant = Some("t".to_owned());
        new.spec.connections[0].connection_id.clone_from(
            &routes[usize::try_from(pick(12)).unwrap()].spec.connections[0].connection_id,
        );
        new.spec.provider = Some(format!("p{}", pick(3)));
        let judged = warnings(scene.update(&old, &new));

        let grants = Grants::Cluster(scene.grants.clone());
        let before = compile(&routes, &scene.providers, &grants);
        routes[place] = new;
        let after = compile(&routes, &scene.providers, &grants);
        let verdict = verdicts(&after, Kind::Route).nth(place).unwrap();
        let not_accepted = judged.iter().find(|text| text.starts_with("will not be"));
        let expected = verdict
            .result
            .as_ref()
            .err()
            .map(|problem| format!("({}): {problem}", problem.reason));
        assert_eq!(
            not_accepted.is_some(),
            expected.is_some(),
            "seed {seed}: {judged:?}"
        );
        if let (Some(text), Some(expected)) = (not_accepted, expected) {
            assert!(
                text.contains(expected.get(..60).unwrap()),
                "seed {seed}: {text} {expected}"
            );
        }
        let lost = losses(&before, &after, routes.len())
            .into_iter()
            .filter(|(lost, _)| lost.name != verdict.name);
        let (own, foreign): (Vec<_>, Vec<_>) =
            lost.partition(|(lost, _)| lost.namespace == verdict.namespace);
        let told = judged
            .iter()
            .filter(|text| text.starts_with("NexusRoute "))
            .count();
        assert_eq!(told, own.len().min(3), "seed {seed}: {judged:?}");
        let others = judged
            .iter()
            .any(|text| text.contains("of other namespaces will"));
        assert_eq!(others, !foreign.is_empty(), "seed {seed}: {judged:?}");
    }
}
