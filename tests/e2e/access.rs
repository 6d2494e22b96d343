//! What sidecars show to the control plane: the pod's own token, or a key or a certificate from a Secret of the namespace.

use libtest_mimic::Trial;
use nexus_tests::apiserver::Answer;
use nexus_tests::tls::Authority;
use serde_json::{Value, json};

use crate::lab::{
    self, BROKER, KEY_SECRET, KEYED, apply, kubectl, kubectl_command, lab, log_of, upgrade, values,
};
use crate::team::{PROVIDER, Reply, Team, agent};
use crate::test;

/// The tests of this file that may run beside others.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test(
        "a_sidecar_shows_a_token_of_its_pod_for_the_gateway_alone",
        a_sidecar_shows_a_token_of_its_pod_for_the_gateway_alone,
    ));
}

/// Those that must run alone.
pub(crate) fn tests_alone(list: &mut Vec<Trial>) {
    list.push(test(
        "a_secret_of_the_namespace_opens_the_control_plane",
        a_secret_of_the_namespace_opens_the_control_plane,
    ));
}

fn a_sidecar_shows_a_token_of_its_pod_for_the_gateway_alone() {
    let team = Team::new("token");
    let id = team.route(PROVIDER, "");
    team.start(&agent("agent"));
    team.served("agent", "/via/upstream/token");
    let log = log_of("gateway");
    let call = log
        .lines()
        .rfind(|line| line.contains(&id))
        .expect("the gateway was asked");
    let call: Value = serde_json::from_str(call).unwrap();
    let shown = call["authorization"]
        .as_str()
        .expect("the sidecar shows a token");
    let token = shown.strip_prefix("Bearer ").unwrap();

    let status = review(token, "nexus-gateway");
    assert_eq!(status["authenticated"], true, "{status}");
    let account = format!("system:serviceaccount:{}:default", team.namespace);
    assert_eq!(status["user"]["username"], account);
    let extra = &status["user"]["extra"];
    let uid = team.object("pod", "agent")["metadata"]["uid"].clone();
    assert_eq!(
        extra["authentication.kubernetes.io/pod-name"],
        json!(["agent"])
    );
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], json!([uid]));
    // It opens nothing else.
    let other = review(token, "https://kubernetes.default.svc.cluster.local");
    assert_ne!(other["authenticated"], true, "{other}");
    let token = format!("--token={token}");
    let mut command = kubectl_command(&[&token, "--kubeconfig=/dev/null", "auth", "whoami"]);
    command
        .arg(format!("--server={}", server()))
        .arg("--insecure-skip-tls-verify");
    Answer::of(&mut command, "").refused();
}

fn review(token: &str, audience: &str) -> Value {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    });
    let create = ["create", "--filename=-", "--output=jsonpath={.status}"];
    let said = Answer::of(&mut kubectl_command(&create), &review.to_string()).ok();
    serde_json::from_str(&said).unwrap()
}

/// Where the API server is.
fn server() -> String {
    let url = "--output=jsonpath={.clusters[0].cluster.server}";
    kubectl(&["config", "view", "--minify", url]).ok()
}

fn a_secret_of_the_namespace_opens_the_control_plane() {
    let right = json!({"api-key": lab().key()});
    let wrong = json!({"api-key": "guessed"});
    let (keyed, refused) = with_secrets("key", &["gatewayUrl", KEYED, "api-key"], right, wrong);
    // The gateway answers 403 to a wrong key, as it does for a connection that is not active.
    assert_eq!(refused.error(), "connection_inactive", "{refused:?}");
    let find = ["sh", "-c", "env; find / -name '*api-key*' 2>/dev/null"];
    let said = keyed.exec("agent", &find).stdout;
    assert!(
        !said.contains("api-key") && !said.contains(lab().key()),
        "{said}"
    );

    let pair = |(certificate, key): (&str, &str)| json!({"tls.crt": certificate, "tls.key": key});
    let (certificate, key) = Authority::new().client("sidecars");
    let (right, wrong) = (pair(lab().client()), pair((&certificate, &key)));
    let settings = ["brokerUrl", BROKER, "client-certificate"];
    let (certified, refused) = with_secrets("certificate", &settings, right, wrong);
    assert_eq!(refused.status, 503, "{refused:?}");
    let find = ["sh", "-c", "env; find / -name 'tls.key' 2>/dev/null"];
    let said = certified.exec("agent", &find).stdout;
    assert!(
        !said.contains("tls.key") && !said.contains("PRIVATE KEY"),
        "{said}"
    );

    upgrade(&values());
    // Others after this one rely on it.
    keyed.start_with("again", lab::GATEWAY);
}

/// Lets sidecars find another control plane (the value's name, its address and what it wants) and show what a Secret of
/// their namespace has. Returns a namespace whose Secret has the right thing, where a request was served, and the
/// answer in one that has not.
fn with_secrets(
    prefix: &str,
    [name, url, auth]: &[&str; 3],
    right: Value,
    wrong: Value,
) -> (Team, Reply) {
    let given = format!("sidecar.gatewayUrl={}", lab::GATEWAY);
    let values: Vec<String> = values()
        .into_iter()
        .map(|value| {
            value
                .replace(&given, &format!("sidecar.{name}={url}"))
                .replace("auth=token", &format!("auth={auth}"))
        })
        .chain([format!("--set=sidecar.authSecret={KEY_SECRET}")])
        .collect();
    upgrade(&values);
    let [right, wrong] = [(right, prefix), (wrong, "guessing")].map(|(data, prefix)| {
        let team = Team::new(prefix);
        apply(&[json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": KEY_SECRET, "namespace": team.namespace},
            "stringData": data,
        })])
        .ok();
        team
    });
    for team in [&right, &wrong] {
        team.route(PROVIDER, "");
        team.start_with("agent", url);
    }
    right.served("agent", "/via/upstream/shown");
    let refused = wrong.call("agent", "/via/upstream/shown");
    // The Secret is the sidecar's alone.
    let pod = right.object("pod", "agent");
    assert!(!pod["spec"]["containers"].to_string().contains(KEY_SECRET));
    (right, refused)
}
