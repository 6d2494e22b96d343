//! What the agent's containers find in their environment.

use super::*;

/// The variables after the patch of a container that has these.
fn variables(env: &Value, annotations: [(&str, &str); 2]) -> Vec<(String, String)> {
    let pod = annotated(agent(json!({"env": env})), annotations);
    let after = after(&annotated(pod, [("nexus.io/tenants", "tenant_123")]), &[]);
    let env = after["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap()
        .clone();
    env.iter()
        .map(|variable| {
            let text = |key: &str| variable[key].as_str().unwrap_or_default().to_owned();
            (text("name"), text("value"))
        })
        .collect()
}

const NOTHING: [(&str, &str); 2] = [
    ("nexus.io/base-url-env", ""),
    ("nexus.io/placeholder-env", ""),
];
const BOTH: [(&str, &str); 2] = [
    (
        "nexus.io/base-url-env",
        "OPENAI_BASE_URL=openai/v1, GITHUB_API_URL=github@tenant_123",
    ),
    (
        "nexus.io/placeholder-env",
        "OPENAI_API_KEY,AWS_ACCESS_KEY_ID,OPENAI_API_KEY",
    ),
];
const ADDED: [(&str, &str); 5] = [
    ("NEXUS_SIDECAR_URL", "http://127.0.0.1:8080"),
    ("OPENAI_BASE_URL", "http://127.0.0.1:8080/via/openai/v1"),
    (
        "GITHUB_API_URL",
        "http://127.0.0.1:8080/via/github@tenant_123",
    ),
    ("OPENAI_API_KEY", "nexus-placeholder"),
    ("AWS_ACCESS_KEY_ID", "nexus-placeholder"),
];

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(pair).collect()
}

#[test]
fn base_urls_and_placeholders_are_set() {
    assert_eq!(variables(&json!([]), BOTH), owned(&ADDED));
}

#[test]
fn what_the_container_sets_itself_wins() {
    let own = json!([
        {"name": "OPENAI_API_KEY", "value": "mine"},
        {"name": "GITHUB_API_URL", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"name": "NEXUS_SIDECAR_URL", "value": "https://elsewhere.example"},
    ]);
    let expected = [
        ADDED[1],
        ADDED[4],
        ("OPENAI_API_KEY", "mine"),
        ("GITHUB_API_URL", ""),
        ("NEXUS_SIDECAR_URL", "https://elsewhere.example"),
    ];
    assert_eq!(variables(&own, BOTH), owned(&expected));
}

#[test]
fn what_an_earlier_admission_set_is_made_anew() {
    let earlier = json!([
        {"name": "A", "value": "nexus-placeholder"},
        {"name": "NEXUS_SIDECAR_URL", "value": "http://localhost:1234"},
        {"name": "OPENAI_API_KEY", "value": "nexus-placeholder"},
        {"name": "OPENAI_BASE_URL", "value": "http://127.0.0.1:1234/via/other"},
        {"name": "B", "value": "http://127.0.0.1:8080/via/github"},
    ]);
    let own = [
        ("A", "nexus-placeholder"),
        ("B", "http://127.0.0.1:8080/via/github"),
    ];
    let expected: Vec<_> = ADDED.into_iter().chain(own).collect();
    assert_eq!(variables(&earlier, BOTH), owned(&expected));
}

#[test]
fn a_repeated_admission_changes_no_variable() {
    let pod = annotated(
        agent(json!({"env": [{"name": "http_proxy", "value": "http://p"}]})),
        BOTH,
    );
    let pod = annotated(pod, [("nexus.io/tenants", "tenant_123")]);
    let once = after(&pod, &[]);
    let Decision::Injected { patch, .. } = decide_in(&once, &namespace(None), &config(&[])) else {
        panic!("refused");
    };
    assert!(!json!(patch).to_string().contains("/env"), "{patch}");
}

#[test]
fn no_proxy_stands_before_the_sidecar() {
    let proxy = json!({"name": "Https_Proxy", "value": "http://proxy.example"});
    let direct = "127.0.0.1,localhost";
    for (own, expected) in [
        (vec![], vec![]),
        (
            vec![proxy.clone()],
            vec![
                ("NO_PROXY", direct),
                ("no_proxy", direct),
                ("Https_Proxy", "http://proxy.example"),
            ],
        ),
        (
            vec![
                proxy.clone(),
                json!({"name": "no_proxy", "value": "a.example, localhost"}),
            ],
            vec![
                ("Https_Proxy", "http://proxy.example"),
                ("no_proxy", "a.example, localhost,127.0.0.1"),
            ],
        ),
        (
            vec![json!({"name": "NO_PROXY"}), proxy.clone()],
            vec![
                ("NO_PROXY", direct),
                ("Https_Proxy", "http://proxy.example"),
            ],
        ),
        (
            vec![proxy.clone(), json!({"name": "NO_PROXY", "value": "*"})],
            vec![("Https_Proxy", "http://proxy.example"), ("NO_PROXY", "*")],
        ),
        (
            vec![json!({"name": "NO_PROXY", "value": "a.example"})],
            vec![("NO_PROXY", "a.example")],
        ),
        (
            vec![json!({"name": "ALL_PROXY", "valueFrom": {}})],
            vec![
                ("NO_PROXY", direct),
                ("no_proxy", direct),
                ("ALL_PROXY", ""),
            ],
        ),
    ] {
        let expected: Vec<_> = ADDED[..1].iter().copied().chain(expected).collect();
        assert_eq!(variables(&json!(own), NOTHING), owned(&expected));
    }
}

#[test]
fn every_container_of_the_agent_is_told() {
    let pod = pod(json!({
        "initContainers": [{"name": "first"}, {"name": "mesh", "restartPolicy": "Always"}],
        "containers": [{"name": "one"}, {"name": "two"}],
    }));
    let spec = after(&pod, &[])["spec"].take();
    let url = json!([{"name": "NEXUS_SIDECAR_URL", "value": "http://127.0.0.1:8080"}]);
    for (list, position) in [
        ("initContainers", 1),
        ("initContainers", 2),
        ("containers", 0),
        ("containers", 1),
    ] {
        assert_eq!(spec[list][position]["env"], url, "{list} {position}");
    }
    assert!(
        !spec["initContainers"][0]["env"]
            .to_string()
            .contains("NEXUS_SIDECAR_URL")
    );
}
