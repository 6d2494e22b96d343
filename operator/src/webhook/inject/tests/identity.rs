//! What is decided about a pod: its tenants, labels and service account.

use nexus_crds::admitted::Admitted;

use super::*;

fn admitted_in(pod: &Value, limit: Option<&str>) -> Admitted {
    let Decision::Injected { patch, .. } = decide_in(pod, &namespace(limit), &config(&[])) else {
        panic!("refused");
    };
    let mut after = pod.clone();
    json_patch::patch(&mut after, &patch).unwrap();
    assert_eq!(after["metadata"]["labels"]["nexus.io/sidecar"], "true");
    let json = after["metadata"]["annotations"]["nexus.io/admitted"]
        .as_str()
        .unwrap();
    Admitted::parse(json).unwrap()
}

fn with_tenants(tenants: &str) -> Value {
    annotated(pod(json!({})), [("nexus.io/tenants", tenants)])
}

#[test]
fn tenants_are_those_of_the_pod_within_those_of_its_namespace() {
    for (tenants, limit, expected) in [
        ("a,b", None, &["a", "b"][..]),
        (" b , a,,a", Some("a, b ,c"), &["a", "b"]),
        ("", None, &[]),
        ("", Some("a"), &[]),
        ("a", Some("*,a"), &["a"]),
    ] {
        let admitted = admitted_in(&with_tenants(tenants), limit);
        assert!(
            admitted.tenants.iter().eq(expected),
            "{tenants:?} {limit:?}"
        );
    }
    assert!(admitted_in(&pod(json!({})), None).tenants.is_empty());
    assert!(admitted_in(&pod(json!({})), Some("a")).tenants.is_empty());
}

#[test]
fn a_tenant_outside_the_namespaces_list_is_refused() {
    for (tenants, limit, named) in [
        ("a,b", "a", "\"b\""),
        ("a", "", "\"a\""),
        ("a", "*", "\"a\""),
        ("A", "a", "\"A\""),
    ] {
        let decision = decide_in(
            &with_tenants(tenants),
            &namespace(Some(limit)),
            &config(&[]),
        );
        let Decision::Refused { message } = decision else {
            panic!("{tenants} {limit}");
        };
        assert!(
            message.contains(named)
                && message.contains("annotation nexus.io/tenants of the Namespace agents"),
            "{message}"
        );
    }
}

#[test]
fn what_is_no_tenant_name_is_refused() {
    for tenants in ["*", "a,*", "a b", "\u{e9}", &"a".repeat(129)] {
        let message = refusal(&with_tenants(tenants), &[]);
        assert!(
            message.contains("annotation nexus.io/tenants: ")
                && message.contains("is not a tenant name"),
            "{message}"
        );
    }
}

#[test]
fn what_the_pod_says_was_decided_is_not_believed() {
    let mut forged = annotated(
        with_tenants("a"),
        [(
            "nexus.io/admitted",
            r#"{"version":1,"tenants":["bank"],"serviceAccount":"root"}"#,
        )],
    );
    forged["metadata"]["labels"] = json!({"app": "x", "nexus.io/sidecar": "yes"});
    let admitted = admitted_in(&forged, None);
    assert!(admitted.tenants.iter().eq(["a"]));
    assert!(
        admitted
            .labels
            .iter()
            .eq([(&"app".to_owned(), &"x".to_owned())])
    );
    assert_eq!(admitted.service_account, "research");
}

#[test]
fn a_pod_runs_as_somebody() {
    for (fields, expected) in [
        (
            json!({"serviceAccountName": "a", "serviceAccount": "b"}),
            "a",
        ),
        (
            json!({"serviceAccountName": "", "serviceAccount": "b"}),
            "b",
        ),
        (json!({"serviceAccountName": null}), "default"),
    ] {
        assert_eq!(admitted_in(&pod(fields), None).service_account, expected);
    }
}

#[test]
fn the_version_that_injects_is_told() {
    let admitted = admitted_in(&pod(json!({})), None);
    assert_eq!(admitted.sidecar_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(admitted.table_format, nexus_crds::table::FORMAT);
}

#[test]
fn more_than_a_sidecar_can_be_told_is_refused() {
    let tenants = |count: usize| {
        let names: Vec<_> = (0..count).map(|n| format!("tenant-{n:08}")).collect();
        with_tenants(&names.join(","))
    };
    assert_eq!(admitted_in(&tenants(6_000), None).tenants.len(), 6_000);
    let message = refusal(&tenants(7_000), &[]);
    assert!(
        message.contains("annotation nexus.io/tenants: with the pod's labels it makes"),
        "{message}"
    );
}
