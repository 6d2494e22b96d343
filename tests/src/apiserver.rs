//! A real Kubernetes control plane: etcd, kube-apiserver with its default admission plugins and
//! kube-controller-manager, on ports of the loopback interface.
//!
//! There is one per test process, and a namespace for each test. It ends with the process, however that ends: a shell
//! that holds the other end of a pipe starts the components and kills them when the pipe closes.

mod access;
mod audit;
mod keeper;
mod kubectl;
mod pki;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use self::audit::{Audit, Call};
pub use self::kubectl::Answer;

use self::keeper::Keeper;
use self::pki::Pki;

/// How long the components may take to start on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(2);
/// Ports that were free may be taken before a component binds them.
const ATTEMPTS: usize = 3;

/// The control plane of this test process.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    url: String,
    ca: String,
    namespaces: AtomicU32,
    keeper: Keeper,
}

/// The program `name` of the folder that `KUBEBUILDER_ASSETS` names.
///
/// # Panics
///
/// When there is none.
pub fn asset(name: &str) -> PathBuf {
    let folder = std::env::var_os("KUBEBUILDER_ASSETS").expect(
        "KUBEBUILDER_ASSETS is not set: use `cargo xtask test`, or export what `cargo xtask assets` prints",
    );
    let path = Path::new(&folder).join(name);
    assert!(path.exists(), "KUBEBUILDER_ASSETS has no {name}");
    path
}

impl Cluster {
    /// The control plane of this process; the first caller starts it.
    ///
    /// # Panics
    ///
    /// When it does not start, showing what its components said.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts another one, for a test that cannot share it.
    ///
    /// # Panics
    ///
    /// When it does not start, showing what its components said.
    pub fn start() -> Self {
        let mut said = String::new();
        for _ in 0..ATTEMPTS {
            // The keeper removes it: no destructor runs for what a process holds to its end.
            let folder = TempDir::with_prefix("nexus-cluster-").unwrap().keep();
            match Self::try_start(folder) {
                Ok(cluster) => return cluster,
                Err(error) => said = error,
            }
        }
        panic!("no control plane: {said}")
    }

    fn try_start(folder: PathBuf) -> Result<Self, String> {
        let [etcd, peer, secure] = free_ports();
        let url = format!("https://127.0.0.1:{secure}");
        let pki = Pki::write(&folder, &url);
        let keeper = Keeper::start(&folder);
        let etcd_url = format!("http://127.0.0.1:{etcd}");
        keeper.run("etcd", &etcd_arguments(&etcd_url, peer));
        keeper.run(
            "kube-apiserver",
            &apiserver_arguments(&folder, &etcd_url, secure),
        );
        let cluster = Self {
            url,
            ca: pki.ca,
            namespaces: AtomicU32::new(0),
            keeper,
            folder,
        };
        cluster.wait("the API server", &["get", "--raw", "/readyz"])?;
        cluster
            .keeper
            .run("kube-controller-manager", &controllers(&cluster.folder));
        cluster.wait("a service account", &["get", "serviceaccount", "default"])?;
        Ok(cluster)
    }

    fn wait(&self, what: &str, arguments: &[&str]) -> Result<(), String> {
        let start = Instant::now();
        while !self.kubectl(arguments).success {
            if let Some(name) = self.keeper.ended() {
                return Err(format!("{name} ended: {}", self.log(&name)));
            }
            if start.elapsed() > START_LIMIT {
                let logs = ["etcd", "kube-apiserver", "kube-controller-manager"]
                    .map(|name| format!("{name}: {}", self.log(name)));
                return Err(format!("waited in vain for {what}\n{}", logs.join("\n")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The end of what a component said.
    pub fn log(&self, component: &str) -> String {
        let path = self.folder.join(format!("{component}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let start = text.len().saturating_sub(4000);
        String::from_utf8_lossy(&text.as_bytes()[start..]).into_owned()
    }

    /// Where the API server listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The certificate authority of the API server, in PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A folder for files of a test, removed at the end.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.folder.join("scratch").join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Makes a namespace whose name starts with `prefix`, and waits for its service account.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub fn namespace(&self, prefix: &str) -> String {
        let number = self.namespaces.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{number}");
        self.kubectl(&["create", "namespace", &name]).ok();
        self.wait(
            "a service account",
            &["--namespace", &name, "get", "serviceaccount", "default"],
        )
        .unwrap();
        name
    }
}

/// Ports that are free now, each another one.
fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|listener: TcpListener| listener.local_addr().unwrap().port())
}

fn etcd_arguments(url: &str, peer: u16) -> Vec<String> {
    let peer = format!("http://127.0.0.1:{peer}");
    vec![
        "--data-dir=etcd".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ]
}

fn apiserver_arguments(folder: &Path, etcd: &str, port: u16) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut arguments = vec![
        format!("--etcd-servers={etcd}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        // It would complain again and again about a loopback address.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        "--authorization-mode=RBAC".to_owned(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--allow-privileged".to_owned(),
        // Tests that create thousands of objects in one go are not what these limits are for.
        "--max-requests-inflight=1000".to_owned(),
        "--max-mutating-requests-inflight=500".to_owned(),
    ];
    arguments.extend(audit::arguments(folder));
    arguments
}

fn controllers(folder: &Path) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let kubeconfig = file("kube-controller-manager.kubeconfig");
    vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        // Serves nothing.
        "--secure-port=0".to_owned(),
        format!("--service-account-private-key-file={}", file("sa.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        "--use-service-account-credentials".to_owned(),
        "--leader-elect=false".to_owned(),
        "--kube-api-qps=500".to_owned(),
        "--kube-api-burst=1000".to_owned(),
        // The default is a folder of the machine.
        format!("--flex-volume-plugin-dir={}", file("volume-plugins")),
    ]
}
