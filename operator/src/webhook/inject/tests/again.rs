//! However often a pod comes by, and whatever it claims to be, it ends as one that came once and claimed nothing.

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 9] = [
    "A",
    "NEXUS_SIDECAR_URL",
    "OPENAI_BASE_URL",
    "OPENAI_API_KEY",
    "HTTP_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "B",
];
const VALUES: [&str; 11] = [
    "",
    "x",
    "*",
    "a.example,127.0.0.1",
    "127.0.0.1,localhost",
    "nexus-placeholder",
    "http://127.0.0.1:8080",
    "http://localhost:9",
    "http://127.0.0.1:8080/via/openai/v1",
    "http://127.0.0.1:8080/via/other",
    "http://127.0.0.1:99999",
];

fn variable() -> impl Strategy<Value = Value> {
    let value = prop::sample::select(&VALUES[..]).prop_map(|value| json!({"value": value}));
    let source = Just(json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}));
    let rest = prop_oneof![4 => value, 1 => source, 1 => Just(json!({}))];
    (prop::sample::select(&NAMES[..]), rest).prop_map(|(name, mut variable)| {
        variable["name"] = name.into();
        variable
    })
}

fn container() -> impl Strategy<Value = Value> {
    let env = prop::option::of(prop::collection::vec(variable(), 0..6));
    let resources = prop::sample::select(vec![
        json!({}),
        json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
        json!({"requests": {"cpu": "1"}}),
    ]);
    ("[a-z]{1,3}", env, resources).prop_map(|(name, env, resources)| {
        let mut container =
            json!({"name": name, "image": "x", "later": {"a": 1}, "resources": resources});
        if let Some(env) = env {
            container["env"] = env.into();
        }
        container
    })
}

fn volume() -> impl Strategy<Value = Value> {
    "[a-z]{1,3}".prop_map(|name| json!({"name": name, "emptyDir": {}, "later": [1]}))
}

/// A pod that may have a sidecar.
fn any_pod() -> impl Strategy<Value = Value> {
    let annotations = prop::collection::btree_map(
        prop::sample::select(vec![
            "nexus.io/base-url-env",
            "nexus.io/placeholder-env",
            "nexus.io/sidecar-port",
        ]),
        Just(()),
        0..4,
    );
    (
        prop::option::of(prop::collection::vec(container(), 0..4)),
        prop::collection::vec(container(), 1..4),
        prop::option::of(prop::collection::vec(volume(), 0..4)),
        prop::option::of(prop::collection::btree_map(
            "[a-z]{1,3}",
            "[a-z]{0,3}",
            0..3,
        )),
        annotations,
    )
        .prop_map(|(init, containers, volumes, labels, wished)| {
            let mut pod = pod(json!({"containers": containers}));
            for (key, value) in [("initContainers", json!(init)), ("volumes", json!(volumes))] {
                if !value.is_null() {
                    pod["spec"][key] = value;
                }
            }
            pod["metadata"].as_object_mut().unwrap().remove("labels");
            if let Some(labels) = labels {
                pod["metadata"]["labels"] = json!(labels);
            }
            for name in wished.into_keys() {
                let value = match name {
                    "nexus.io/base-url-env" => "OPENAI_BASE_URL=openai/v1",
                    "nexus.io/placeholder-env" => "OPENAI_API_KEY",
                    _ => "8888",
                };
                pod = annotated(pod, [(name, value)]);
            }
            pod
        })
}

/// What a pod may pretend to have had from us.
fn forgeries() -> impl Strategy<Value = Vec<(&'static str, usize, Value)>> {
    let sidecar = json!({
        "name": "nexus-sidecar", "image": "evil", "command": ["sh"], "securityContext": {"privileged": true},
        "volumeMounts": [{"name": "nexus-sidecar-auth", "mountPath": "/stolen"}],
        "resources": {"limits": {"cpu": "1", "memory": "1"}},
        "env": [{"name": "NEXUS_ADMITTED", "value": "{}"}],
        "ports": [{"containerPort": 8080}],
    });
    let volume = json!({"name": "nexus-sidecar-auth", "hostPath": {"path": "/"}});
    let forgery = prop::sample::select(vec![
        ("initContainers", sidecar.clone()),
        ("containers", sidecar),
        ("volumes", volume.clone()),
        (
            "volumes",
            json!({"name": "nexus-sidecar-old", "emptyDir": {}}),
        ),
    ]);
    prop::collection::vec(
        (forgery, 0..5_usize).prop_map(|((list, element), at)| (list, at, element)),
        0..4,
    )
}

fn insert(pod: &mut Value, list: &str, at: usize, element: Value) {
    let field = &mut pod["spec"][list];
    if field.is_null() {
        *field = json!([]);
    }
    let list = field.as_array_mut().unwrap();
    list.insert(at.min(list.len()), element);
}

fn inject_into(pod: &Value) -> Value {
    injected(pod, &config(&["--sidecar-auth=token"])).0
}

/// Lists that are empty and lists that are absent are the same to the API server.
fn normal(mut pod: Value) -> Value {
    for key in ["initContainers", "volumes"] {
        if pod["spec"][key].as_array().is_some_and(Vec::is_empty) {
            pod["spec"].as_object_mut().unwrap().remove(key);
        }
    }
    pod
}

proptest! {
    #[test]
    fn twice_is_once(pod in any_pod()) {
        let once = inject_into(&pod);
        prop_assert_eq!(inject_into(&once), once);
    }

    #[test]
    fn what_was_forged_leaves_no_trace(pod in any_pod(), forgeries in forgeries(), admitted in ".{0,9}") {
        let mut forged = pod.clone();
        for (list, at, element) in forgeries {
            insert(&mut forged, list, at, element);
        }
        forged["metadata"]["annotations"]["nexus.io/admitted"] = admitted.into();
        if let Some(labels) = forged["metadata"]["labels"].as_object_mut() {
            labels.insert("nexus.io/sidecar".to_owned(), "forged".into());
        }
        prop_assert_eq!(inject_into(&forged), inject_into(&pod));
    }

    #[test]
    fn a_container_that_is_added_meanwhile_has_its_environment(
        pod in any_pod(), added in container(), first in any::<bool>(), at in 0..4_usize,
    ) {
        let list = if first { "initContainers" } else { "containers" };
        let mut meanwhile = inject_into(&pod);
        insert(&mut meanwhile, list, at, added.clone());
        let mut before = pod;
        // Where it stands among those that were there: ours, which is the first, does not count.
        insert(&mut before, list, if first { at.saturating_sub(1) } else { at }, added);
        prop_assert_eq!(inject_into(&meanwhile), inject_into(&before));
    }

    #[test]
    fn what_is_not_ours_stays(pod in any_pod()) {
        let after = inject_into(&pod);
        let mut without = normal(after);
        let spec = without["spec"].as_object_mut().unwrap();
        for key in ["initContainers", "volumes"] {
            let list = spec[key].as_array_mut().unwrap();
            list.retain(|element| !element["name"].as_str().unwrap().starts_with("nexus-sidecar"));
        }
        let mut expected = normal(pod);
        let (mut without, mut expected) = (normal(without)["spec"].take(), expected["spec"].take());
        for list in ["initContainers", "containers"] {
            for spec in [&mut without, &mut expected] {
                for container in spec[list].as_array_mut().into_iter().flatten() {
                    container.as_object_mut().unwrap().remove("env");
                }
            }
        }
        prop_assert_eq!(without, expected);
    }
}
