//! The real `nexus-sidecar` as a process.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::broker::{Broker, Front};
use crate::route::Route;
use crate::wait;

/// The binary under test: `NEXUS_SIDECAR_BIN`, else the one of this build.
///
/// # Panics
///
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("NEXUS_SIDECAR_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "nexus-sidecar"])
        .status()
        .unwrap();
    assert!(status.success(), "the sidecar does not build");
    crate::target().join("debug/nexus-sidecar")
}

/// `nexus-sidecar` with these arguments, an empty environment and no standard input.
pub fn command<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(binary());
    command
        .args(args.into_iter().map(Into::into))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a sidecar is started with.
#[derive(Debug)]
pub struct Builder {
    subcommand: &'static str,
    folder: TempDir,
    routes: Option<PathBuf>,
    control: Vec<OsString>,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
}

impl Builder {
    fn new(subcommand: &'static str, routes: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("routes");
        std::fs::create_dir(&own).unwrap();
        Self {
            subcommand,
            folder,
            routes: routes.then_some(own),
            control: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Adds a route.
    #[must_use]
    pub fn route(self, route: &Route) -> Self {
        self.file(&route.file_name(), &route.yaml())
    }

    /// Adds a file to the routes folder.
    #[must_use]
    pub fn file(self, name: &str, content: &str) -> Self {
        std::fs::write(self.routes_folder().join(name), content).unwrap();
        self
    }

    /// Reads routes from another folder than its own.
    #[must_use]
    pub fn routes_in(mut self, folder: &Path) -> Self {
        self.routes = Some(folder.to_owned());
        self
    }

    /// Fetches credentials from this stand-in, as what it stands for.
    #[must_use]
    pub fn control(mut self, broker: &Broker) -> Self {
        let flag = match broker.front() {
            Front::Gateway | Front::Grpc => "--gateway-url",
            Front::Broker => "--broker-url",
        };
        self.control = vec![flag.into(), broker.url().into()];
        self
    }

    /// Fetches credentials from this gateway URL.
    #[must_use]
    pub fn gateway_url(mut self, url: &str) -> Self {
        self.control = vec!["--gateway-url".into(), url.into()];
        self
    }

    /// Sends this key to the control plane, from a file.
    #[must_use]
    pub fn api_key(self, key: &str) -> Self {
        let path = self.folder.path().join("api-key");
        std::fs::write(&path, key).unwrap();
        self.arg("--api-key-file").arg(path)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The folder the routes are read from.
    pub fn routes_folder(&self) -> PathBuf {
        self.folder.path().join("routes")
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    ///
    /// When it ends instead, showing what it said.
    pub async fn start(self) -> Sidecar {
        let mut child = self.command().spawn().unwrap();
        let stdout = Lines::follow(child.stdout.take().unwrap());
        let stderr = Lines::follow(child.stderr.take().unwrap());
        let mut sidecar = Sidecar {
            child,
            proxy: SocketAddr::from(([0, 0, 0, 0], 0)),
            admin: SocketAddr::from(([0, 0, 0, 0], 0)),
            folder: self.folder,
            stdout,
            stderr,
        };
        let (proxy, admin) = wait::until("the line `listening proxy=ADDR admin=ADDR`", || {
            if let Some(status) = sidecar.child.try_wait().unwrap() {
                panic!("the sidecar ended with {status}:\n{}", sidecar.said());
            }
            sidecar.stdout.all().iter().find_map(|line| listening(line))
        })
        .await;
        (sidecar.proxy, sidecar.admin) = (proxy, admin);
        sidecar
    }

    /// Runs it, expecting it to end by itself.
    ///
    /// # Panics
    ///
    /// When it has not ended after 30 seconds.
    pub async fn fails(self) -> Output {
        let mut child = self.command().spawn().unwrap();
        let stdout = Lines::follow(child.stdout.take().unwrap());
        let stderr = Lines::follow(child.stderr.take().unwrap());
        let mut child = Reaped(child);
        let status = wait::until("the sidecar to end", || child.0.try_wait().unwrap()).await;
        Output {
            status,
            stdout: stdout.finished().await.join("\n").into_bytes(),
            stderr: stderr.finished().await.join("\n").into_bytes(),
        }
    }

    /// Runs it until it listens or has ended, and returns everything it wrote.
    pub async fn ends_or_serves(self) -> String {
        let mut child = Reaped(self.command().spawn().unwrap());
        let stdout = Lines::follow(child.0.stdout.take().unwrap());
        let stderr = Lines::follow(child.0.stderr.take().unwrap());
        wait::until("the sidecar to listen or to end", || {
            let listens = stdout.all().iter().any(|line| listening(line).is_some());
            (listens || child.0.try_wait().unwrap().is_some()).then_some(())
        })
        .await;
        drop(child);
        [stdout.finished().await, stderr.finished().await]
            .concat()
            .join("\n")
    }

    fn command(&self) -> Command {
        let mut args: Vec<OsString> = vec![self.subcommand.into()];
        if let Some(routes) = &self.routes {
            args.extend(["--routes".into(), routes.into()]);
        }
        args.extend(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"].map(Into::into));
        args.extend(self.control.iter().cloned());
        args.extend(self.args.iter().cloned());
        let mut command = command(args);
        command.envs(self.env.iter().cloned());
        command
    }
}

/// A child that does not outlive its test.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let rest = line.strip_prefix("listening proxy=")?;
    let (proxy, admin) = rest.split_once(" admin=")?;
    let first = proxy.split(',').next()?;
    Some((first.parse().ok()?, admin.trim().parse().ok()?))
}

/// A running sidecar. It is killed when this is dropped.
#[derive(Debug)]
pub struct Sidecar {
    child: Child,
    proxy: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
    stdout: Lines,
    stderr: Lines,
}

impl Sidecar {
    /// `nexus-sidecar run`.
    pub fn run() -> Builder {
        Builder::new("run", true)
    }

    /// `nexus-sidecar dev`, with its own routes.
    pub fn dev() -> Builder {
        Builder::new("dev", false)
    }

    /// `nexus-sidecar dev --routes`.
    pub fn dev_with_routes() -> Builder {
        Builder::new("dev", true)
    }

    /// Runs with one route, of provider `p`, and one connection.
    pub async fn with(broker: &Broker, route: &Route) -> Self {
        Self::run().route(route).control(broker).start().await
    }

    /// An agent of the proxy.
    pub fn agent(&self) -> Agent {
        Agent::new(self.proxy)
    }

    /// A client of the admin endpoints.
    pub fn admin(&self) -> Agent {
        Agent::new(self.admin)
    }

    /// Address of the proxy.
    pub fn proxy_addr(&self) -> SocketAddr {
        self.proxy
    }

    /// Address of the admin endpoints.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// What an agent finds in `NEXUS_SIDECAR_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.proxy)
    }

    /// The folder the routes are read from.
    pub fn routes_folder(&self) -> PathBuf {
        self.folder.path().join("routes")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lines of standard output so far: readiness, then the access log.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.all()
    }

    /// Lines of standard error so far: the log.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Access log lines so far, as JSON.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        self.stdout()
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for a log line that holds `text`.
    pub async fn logged(&self, text: &str) -> String {
        wait::until(&format!("a log line with {text:?}"), || {
            self.stderr().into_iter().find(|line| line.contains(text))
        })
        .await
    }

    /// Resident memory, in bytes.
    ///
    /// # Panics
    ///
    /// When the process is gone.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() * 1024
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait::until("the sidecar to end", || child.try_wait().unwrap()).await
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Everything it has written, for a failure's message.
    pub fn said(&self) -> String {
        let mut text = String::new();
        for (name, lines) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            let _ = writeln!(text, "--- {name}\n{}", lines.join("\n"));
        }
        text
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}

/// Lines of a pipe, collected by a thread of their own so that the writer never blocks.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Collected>>);

#[derive(Debug, Default)]
struct Collected {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn follow(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let sink = Arc::clone(&lines.0);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                sink.lock().unwrap().lines.push(line);
            }
            sink.lock().unwrap().ended = true;
        });
        lines
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().lines.clone()
    }

    async fn finished(&self) -> Vec<String> {
        wait::until("the end of the output", || {
            self.0.lock().unwrap().ended.then_some(())
        })
        .await;
        self.all()
    }
}
