//! What the sidecar requests and is limited to.

use super::*;

fn resources(pod: &Value, flags: &[&str]) -> Value {
    sidecar(pod, flags)["resources"].take()
}

fn expected(cpu: [Option<&str>; 2], memory: [Option<&str>; 2]) -> Value {
    let mut all = json!({});
    for (position, part) in ["requests", "limits"].into_iter().enumerate() {
        for (name, amounts) in [("cpu", cpu), ("memory", memory)] {
            if let Some(amount) = amounts[position] {
                all[part][name] = amount.into();
            }
        }
    }
    all
}

#[test]
fn memory_is_limited_and_cpu_only_when_asked() {
    let plain = pod(json!({}));
    let usual = [Some("32Mi"), Some("256Mi")];
    assert_eq!(resources(&plain, &[]), expected([Some("10m"), None], usual));
    assert_eq!(
        resources(&plain, &["--sidecar-cpu-limit=1"]),
        expected([Some("10m"), Some("1")], usual)
    );
    let asks = annotated(plain, [("nexus.io/sidecar-cpu-limit", "500m")]);
    assert_eq!(
        resources(&asks, &[]),
        expected([Some("10m"), Some("500m")], usual)
    );
}

#[test]
fn what_a_pod_asks_for_bends_what_is_usual() {
    let cpu = [Some("10m"), None];
    for (annotation, memory) in [
        (
            ("nexus.io/sidecar-memory-request", "64Mi"),
            ["64Mi", "256Mi"],
        ),
        (("nexus.io/sidecar-memory-request", "1Gi"), ["1Gi", "1Gi"]),
        (("nexus.io/sidecar-memory-limit", "1Gi"), ["32Mi", "1Gi"]),
        (("nexus.io/sidecar-memory-limit", "16Mi"), ["16Mi", "16Mi"]),
    ] {
        let pod = annotated(pod(json!({})), [annotation]);
        assert_eq!(
            resources(&pod, &[]),
            expected(cpu, memory.map(Some)),
            "{annotation:?}"
        );
    }
}

fn fixed(cpu: &str) -> Value {
    json!({"limits": {"cpu": cpu, "memory": "1Gi"}, "requests": {"cpu": cpu, "memory": "1024Mi"}})
}

#[test]
fn a_guaranteed_pod_stays_guaranteed() {
    let memory = [Some("256Mi"); 2];
    let pod_of = |first: Value, agent: Value| {
        pod(json!({
            "initContainers": [{"name": "first", "resources": first}],
            "containers": [{"name": "agent", "resources": agent}],
        }))
    };
    let guaranteed = pod_of(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), fixed("1"));
    let raised = expected([Some("100m"); 2], memory);
    assert_eq!(resources(&guaranteed, &[]), raised);
    let flags = ["--sidecar-cpu-request=200m"];
    assert_eq!(
        resources(&guaranteed, &flags),
        expected([Some("200m"); 2], memory)
    );
    for (annotation, cpu) in [
        (("nexus.io/sidecar-cpu-request", "20m"), "20m"),
        (("nexus.io/sidecar-cpu-limit", "2"), "2"),
    ] {
        let pod = annotated(guaranteed.clone(), [annotation]);
        assert_eq!(resources(&pod, &[]), expected([Some(cpu); 2], memory));
    }
    let less = annotated(guaranteed, [("nexus.io/sidecar-memory-limit", "64Mi")]);
    assert_eq!(
        resources(&less, &[]),
        expected([Some("100m"); 2], [Some("64Mi"); 2])
    );

    let burstable = |limit| expected([Some("10m"), limit], [Some("32Mi"), Some("256Mi")]);
    for (not, limit) in [
        (json!({}), None),
        (json!({"limits": {"cpu": "1"}}), Some("500m")),
        (json!({"requests": {"cpu": "1", "memory": "1Gi"}}), None),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
            Some("500m"),
        ),
        (json!({"limits": {"cpu": "0", "memory": "1Gi"}}), None),
    ] {
        let usual = burstable(limit);
        assert_eq!(
            resources(&pod_of(fixed("1"), not.clone()), &[]),
            usual,
            "{not}"
        );
        assert_eq!(
            resources(&pod_of(not.clone(), fixed("1")), &[]),
            usual,
            "{not}"
        );
    }
}

#[test]
fn among_limited_containers_the_sidecar_is_limited_too() {
    let limited = |first: &str, second: &str| {
        let limit = |name, cpu| json!({"name": name, "resources": {"limits": {"cpu": cpu}}});
        pod(json!({"containers": [limit("agent", first), limit("other", second)]}))
    };
    let with = |limit| expected([Some("10m"), Some(limit)], [Some("32Mi"), Some("256Mi")]);
    assert_eq!(resources(&limited("2", "100m"), &[]), with("500m"));
    // Whatever maximum a LimitRange has, one of the others is within it.
    assert_eq!(resources(&limited("50m", "200m"), &[]), with("200m"));
    assert_eq!(resources(&limited("5m", "1m"), &[]), with("10m"));
    assert_eq!(
        resources(&limited("2", "2"), &["--sidecar-cpu-limit=1"]),
        with("1")
    );
}

#[test]
fn a_budget_of_the_whole_pod_is_the_sidecars_too() {
    let cpu_only = pod(json!({"resources": {"limits": {"cpu": "1"}}}));
    assert_eq!(
        resources(&cpu_only, &[]),
        expected([None, None], [Some("32Mi"), Some("256Mi")])
    );
    let both = pod(json!({"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}));
    assert_eq!(resources(&both, &[]), json!({}));
    let asks = annotated(both, [("nexus.io/sidecar-memory-limit", "64Mi")]);
    assert_eq!(
        resources(&asks, &[]),
        expected([None, None], [Some("32Mi"), Some("64Mi")])
    );
}

#[test]
fn what_the_limit_ranger_has_set_stays() {
    let sidecar = json!({
        "name": "nexus-sidecar",
        "resources": {
            "limits": {"cpu": "500m", "memory": "1Ti", "ephemeral-storage": "1Gi", "example.com/gpu": "1"},
            "requests": {"cpu": "400m", "ephemeral-storage": "1Mi"},
        },
    });
    let pod = pod(json!({"initContainers": [sidecar]}));
    let usual = expected([Some("10m"), None], [Some("32Mi"), Some("256Mi")]);
    for said in [
        "",
        "LimitRanger plugin set: cpu limit for init container other",
        "LimitRanger plugin set: cpu limit for container nexus-sidecar",
        "LimitRanger plugin set: memory, example.com/gpu limit for init container nexus-sidecar",
    ] {
        let pod = annotated(pod.clone(), [("kubernetes.io/limit-ranger", said)]);
        assert_eq!(resources(&pod, &[]), usual, "{said}");
    }
    let said = "LimitRanger plugin set: cpu request for container a; ephemeral-storage request for init container nexus-sidecar; \
                cpu, ephemeral-storage limit for init container nexus-sidecar";
    let kept = annotated(pod, [("kubernetes.io/limit-ranger", said)]);
    assert_eq!(
        resources(&kept, &[]),
        json!({
            "requests": {"cpu": "10m", "memory": "32Mi", "ephemeral-storage": "1Mi"},
            "limits": {"cpu": "500m", "memory": "256Mi", "ephemeral-storage": "1Gi"},
        })
    );
}
