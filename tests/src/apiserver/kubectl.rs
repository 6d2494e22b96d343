//! kubectl and other programs as the users run them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::{Cluster, asset};

/// How a program ended and what it said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Whether its exit status was 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error: refusals and warnings.
    pub stderr: String,
}

impl Answer {
    /// Runs a program with `input` on its standard input, and waits until it ends.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn of(command: &mut Command, input: &str) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read it may have ended already.
        stdin.write_all(input.as_bytes()).ok();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            success: output.status.success(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// What it printed, of a command that must succeed.
    ///
    /// # Panics
    ///
    /// When it did not, showing what it said.
    pub fn ok(self) -> String {
        assert!(self.success, "it failed: {}", self.stderr);
        self.stdout
    }

    /// What it said, of a command that must fail.
    ///
    /// # Panics
    ///
    /// When it succeeded.
    pub fn refused(self) -> String {
        assert!(!self.success, "it succeeded: {}", self.stdout);
        self.stderr
    }
}

impl Cluster {
    /// `kubectl` as an administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Answer {
        self.kubectl_with(arguments, "")
    }

    /// `kubectl`, with `input` on its standard input for `--filename=-`.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Answer {
        let mut command = Command::new(asset("kubectl"));
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig().display()))
            .args(arguments)
            // Its caches belong to the cluster.
            .env("HOME", &self.folder);
        Answer::of(&mut command, input)
    }

    /// `kubectl apply` of objects, in YAML or JSON.
    pub fn apply(&self, manifest: &str) -> Answer {
        self.kubectl_with(&["apply", "--filename=-"], manifest)
    }

    /// An object as the API server has it; `None` if it has none of that name.
    ///
    /// # Panics
    ///
    /// When kubectl fails otherwise.
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> Option<serde_json::Value> {
        let answer = self.kubectl(&[
            "--namespace",
            namespace,
            "get",
            kind,
            name,
            "--output=json",
            "--ignore-not-found",
        ]);
        let text = answer.ok();
        (!text.is_empty()).then(|| serde_json::from_str(&text).unwrap())
    }

    /// The API server's own metrics.
    ///
    /// # Panics
    ///
    /// When they cannot be read.
    pub fn metrics(&self) -> String {
        self.kubectl(&["get", "--raw", "/metrics"]).ok()
    }
}
