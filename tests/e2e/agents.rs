//! An agent's requests arrive authenticated, and the credential is nowhere in its reach.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::lab::{self, arrived, lab};
use crate::team::{PROVIDER, Team, agent, container, on_node_of};
use crate::test;

/// The tests of this file.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test(
        "a_request_arrives_authenticated",
        a_request_arrives_authenticated,
    ));
    list.push(test(
        "the_credential_is_nowhere_in_an_agents_reach",
        the_credential_is_nowhere_in_an_agents_reach,
    ));
}

fn a_request_arrives_authenticated() {
    let team = Team::new("request");
    let id = team.route(PROVIDER, "");
    team.start(&agent("agent"));
    let reply = team.served("agent", "/via/upstream/v1/me");
    assert_eq!(reply.connection(), id);
    let by_header = team.call_with("agent", "/v1/me", &["X-Nexus-Provider: upstream"]);
    assert_eq!(by_header.connection(), id);
    // The upstream's own log says what came.
    assert!(arrived(&[&id, "/v1/me"]), "no request of it arrived");
    // Without the sidecar there is nothing to show.
    let alone = team.call("agent", &format!("{}/v1/me", lab::UPSTREAM));
    assert_eq!(alone.status, 401, "{alone:?}");
}

fn the_credential_is_nowhere_in_an_agents_reach() {
    let team = Team::with("scan", "baseline");
    let id = team.route(PROVIDER, "");
    let mut pod = agent("agent");
    let mut root = container(
        "root",
        "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
    );
    root["securityContext"] = json!({"runAsUser": 0, "runAsNonRoot": false});
    pod["spec"]["containers"].as_array_mut().unwrap().push(root);
    team.start(&pod);
    assert_eq!(team.served("agent", "/via/upstream/echo").status, 200);

    let scan = ["python3", "/tools/scan.py"];
    the_scan_finds_what_is_planted(&team, &scan);
    let masked = masked(lab().token(&id));
    for container in ["agent", "root"] {
        let said = team.exec_in("agent", container, &scan, &masked).ok();
        let seen: Value = serde_json::from_str(&said).unwrap();
        println!("as {container}: {seen}");
        assert_eq!(seen["found"], json!([]), "as {container}");
        assert_eq!(seen["tokens"], json!([]), "as {container}");
        assert!(seen["files"].as_u64() > Some(500), "as {container}: {seen}");
    }
    let control = positive_control(&team, &masked);
    println!("inside the sidecars: {control}");
    assert_ne!(
        control["found"],
        json!([]),
        "the scan finds nothing anywhere"
    );
    assert_ne!(
        control["tokens"],
        json!([]),
        "the scan finds no token anywhere"
    );

    let stored = team.object("pod", "agent");
    for container in stored["spec"]["containers"].as_array().unwrap() {
        let mounts = container["volumeMounts"].as_array().unwrap();
        let names: Vec<_> = mounts
            .iter()
            .map(|mount| mount["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["tools"]);
    }
    attack_the_process(&team);
}

/// What an agent has it finds: in an environment, a file and memory.
fn the_scan_finds_what_is_planted(team: &Team, scan: &[&str]) {
    let canary = format!("canary-{:016x}", fastrand::u64(..));
    let script = format!(
        "echo {canary} >/tmp/planted; PLANTED={canary} sleep 1000 >/dev/null 2>&1 </dev/null &"
    );
    team.exec("agent", &["sh", "-c", &script]).ok();
    let said = team.exec_in("agent", "agent", scan, &masked(&canary)).ok();
    let seen: Value = serde_json::from_str(&said).unwrap();
    let found = seen["found"].to_string();
    for place in ["/tmp/planted (raw)", "/environ (raw)", "/mem (raw)"] {
        assert!(found.contains(place), "{place} is not in {found}");
    }
    team.exec("agent", &["sh", "-c", "rm /tmp/planted"]).ok();
}

/// Kills and attaches to whatever is in sight, and to numbers that the sidecar could have.
fn attack_the_process(team: &Team) {
    let script = r#"
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
done = []
for pid in range(1, 4096):
    if pid in (1, os.getpid(), os.getppid()):
        continue
    try:
        name = os.readlink(f"/proc/{pid}/exe")
    except OSError as error:
        name = None
    if name and "nexus" in name:
        done.append(f"sees {pid} {name}")
    if libc.ptrace(16, pid, 0, 0) == 0 and name and "nexus" in name:
        done.append(f"attached to {pid}")
    if not name:
        try:
            os.kill(pid, 9)
            done.append(f"killed {pid}")
        except (ProcessLookupError, PermissionError):
            pass
print(json.dumps(done))
"#;
    let before = restarts(team);
    for container in ["agent", "root"] {
        let said = team
            .exec_in("agent", container, &["python3", "-"], script)
            .ok();
        assert_eq!(said.trim(), "[]", "as {container}");
    }
    assert_eq!(restarts(team), before);
    assert_eq!(team.call("agent", "/via/upstream/alive").status, 200);
}

fn restarts(team: &Team) -> u64 {
    let pod = team.object("pod", "agent");
    pod["status"]["initContainerStatuses"][0]["restartCount"]
        .as_u64()
        .unwrap()
}

/// The same scan of the sidecars' processes and files, from a pod that sees the node's processes.
fn positive_control(team: &Team, masked: &str) -> Value {
    let scan = ["python3", "/tools/scan.py", "--process", "nexus-sidecar"];
    let said = on_node_of(&team.object("pod", "agent"), &scan, masked);
    serde_json::from_str(&said).unwrap()
}

/// A secret as the scan takes it.
fn masked(secret: &str) -> String {
    let mask: Vec<u8> = secret.bytes().map(|_| fastrand::u8(..)).collect();
    let hex = |bytes: &[u8]| {
        let digit = |half: u8| char::from_digit(half.into(), 16).unwrap();
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        digits.map(digit).collect::<String>()
    };
    let masked: Vec<u8> = secret.bytes().zip(&mask).map(|(a, b)| a ^ b).collect();
    json!({"masked": hex(&masked), "mask": hex(&mask)}).to_string()
}
