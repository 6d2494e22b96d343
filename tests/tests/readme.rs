//! Every command that a page tells the reader to run is run by a test, which is named here.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use nexus_tests::clients::{output, repository};
use nexus_tests::sidecar::{Sidecar, command};
use tokio::process::Command;

/// Commands that are not run by this file, and the test that runs them.
const RUN_ELSEWHERE: &[(&str, &str)] = &[
    ("cargo run --release -p nexus-sidecar -- dev", "dev.rs"),
    ("cargo xtask test", "the command that runs this test"),
    (
        "pip install -r requirements.txt",
        "cargo xtask test; clients.rs compares the versions",
    ),
    ("python agent.py bearer", "dev.rs, clients.rs"),
    (
        "npm install",
        "cargo xtask test; clients.rs compares the versions",
    ),
    ("node agent.mjs bearer", "dev.rs, clients.rs"),
    ("./agent.sh bearer", "dev.rs, clients.rs"),
];

/// Commands that need an account or a service of the reader's; their arguments are checked as far as can be.
const NEED_THE_READERS_OWN: &[&str] = &[
    "curl -s -H 'X-Nexus-Provider: github' http://localhost:8080/user/repos",
    "curl -s http://localhost:8080/via/github/user/repos",
];

fn commands(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repository().join(page)).unwrap();
    let mut commands = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside && !command.is_empty() && !command.starts_with('#') => {
                commands.push(command.to_owned());
            }
            _ => {}
        }
    }
    commands
}

/// The arguments of a line that runs the sidecar through Cargo.
fn sidecar_arguments(line: &str) -> Option<Vec<&str>> {
    let rest = line.strip_prefix("cargo run --release -p nexus-sidecar -- ")?;
    Some(rest.split_whitespace().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_readme_works_as_written() {
    let commands = commands("README.md");
    assert!(commands.len() >= 2, "{commands:?}");
    let dev = Sidecar::dev().start().await;
    for line in commands {
        if RUN_ELSEWHERE.iter().any(|(known, _)| *known == line)
            || NEED_THE_READERS_OWN.contains(&line.as_str())
            // The end-to-end tests run the section on Kubernetes from its first command to its last.
            || line.starts_with("kubectl ")
            || line.starts_with("helm ")
        {
            continue;
        }
        if let Some(arguments) = sidecar_arguments(&line) {
            match arguments[0] {
                "check" => {
                    let mut check = command(&arguments);
                    let output = check.current_dir(repository()).output().unwrap();
                    assert!(
                        output.status.success(),
                        "{line}: {}",
                        String::from_utf8_lossy(&output.stdout)
                    );
                }
                // Needs the reader's services; the flags must exist.
                "run" | "dev" => {
                    let help = command([arguments[0], "--help"]).output().unwrap();
                    let help = String::from_utf8_lossy(&help.stdout).into_owned();
                    for flag in arguments
                        .iter()
                        .filter(|argument| argument.starts_with("--"))
                    {
                        assert!(help.contains(flag), "{line}: {flag}");
                    }
                }
                other => panic!("README.md runs {other:?}, which no test does: {line}"),
            }
        } else if line.starts_with("curl ") {
            let moved = line
                .replace("127.0.0.1:8080", &dev.proxy_addr().to_string())
                .replace("localhost:8080", &dev.proxy_addr().to_string());
            let text = output(Command::new("sh").args(["-c", &moved])).await;
            assert!(
                !text.is_empty() && !text.contains("urn:nexus:error"),
                "{line}: {text}"
            );
        } else {
            panic!("README.md tells the reader to run something that no test does: {line}");
        }
    }
}

#[test]
fn every_command_of_an_examples_page_is_tested() {
    for page in [
        "examples/python/README.md",
        "examples/node/README.md",
        "examples/curl/README.md",
    ] {
        for line in commands(page) {
            assert!(
                RUN_ELSEWHERE.iter().any(|(known, _)| *known == line),
                "{page}: {line}"
            );
        }
    }
    // The end-to-end tests run these as they are.
    for line in commands("examples/kubernetes/README.md") {
        let run = ["kubectl ", "helm ", "sleep "];
        assert!(run.iter().any(|start| line.starts_with(start)), "{line}");
    }
}
