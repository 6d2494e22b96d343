//! The real `nexus-operator` as a process, under the chart's own RBAC, in front of a real API server.

use std::fmt::Debug;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::apiserver::Cluster;
use crate::chart;
pub use crate::chart::NAMESPACE;

/// How long the operator may take to start or stop on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// The binary under test: `NEXUS_OPERATOR_BIN`, else the one of this build.
///
/// # Panics
///
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("NEXUS_OPERATOR_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--workspace", "--bin", "nexus-operator"])
        .status()
        .unwrap();
    assert!(status.success(), "the operator does not build");
    crate::target().join("debug/nexus-operator")
}

/// The chart, installed in a cluster; only the operator's pods are not made, since nothing would run them.
///
/// The Service is one without pods that leads to a port of this machine, where tests start the operator.
#[derive(Debug)]
pub struct Installation {
    cluster: &'static Cluster,
    port: u16,
    arguments: Vec<String>,
}

impl Installation {
    /// Installs the chart with `values`, as `helm --set` takes them, beside what the tests need.
    ///
    /// # Panics
    ///
    /// When the API server refuses an object.
    pub fn new(cluster: &'static Cluster, values: &[(&str, &str)]) -> Self {
        Self::behind(cluster, values, free_port())
    }

    /// Installs the chart so that the API server finds the webhooks on `port` of this machine.
    ///
    /// # Panics
    ///
    /// When the API server refuses an object.
    pub fn behind(cluster: &'static Cluster, values: &[(&str, &str)], port: u16) -> Self {
        cluster.kubectl(&["create", "namespace", NAMESPACE]).ok();
        let (definitions, others): (Vec<Value>, Vec<Value>) = chart::render(values)
            .into_iter()
            .partition(|object| object["kind"] == "CustomResourceDefinition");
        apply(cluster, &definitions);
        cluster
            .kubectl(&[
                "wait",
                "--for=condition=Established",
                "--timeout=60s",
                "crd",
                "nexusroutes.nexus.io",
                "nexusproviders.nexus.io",
            ])
            .ok();
        let mut arguments = Vec::new();
        let mut objects = Vec::new();
        for object in others {
            match object["kind"].as_str().unwrap() {
                "Deployment" => arguments = process_arguments(&object),
                "Service" => objects.push(local_service(&object)),
                "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
                    objects.push(behind_port(object, port));
                }
                _ => objects.push(object),
            }
        }
        apply(cluster, &objects);
        Self {
            cluster,
            port,
            arguments,
        }
    }

    /// What `helm` has installed already. The API server does not find its webhooks, as the Service has no pods.
    ///
    /// # Panics
    ///
    /// When there is no Deployment.
    pub fn of_helm(cluster: &'static Cluster) -> Self {
        let deployment = cluster.get(NAMESPACE, "deployment", "nexus-operator");
        let arguments = process_arguments(&deployment.expect("the chart is installed"));
        Self {
            cluster,
            port: free_port(),
            arguments,
        }
    }

    /// Port of this machine where the API server finds the webhooks.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts the operator and waits until it is ready.
    pub fn start(&self) -> Operator {
        self.start_with("operator-0", self.port, &[])
    }

    /// Starts one of several: with an identity, a port for its webhooks and further arguments. Waits until it is ready.
    ///
    /// # Panics
    ///
    /// When it is not, showing what it said.
    pub fn start_with(&self, identity: &str, port: u16, arguments: &[&str]) -> Operator {
        let operator = self.spawn(identity, port, arguments);
        operator.wait_until_ready();
        operator
    }

    /// Starts one and waits only until it listens.
    ///
    /// # Panics
    ///
    /// When it ends instead, showing what it said.
    pub fn spawn(&self, identity: &str, port: u16, arguments: &[&str]) -> Operator {
        let kubeconfig = self.cluster.service_account(NAMESPACE, "nexus-operator");
        let mut child = Command::new(binary())
            .args(&self.arguments)
            .args(arguments)
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env("NEXUS_NAMESPACE", NAMESPACE)
            .env("NEXUS_IDENTITY", identity)
            .env("NEXUS_WEBHOOK_LISTEN", format!("127.0.0.1:{port}"))
            .env("NEXUS_ADMIN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        collect(child.stderr.take().unwrap(), &log);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let admin = line
            .trim()
            .rsplit_once("admin=")
            .and_then(|(_, address)| address.parse().ok());
        let mut operator = Operator {
            child,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            log,
        };
        match admin {
            Some(admin) => operator.admin = admin,
            None => panic!("the operator did not start: {}", operator.ended_with()),
        }
        operator
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port()
}

/// The arguments of the operator's container but for its addresses, which the tests give by the environment.
fn process_arguments(deployment: &Value) -> Vec<String> {
    let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        .as_array()
        .expect("the Deployment's first container has arguments");
    arguments
        .iter()
        .map(|argument| argument.as_str().unwrap().to_owned())
        .filter(|argument| {
            !argument.starts_with("--webhook-listen") && !argument.starts_with("--admin")
        })
        .collect()
}

/// The same webhooks on another port of their Service: one that leads to a name does not map ports.
fn behind_port(mut configuration: Value, port: u16) -> Value {
    for webhook in configuration["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"]["service"]["port"] = port.into();
    }
    configuration
}

/// The same Service, leading to this machine.
fn local_service(service: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": service["metadata"],
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    })
}

fn apply(cluster: &Cluster, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let arguments = [
        "apply",
        "--server-side",
        "--namespace",
        NAMESPACE,
        "--filename=-",
    ];
    cluster.kubectl_with(&arguments, &list.to_string()).ok();
}

fn collect(mut stderr: impl Read + Send + 'static, log: &Arc<Mutex<String>>) {
    let log = log.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut buffer) {
            log.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
}

/// A running operator; killed when dropped.
pub struct Operator {
    child: Child,
    admin: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Operator {
    /// Waits until `/readyz` says so.
    ///
    /// # Panics
    ///
    /// When it does not, showing what it waits for and what was logged.
    pub fn wait_until_ready(&self) {
        let start = Instant::now();
        loop {
            let (status, text) = self.ask("/readyz");
            // From when it listens: what it waits for is no reason to be started anew.
            let (alive, _) = self.ask("/healthz");
            assert!(status == 0 || alive == 200, "{alive}\n{}", self.log());
            if status == 200 {
                return;
            }
            assert!(start.elapsed() < LIMIT, "not ready: {text}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where it serves `/metrics`, `/healthz` and `/readyz`.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// What `/metrics` says.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    pub fn metrics(&self) -> String {
        let (status, text) = self.ask("/metrics");
        assert_eq!(status, 200, "{text}");
        text
    }

    /// The sum of a metric's samples whose line contains every one of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        sum(&self.metrics(), name, labels)
    }

    fn ask(&self, path: &str) -> (u16, String) {
        // A client of one request, without a runtime.
        let Ok(mut stream) = std::net::TcpStream::connect(self.admin) else {
            return (0, "it does not listen".to_owned());
        };
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).ok();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok();
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0);
        let body = answer
            .split_once("\r\n\r\n")
            .map_or("", |(_, body)| body)
            .to_owned();
        (status, body)
    }

    /// What it logged so far.
    ///
    /// # Panics
    ///
    /// When the thread that reads it panicked.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Whether the process still runs.
    ///
    /// # Panics
    ///
    /// When the system does not say.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    ///
    /// When there is no such process.
    pub fn terminate(&self) {
        let id = Pid::from_child(&self.child);
        kill_process(id, Signal::TERM).unwrap();
    }

    /// Stops it from running, as a machine that is overloaded or suspended does.
    ///
    /// # Panics
    ///
    /// When there is no such process.
    pub fn freeze(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    /// Lets it run on.
    ///
    /// # Panics
    ///
    /// When there is no such process.
    pub fn thaw(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Waits for its end, and gives its exit status and log.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub fn wait(&mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), self.log());
            }
            assert!(start.elapsed() < LIMIT, "it runs on: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it, as a crash would.
    ///
    /// # Panics
    ///
    /// When there is no such process.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn ended_with(&mut self) -> String {
        let (code, log) = self.wait();
        format!("exit status {code:?}: {log}")
    }
}

impl Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operator")
            .field("id", &self.child.id())
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The sum of a metric's samples, in the text format, whose line contains every one of `labels`.
pub fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
