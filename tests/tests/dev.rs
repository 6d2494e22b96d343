//! `nexus-sidecar dev`: one command, no file, no account, no network; and the user's own routes and credentials.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use nexus_tests::clients::{node_script, output, python_script, repository};
use nexus_tests::connection;
use nexus_tests::route::Route;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;
use tokio::process::Command;

async fn printed_curl_lines(sidecar: &Sidecar) -> Vec<String> {
    wait::until("three curl lines on standard output", || {
        let lines = sidecar.stdout();
        let curls: Vec<String> = lines
            .iter()
            .map(|line| line.trim().to_owned())
            .filter(|line| line.starts_with("curl "))
            .collect();
        (curls.len() == 3).then_some(curls)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_curl_lines_run_as_printed_and_show_masked_credentials() {
    let sidecar = Sidecar::dev().start().await;
    let mut shown = Vec::new();
    for line in printed_curl_lines(&sidecar).await {
        let text = output(Command::new("sh").args(["-c", &line])).await;
        assert!(
            !text.contains("X-Nexus-Error") && !text.contains("urn:nexus:error"),
            "{line}: {text}"
        );
        shown.push(text);
    }
    let [bearer, aws, query] = shown.as_slice() else {
        panic!("{shown:?}")
    };
    for (text, path) in [
        (bearer, "/v1/me"),
        (aws, "/my-bucket/my-key"),
        (query, "/v1/search"),
    ] {
        let received: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(received["path"], path, "{text}");
    }
    let masked = |text: &str| text.contains("***");
    assert!(
        bearer.to_lowercase().contains("authorization") && bearer.contains("Bearer "),
        "{bearer}"
    );
    assert!(masked(bearer), "{bearer}");
    assert!(aws.contains("AWS4-HMAC-SHA256 Credential="), "{aws}");
    assert!(masked(query), "{query}");
}

#[tokio::test(flavor = "multi_thread")]
async fn example_agents_run_against_dev() {
    let sidecar = Sidecar::dev().start().await;
    for provider in ["bearer", "aws", "query"] {
        let mut curl = Command::new(repository().join("examples/curl/agent.sh"));
        for agent in [
            &mut python_script("examples/python/agent.py"),
            &mut node_script("examples/node/agent.mjs"),
            &mut curl,
        ] {
            let agent = agent.arg(provider).env("NEXUS_SIDECAR_URL", sidecar.url());
            let text = output(agent).await;
            assert!(text.contains("/hello"), "{provider}: {text}");
        }
    }
}

const CREDENTIALS: &str = "credentials:\n  mine: {access_token: {env: MY_TOKEN}}\n";

fn own(credentials: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials.yaml");
    std::fs::write(&path, credentials).unwrap();
    (folder, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn own_routes_use_a_credential_from_the_environment() {
    let upstream = Upstream::start().await;
    let (_folder, credentials) = own(CREDENTIALS);
    let route = Route::new("mine", &upstream.url()).with("connections", serde_json::json!([]));
    let sidecar = Sidecar::dev_with_routes()
        .route(&route)
        .arg("--credentials")
        .arg(credentials)
        .env("MY_TOKEN", "token-from-the-environment")
        .start()
        .await;
    let answer = sidecar.agent().get("/via/mine/user").send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        upstream.only().header("authorization"),
        "Bearer token-from-the-environment"
    );
    assert!(!answer.text().contains("token-from-the-environment"));
    assert!(!sidecar.said().contains("token-from-the-environment"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_the_files_is_a_message_with_file_line_and_field() {
    let upstream = Upstream::start().await;
    let route = Route::new("mine", &upstream.url());
    for (credentials, mentions) in [
        (CREDENTIALS, &["credentials.yaml", "2", "MY_TOKEN"][..]),
        (
            "credentials:\n  mine:\n    access_token: {envv: MY_TOKEN}\n",
            &["credentials.yaml:3", "mine.access_token", "env: NAME"],
        ),
        (
            "credentials:\n  other: {access_token: {env: HOME}}\n",
            &["mine"],
        ),
        ("credentials: [\n", &["credentials.yaml"]),
    ] {
        let (_folder, path) = own(credentials);
        let builder = Sidecar::dev_with_routes().route(&route);
        let output = builder.arg("--credentials").arg(path).fails().await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{credentials}: {said}");
        for mention in mentions {
            assert!(
                said.contains(mention),
                "{mention} for {credentials}: {said}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_sidecars_ask_the_gateway_with_its_key() {
    let upstream = Upstream::start().await;
    let (folder, credentials) = own(&format!(
        "credentials: {{{}: {{access_token: token-of-the-gateway}}}}",
        connection(1)
    ));
    let key = folder.path().join("key");
    std::fs::write(&key, "key-of-the-gateway\n").unwrap();
    let route = Route::new("mine", &upstream.url()).connection(&connection(1));
    let dev = Sidecar::dev_with_routes()
        .route(&route)
        .arg("--credentials")
        .arg(credentials)
        .arg("--gateway-listen=127.0.0.1:0")
        .arg("--gateway-key-file")
        .arg(key)
        .start()
        .await;
    let url = wait::until("the gateway's address", || {
        let said = dev.stdout().join(" ");
        let (_, rest) = said.split_once("--gateway-url ")?;
        rest.split(' ').next().map(str::to_owned)
    })
    .await;
    let other = |key: &str| {
        let sidecar = Sidecar::run().route(&route).gateway_url(&url).api_key(key);
        sidecar.start()
    };
    let sidecar = other("key-of-the-gateway").await;
    let answer = sidecar.agent().get("/via/mine/user").send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        upstream.only().header("authorization"),
        "Bearer token-of-the-gateway"
    );
    let sidecar = other("guessed").await;
    let answer = sidecar.agent().get("/via/mine/user").send().await;
    assert_eq!(answer.error(), "broker_rejected", "{}", answer.text());
    assert_eq!(upstream.seen().len(), 1);
    let said = dev.said();
    for secret in ["key-of-the-gateway", "token-of-the-gateway"] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_for_others_needs_a_key_and_credentials() {
    let (folder, credentials) = own("credentials: {mine: {access_token: t}}");
    let key = folder.path().join("key");
    for (content, mentions) in [
        (None, &["--gateway-key-file", "key", "No such file"][..]),
        (Some(" \n"), &["--gateway-key-file", "must hold one line"]),
        (
            Some("a\nb\n"),
            &["--gateway-key-file", "must hold one line"],
        ),
    ] {
        if let Some(content) = content {
            std::fs::write(&key, content).unwrap();
        }
        let output = Sidecar::dev_with_routes()
            .route(&Route::new("mine", "https://api.example.com"))
            .arg("--credentials")
            .arg(&credentials)
            .arg("--gateway-listen=127.0.0.1:0")
            .arg("--gateway-key-file")
            .arg(&key)
            .fails()
            .await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        for mention in mentions {
            assert!(said.contains(mention), "{mention}: {said}");
        }
    }
    for missing in [
        &["--gateway-listen=127.0.0.1:0", "--credentials=c"][..],
        &["--gateway-listen=127.0.0.1:0", "--gateway-key-file=k"],
    ] {
        let mut builder = Sidecar::dev_with_routes();
        for argument in missing {
            builder = builder.arg(*argument);
        }
        let output = builder.fails().await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("required arguments were not provided"),
            "{said}"
        );
    }
}
