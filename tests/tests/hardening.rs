//! What the kernel keeps from others: another process of the sidecar's user reads none of its memory, and no core is
//! dumped. The sidecar goes on to do all of its work.
//!
//! Root may read everything, so where the tests run as root, sidecar and attacker run as `nobody`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use nexus_tests::agent::Agent;
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::connection;
use nexus_tests::route::Route;
use nexus_tests::sidecar;
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;
use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, getrlimit, kill_process, setrlimit};
use serde_json::Value;

/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// A folder that the unprivileged user may read, and the sidecar's binary in it: the checkout may be in a home folder.
struct Place {
    folder: tempfile::TempDir,
    binary: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let binary = folder.path().join("nexus-sidecar");
        // By a process of its own: a program that a child of another test still holds open for writing cannot be run.
        let mut install = Command::new("install");
        install
            .args(["-m", "755"])
            .arg(sidecar::binary())
            .arg(&binary);
        assert!(install.status().unwrap().success());
        Self { folder, binary }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .current_dir(self.path())
            .stdin(Stdio::null());
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Starts the sidecar and waits until it listens.
    fn start<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        let log = self.path().join("log");
        let mut child = self
            .command(&self.binary)
            .args(args)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .env("SEEN_BY_NOBODY", "a-secret-of-the-environment")
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let addresses = line
            .trim()
            .strip_prefix("listening proxy=")
            .and_then(|rest| rest.split_once(" admin="))
            .and_then(|(proxy, admin)| Some((proxy.parse().ok()?, admin.parse().ok()?)));
        let Some((proxy, admin)) = addresses else {
            let _ = child.kill();
            panic!("{line:?}: {}", fs::read_to_string(log).unwrap());
        };
        Running {
            child,
            proxy,
            admin,
            log,
            _stdout: stdout,
        }
    }
}

/// A process that does not outlive its test.
struct Running {
    child: Child,
    proxy: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
    /// A pipe that nobody holds would end the access log.
    _stdout: BufReader<ChildStdout>,
}

impl Running {
    fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends with the test, too.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `run` is started with, with the broker and a route to `upstream`.
fn run_args(place: &Place, broker: &Broker, upstream: &Upstream) -> Vec<String> {
    let routes = place.path().join("routes");
    fs::create_dir(&routes).unwrap();
    publish(&routes, "p", upstream);
    let key = place.path().join("api-key");
    fs::write(&key, "key-of-the-gateway").unwrap();
    ["run", "--gateway-url", &broker.url(), "--routes"]
        .into_iter()
        .map(str::to_owned)
        .chain([routes.display().to_string(), "--api-key-file".to_owned()])
        .chain([key.display().to_string()])
        .collect()
}

fn publish(routes: &Path, provider: &str, upstream: &Upstream) {
    let route = Route::new(provider, &upstream.url()).connection(&connection(1));
    let new = routes.join(".new");
    fs::write(&new, route.yaml()).unwrap();
    fs::rename(new, routes.join(route.file_name())).unwrap();
}

async fn servers() -> (Broker, Upstream) {
    let broker = Broker::gateway().await;
    broker.set(&connection(1), Answer::oauth2("token-of-nobody"));
    (broker, Upstream::start().await)
}

/// What an attacker of the same user gets from a process: `done`, or the error that refused it. `None` without a
/// Python that this user may run.
fn attack(place: &Place, pid: u32) -> Option<Value> {
    let script = include_str!("../clients/python/peek.py");
    let pid = pid.to_string();
    ["/usr/bin/python3", "python3"].iter().find_map(|python| {
        let output = place
            .command(python)
            .args(["-B", "-c", script, &pid])
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        Some(serde_json::from_slice(&output.stdout).unwrap())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_the_same_user_gets_at_nothing() {
    let (broker, upstream) = servers().await;
    let place = Place::new();
    let control = Reaped(place.command("/bin/sleep").arg("600").spawn().unwrap());
    let Some(open) = attack(&place, control.0.id()) else {
        eprintln!("not run: there is no python3 that an unprivileged user may run");
        return;
    };
    assert_eq!(open["environ"], "done", "the attack works at all: {open}");
    let args = run_args(&place, &broker, &upstream);
    for args in [&args[..], &["dev".to_owned()]] {
        let running = place.start(args);
        let refused = attack(&place, running.child.id()).unwrap();
        for (name, outcome) in refused.as_object().unwrap() {
            if open[name] != "done" {
                eprintln!("not judged: {name} is refused for every process here ({open})");
            }
            assert!(
                outcome == "EACCES" || outcome == "EPERM",
                "{args:?} {name}: {outcome}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn core_limit_and_privileges_are_given_up_by_every_thread() {
    let (broker, upstream) = servers().await;
    let place = Place::new();
    let mut run = run_args(&place, &broker, &upstream);
    run.extend(["--threads", "3"].map(str::to_owned));
    for args in [&run[..], &["dev".to_owned()]] {
        let running = place.start(args);
        let limits = fs::read_to_string(running.proc("limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let values: Vec<_> = core.unwrap().split_whitespace().skip(4).take(2).collect();
        assert_eq!(values, ["0", "0"], "{args:?}");

        // Of a process that is not dumpable these belong to root, whoever runs it.
        let status = fs::metadata(running.proc("status")).unwrap();
        assert_eq!(status.uid(), 0, "{args:?}");

        let threads = fs::read_dir(running.proc("task")).unwrap();
        let mut count = 0;
        for thread in threads {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            assert!(status.contains("NoNewPrivs:\t1\n"), "{args:?}: {status}");
            count += 1;
        }
        assert!(count > 1, "the access log has a thread of its own");
        assert!(!running.log().contains("not hardened"), "{}", running.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_its_work_as_an_unprivileged_user() {
    let (broker, upstream) = servers().await;
    let place = Place::new();
    let running = place.start(run_args(&place, &broker, &upstream));
    let (agent, admin) = (Agent::new(running.proxy), Agent::new(running.admin));
    let answer = agent.get("/").provider("p").send().await;
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), running.log());
    assert_eq!(
        upstream.last().header("authorization"),
        "Bearer token-of-nobody"
    );
    let metrics = admin.get("/metrics").send().await;
    assert!(
        metrics.text().contains("nexus_requests"),
        "{}",
        metrics.text()
    );

    publish(&place.path().join("routes"), "q", &upstream);
    wait::within("the second route", async {
        while agent.get("/").provider("q").send().await.status != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let ready = admin.get("/readyz").send().await;
    assert_eq!(
        (ready.status, &ready.json()["routes"]),
        (200, &Value::from(2))
    );
    for level in ["WARN", "ERROR"] {
        let log = running.log();
        assert!(!log.contains(&format!("\"level\":\"{level}\"")), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_core() {
    let hard = getrlimit(Resource::Core).maximum;
    let raised = Rlimit {
        current: hard,
        maximum: hard,
    };
    setrlimit(Resource::Core, raised).unwrap();
    let place = Place::new();
    let control = place.command("/bin/sleep").arg("600").spawn().unwrap();
    let control = crashed(Reaped(control)).await;
    if control.core_dumped() {
        let mut running = place.start(["dev"]);
        kill_process(Pid::from_child(&running.child), Signal::ABORT).unwrap();
        let status = wait::until("the crash", || running.child.try_wait().unwrap()).await;
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
        assert!(!status.core_dumped());
    } else {
        eprintln!("not judged: no process leaves a core here");
    }
}

async fn crashed(mut process: Reaped) -> ExitStatus {
    kill_process(Pid::from_child(&process.0), Signal::ABORT).unwrap();
    wait::until("the crash", || process.0.try_wait().unwrap()).await
}
