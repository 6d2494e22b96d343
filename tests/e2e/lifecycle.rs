//! When sidecars start and end beside what runs in their pods.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::lab::{LIMIT, arrived, until};
use crate::team::{PROVIDER, Team, agent, container, on_node, on_node_of};
use crate::test;

/// One request, which has to be served.
const ONE_REQUEST: &str =
    "python3 /tools/call.py GET /via/upstream/job | tee /dev/stderr | grep -q '\"status\": 200'";

/// The tests of this file.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test("jobs_complete", jobs_complete));
    list.push(test(
        "nothing_starts_before_the_proxy",
        nothing_starts_before_the_proxy,
    ));
    list.push(test(
        "an_agent_that_shuts_down_can_still_call_out",
        an_agent_that_shuts_down_can_still_call_out,
    ));
    list.push(test(
        "a_killed_sidecar_comes_back",
        a_killed_sidecar_comes_back,
    ));
    list.push(test(
        "strict_namespaces_with_quotas_admit_injected_pods",
        strict_namespaces_with_quotas_admit_injected_pods,
    ));
}

/// A Job of one agent that runs a script.
pub(crate) fn job(name: &str, script: &str) -> Value {
    let mut pod = agent(name);
    let pod = pod.as_object_mut().unwrap();
    pod.remove("apiVersion");
    pod.remove("kind");
    pod["metadata"].as_object_mut().unwrap().remove("name");
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["containers"][0] = container("agent", script);
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": pod},
    })
}

fn jobs_complete() {
    let team = Team::new("jobs");
    team.route(PROVIDER, "");
    team.create(&job("plain", ONE_REQUEST)).ok();
    let mut policed = job("policed", ONE_REQUEST);
    policed["spec"]["podFailurePolicy"] = json!({"rules": [
        {"action": "FailJob", "onExitCodes": {"containerName": "agent", "operator": "In", "values": [42]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
    ]});
    team.create(&policed).ok();
    let mut fails = job("fails", "exit 42");
    fails["spec"]["backoffLimit"] = 6.into();
    fails["spec"]["podFailurePolicy"] = policed["spec"]["podFailurePolicy"].clone();
    team.create(&fails).ok();
    for name in ["plain", "policed"] {
        completed(&team, name);
        let pod = pod_of(&team, name);
        assert_eq!(pod["status"]["phase"], "Succeeded");
        let sidecar = &pod["status"]["initContainerStatuses"][0];
        assert_eq!(sidecar["state"]["terminated"]["exitCode"], 0, "{sidecar}");
    }
    until("the policy fails the job", || {
        let status = team.object("job", "fails")["status"].take();
        let failed = status["conditions"].as_array().into_iter().flatten();
        let reasons: Vec<_> = failed
            .map(|condition| condition["reason"].clone())
            .collect();
        if reasons.contains(&json!("PodFailurePolicy")) {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    assert_eq!(team.object("job", "fails")["status"]["failed"], 1);
}

/// Waits for a Job's end, which must be a good one.
pub(crate) fn completed(team: &Team, name: &str) {
    let timeout = format!("--timeout={}s", LIMIT.as_secs());
    let job = format!("job/{name}");
    let answer = team.kubectl(&["wait", "--for=condition=Complete", &timeout, &job]);
    let log = || team.kubectl(&["logs", &job, "--all-containers"]).stdout;
    assert!(
        answer.success,
        "{}\n{}\n{}",
        answer.stderr,
        log(),
        team.object("job", name)["status"]
    );
}

fn pod_of(team: &Team, job: &str) -> Value {
    let selector = format!("--selector=job-name={job}");
    let list = team
        .kubectl(&["get", "pods", &selector, "--output=json"])
        .ok();
    let mut list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    list["items"][0].take()
}

fn nothing_starts_before_the_proxy() {
    let team = Team::new("order");
    team.route(PROVIDER, "");
    // The first thing that each of them does is a request, and none gets a second chance.
    let ordered = |name: &str| {
        let mut pod = agent(name);
        pod["spec"]["restartPolicy"] = "Never".into();
        pod["spec"]["initContainers"] = json!([container("first", ONE_REQUEST)]);
        pod["spec"]["containers"] = json!([
            container("agent", ONE_REQUEST),
            container("other", ONE_REQUEST)
        ]);
        pod
    };
    // The sidecar of one runs but does not serve, for as long as others take from their start to their end.
    let freezer = Freezer::of("held");
    let mut held = ordered("held");
    held["spec"]["nodeName"] = freezer.node();
    team.create(&held).ok();
    let frozen = freezer.frozen();
    let names = ["first", "second", "third"];
    for name in names {
        team.create(&ordered(name)).ok();
    }
    for name in names {
        in_order(&succeeded(&team, name));
    }
    let pod = team.object("pod", "held");
    let sidecar = &pod["status"]["initContainerStatuses"][0];
    assert!(sidecar["state"]["running"].is_object(), "{sidecar}");
    assert_eq!(sidecar["restartCount"], 0);
    let statuses = ["initContainerStatuses", "containerStatuses"].map(|name| &pod["status"][name]);
    let others = statuses
        .into_iter()
        .flat_map(|list| list.as_array().unwrap());
    for other in others.filter(|status| status["name"] != "nexus-sidecar") {
        assert!(other["state"]["waiting"].is_object(), "{other}");
    }
    freezer.thaw(&frozen);
    in_order(&succeeded(&team, "held"));
}

/// A pod once it ended, which must be well.
fn succeeded(team: &Team, name: &str) -> Value {
    let pod = until("the pod ends", || {
        let pod = team.object("pod", name);
        match pod["status"]["phase"].as_str() {
            Some("Succeeded" | "Failed") => Ok(pod),
            _ => Err(pod["status"].to_string()),
        }
    });
    let logs = team.kubectl(&["logs", name, "--all-containers"]).stdout;
    let status = &pod["status"];
    assert_eq!(status["phase"], "Succeeded", "{logs}\n{status}");
    pod
}

/// Fails unless the sidecar of a pod that ended was the first to start.
fn in_order(pod: &Value) {
    let started = |status: &Value| {
        let state = &status["state"]["terminated"]["startedAt"];
        state
            .as_str()
            .unwrap_or_else(|| panic!("{status}"))
            .to_owned()
    };
    let init = pod["status"]["initContainerStatuses"].as_array().unwrap();
    assert_eq!(init[0]["name"], "nexus-sidecar");
    assert!(started(&init[0]) <= started(&init[1]));
}

/// Freezes the sidecar of a pod as soon as its process is there, from a pod that sees the node's processes.
struct Freezer(Team);

impl Freezer {
    /// Returns once it watches for a pod of this name.
    fn of(pod: &str) -> Self {
        let script = r#"
import os, signal, sys, time
print("watching", flush=True)
while True:
    time.sleep(0.002)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline").read().split("\0")
            if words[:2] == ["/nexus-sidecar", "run"] and f"HOSTNAME={sys.argv[1]}" in open(f"/proc/{pid}/environ").read().split("\0"):
                os.kill(int(pid), signal.SIGSTOP)
                print("frozen", pid, flush=True)
                time.sleep(10000)
        except OSError:
            pass
"#;
        let team = Team::with("freezer", "privileged");
        let mut watch = on_node("freezer");
        watch["spec"]["containers"][0]["command"] = json!(["python3", "-c", script, pod]);
        team.start(&watch);
        let freezer = Self(team);
        freezer.says("watching");
        freezer
    }

    /// What follows a word in a line that it prints.
    fn says(&self, word: &str) -> String {
        until(word, || {
            let log = self.0.kubectl(&["logs", "freezer"]).ok();
            let said = log.lines().find_map(|line| line.strip_prefix(word));
            said.map(|said| said.trim().to_owned()).ok_or(log)
        })
    }

    /// The process, once it does not run any more.
    fn frozen(&self) -> String {
        self.says("frozen")
    }

    /// The node's name.
    fn node(&self) -> Value {
        self.0.object("pod", "freezer")["spec"]["nodeName"].take()
    }

    fn thaw(&self, process: &str) {
        let command = format!("kill -CONT {process}");
        let command = ["sh", "-c", &command];
        self.0.exec_in("freezer", "agent", &command, "").ok();
    }
}

fn an_agent_that_shuts_down_can_still_call_out() {
    let team = Team::new("shutdown");
    let id = team.route(PROVIDER, "");
    let mut pod = agent("agent");
    let script = "trap 'sleep 2; python3 /tools/call.py GET /via/upstream/bye; exit 0' TERM; while :; do sleep 1000 & wait; done";
    pod["spec"]["containers"][0] = container("agent", script);
    pod["spec"]["terminationGracePeriodSeconds"] = 30.into();
    team.start(&pod);
    team.served("agent", "/via/upstream/hello");
    team.kubectl(&["delete", "pod", "agent", "--wait=true"])
        .ok();
    assert!(arrived(&[&id, "/bye"]), "no goodbye arrived");
}

fn a_killed_sidecar_comes_back() {
    let team = Team::new("crash");
    team.route(PROVIDER, "");
    team.start(&agent("agent"));
    team.served("agent", "/via/upstream/before");
    kill_sidecar(&team.object("pod", "agent"));
    // Kubelet may say that it was started again before it says how it ended.
    let code = until("the sidecar is started again", || {
        let pod = team.object("pod", "agent");
        let status = &pod["status"]["initContainerStatuses"][0];
        let code = status["lastState"]["terminated"]["exitCode"].as_i64();
        code.filter(|_| status["restartCount"] == 1)
            .ok_or_else(|| status.to_string())
    });
    assert_eq!(code, 137);
    team.served("agent", "/via/upstream/after");
    let agent = &team.object("pod", "agent")["status"]["containerStatuses"][0];
    assert_eq!(agent["restartCount"], 0, "the agent went on");
}

/// Kills the sidecar's process of a pod, from one that sees the node's processes.
pub(crate) fn kill_sidecar(pod: &Value) {
    let script = r#"
import os, sys
wanted = [sys.argv[1], sys.argv[1].replace("-", "_")]
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if os.path.basename(os.readlink(f"/proc/{pid}/exe")) != "nexus-sidecar":
            continue
        groups = open(f"/proc/{pid}/cgroup").read()
    except OSError:
        continue
    if any(name in groups for name in wanted):
        os.kill(int(pid), 9)
        print("killed")
"#;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let said = on_node_of(pod, &["python3", "-", uid], script);
    assert_eq!(said.trim(), "killed");
}

fn strict_namespaces_with_quotas_admit_injected_pods() {
    let team = Team::new("quota");
    let id = team.route(PROVIDER, "");
    team.create(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": "quota"},
        "spec": {"hard": {"limits.cpu": "4", "limits.memory": "4Gi"}},
    }))
    .ok();
    // Whoever has a quota limits every container, with or without requests of the same size.
    for (name, resources) in [
        (
            "burstable",
            json!({"limits": {"cpu": "1", "memory": "256Mi"}, "requests": {"cpu": "10m", "memory": "32Mi"}}),
        ),
        (
            "guaranteed",
            json!({"limits": {"cpu": "100m", "memory": "128Mi"}}),
        ),
    ] {
        let mut pod = agent(name);
        pod["spec"]["containers"][0]["resources"] = resources;
        until("the quota is known", || {
            let answer = team.create(&pod);
            // The quota's controller counts first.
            if answer.success {
                Ok(())
            } else {
                Err(answer.stderr)
            }
        });
        team.ready(name);
        assert_eq!(team.served(name, "/via/upstream/quota").connection(), id);
        let quality = team.object("pod", name)["status"]["qosClass"]
            .as_str()
            .unwrap()
            .to_lowercase();
        assert_eq!(quality, name);
    }
    let used = team.object("resourcequota", "quota")["status"]["used"].clone();
    assert_eq!(used["limits.cpu"], "1700m", "{used}");
    let without = team.create(&agent("unlimited"));
    assert!(
        without.refused().contains("limits.cpu"),
        "the quota is not enforced"
    );
}
