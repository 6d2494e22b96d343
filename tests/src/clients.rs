//! Programs that others wrote: Python's requests, Node's axios, curl, and tinyproxy. `cargo xtask test` installs them.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::wait;

/// Root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Where `cargo xtask test` installs the clients.
fn installed() -> PathBuf {
    crate::target().join("clients")
}

/// The Python that has requests and botocore.
///
/// # Panics
///
/// When it is not installed.
pub fn python() -> PathBuf {
    required(installed().join("venv/bin/python"))
}

/// A folder whose scripts find axios. Node looks for modules upwards from the script, not from the working folder.
///
/// # Panics
///
/// When it is not installed.
pub fn node_folder() -> PathBuf {
    required(installed().join("node/node_modules/axios"));
    installed().join("node")
}

/// The tinyproxy of the system, else the one that was installed for the tests.
///
/// # Panics
///
/// When there is neither.
pub fn tinyproxy() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("tinyproxy"))
        .find(|program| program.is_file())
        .unwrap_or_else(|| required(installed().join("tinyproxy/usr/bin/tinyproxy")))
}

fn required(path: PathBuf) -> PathBuf {
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask test` once, it installs the clients the tests drive",
        path.display()
    );
    path
}

/// A Python script, as a command.
pub fn python_script(script: &str) -> Command {
    let mut command = Command::new(python());
    command.arg("-B").arg(repository().join(script));
    command
}

/// A Node script, as a command. It runs from a copy that lies where axios is found.
///
/// # Panics
///
/// When the copy cannot be made.
pub fn node_script(script: &str) -> Command {
    let folder = tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(node_folder())
        .unwrap();
    let source = repository().join(script);
    let copy = folder.path().join(source.file_name().unwrap());
    std::fs::copy(&source, &copy).unwrap();
    let mut command = Command::new("sh");
    // The shell removes the copy once Node has read and run it.
    command
        .args([
            "-c",
            r#"node "$0" "$@"; code=$?; rm -r "$(dirname "$0")"; exit $code"#,
        ])
        .arg(copy);
    let _ = folder.keep();
    command
}

/// Runs a command to its end.
///
/// # Panics
///
/// When it fails, showing what it said.
pub async fn output(command: &mut Command) -> String {
    succeeded(&run(command, "").await)
}

/// Runs a verifier: JSON in, JSON out.
///
/// # Panics
///
/// When it fails, showing what it said.
pub async fn ask(command: &mut Command, question: &Value) -> Value {
    let text = succeeded(&run(command, &question.to_string()).await);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"))
}

fn succeeded(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "the client ended with {}:\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

async fn run(command: &mut Command, input: &str) -> Output {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    // A client that does not read its input may be gone before all of it is written.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    wait::within(&what, child.wait_with_output()).await.unwrap()
}
