//! What the node runs: addresses, configuration files and command lines.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use super::images::PAUSE;
use super::node::Node;

/// What the node is called in the cluster.
pub(super) const NODE_NAME: &str = "node";
/// Its address, on the loopback device of its network namespace.
pub(super) const NODE_ADDRESS: &str = "10.99.0.1";
/// Where the API server listens.
pub(super) const API: &str = "https://10.99.0.1:6443";
/// Addresses of Services.
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// The first of them, which the API server takes for itself.
pub(super) const API_ADDRESS: &str = "10.96.0.1";
/// Where pods ask for names; `tests/cluster/coredns.yaml` names the same.
const DNS_ADDRESS: &str = "10.96.0.10";
/// Addresses of pods.
const PODS: &str = "10.244.0.0/24";
/// Socket of containerd, in a `/run` of the node's own.
pub(super) const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// What follows `ctr` for images that kubelet finds.
pub(super) const CTR: [&str; 4] = ["--address", CONTAINERD, "--namespace", "k8s.io"];
const ETCD: &str = "http://127.0.0.1:2379";
/// What tokens of service accounts name as their issuer.
pub(super) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Where the machine has what containerd calls.
#[derive(Debug)]
pub(super) struct Runtime {
    /// The program `runc`.
    pub(super) runc: String,
    /// Folder of the network plugins.
    pub(super) plugins: String,
}

/// A program and its arguments. What it says goes to `log/<name>.log`.
pub(super) struct Component {
    pub(super) name: &'static str,
    pub(super) arguments: Vec<String>,
}

/// Writes the configuration files.
pub(super) fn configure(node: &Node, runtime: &Runtime) -> anyhow::Result<()> {
    for folder in ["network", "log", "volume-plugins"] {
        std::fs::create_dir_all(node.path(folder))?;
    }
    for (file, text) in [
        ("containerd.toml", containerd_config(node, runtime)),
        ("network/10-nexus.conflist", network_config().to_string()),
        ("kubelet.json", kubelet_config(node).to_string()),
        ("kube-proxy.json", proxy_config(node).to_string()),
    ] {
        std::fs::write(node.path(file), text).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

fn containerd_config(node: &Node, runtime: &Runtime) -> String {
    let root = node.path("containerd");
    let root = root.display();
    let network = node.path("network");
    let network = network.display();
    let Runtime { runc, plugins } = runtime;
    // A machine may forbid even root to make a process less likely to be killed, hence restrict_oom_score_adj.
    format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
address = "{CONTAINERD}"

[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{network}"
"#
    )
}

fn network_config() -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "nexus",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods",
                "isGateway": true,
                // A pod may reach itself through its Service.
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/run/pod-addresses",
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn kubelet_config(node: &Node) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "tlsCertFile": node.path("pki/kubelet-server.crt"),
        "tlsPrivateKeyFile": node.path("pki/kubelet-server.key"),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": node.path("pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "volumePluginDir": node.path("volume-plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node.cgroup()),
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        // Like restrict_oom_score_adj: not every root may have more.
        "maxOpenFiles": 20000,
        "oomScoreAdj": 0,
        // The disk is the machine's: others fill it, and images that were loaded once must stay.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
    })
}

fn proxy_config(node: &Node) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": PODS,
        "hostnameOverride": NODE_NAME,
        "oomScoreAdj": 0,
        "clientConnection": {"kubeconfig": node.path("pki/kube-proxy.kubeconfig")},
        // These settings are the whole machine's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "0s"},
    })
}

/// The one of this name.
pub(super) fn named(node: &Node, name: &str) -> Option<Component> {
    let all = [
        containerd,
        etcd,
        apiserver,
        controllers,
        scheduler,
        kubelet,
        proxy,
    ];
    all.into_iter()
        .map(|describe| describe(node))
        .find(|component| component.name == name)
}

pub(super) fn containerd(node: &Node) -> Component {
    component(
        "containerd",
        [option("config", &node.path("containerd.toml"))],
    )
}

pub(super) fn etcd(node: &Node) -> Component {
    component(
        "etcd",
        [
            option("data-dir", &node.path("etcd")),
            // What it keeps need not outlive the machine.
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
        ],
    )
}

pub(super) fn apiserver(node: &Node) -> Component {
    let pki = |name: &str| node.path("pki").join(name);
    component(
        "kube-apiserver",
        [
            format!("--etcd-servers={ETCD}"),
            "--secure-port=6443".into(),
            format!("--advertise-address={NODE_ADDRESS}"),
            option("tls-cert-file", &pki("apiserver.crt")),
            option("tls-private-key-file", &pki("apiserver.key")),
            option("client-ca-file", &pki("ca.crt")),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            option("service-account-key-file", &pki("sa.pub")),
            option("service-account-signing-key-file", &pki("sa.key")),
            format!("--service-account-issuer={ISSUER}"),
            option("kubelet-client-certificate", &pki("apiserver-kubelet.crt")),
            option("kubelet-client-key", &pki("apiserver-kubelet.key")),
            option("kubelet-certificate-authority", &pki("ca.crt")),
            // Nothing resolves the node's name.
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--allow-privileged".into(),
        ],
    )
}

pub(super) fn controllers(node: &Node) -> Component {
    let pki = |name: &str| node.path("pki").join(name);
    component(
        "kube-controller-manager",
        [
            option("kubeconfig", &pki("kube-controller-manager.kubeconfig")),
            "--secure-port=0".into(),
            option("service-account-private-key-file", &pki("sa.key")),
            option("root-ca-file", &pki("ca.crt")),
            option("cluster-signing-cert-file", &pki("ca.crt")),
            option("cluster-signing-key-file", &pki("ca.key")),
            "--use-service-account-credentials".into(),
            "--leader-elect=false".into(),
            // With a small budget it needs seconds for its own service accounts alone.
            "--kube-api-qps=500".into(),
            "--kube-api-burst=1000".into(),
            option("flex-volume-plugin-dir", &node.path("volume-plugins")),
        ],
    )
}

pub(super) fn scheduler(node: &Node) -> Component {
    component(
        "kube-scheduler",
        [
            option("kubeconfig", &node.path("pki/kube-scheduler.kubeconfig")),
            "--secure-port=0".into(),
            "--leader-elect=false".into(),
        ],
    )
}

pub(super) fn kubelet(node: &Node) -> Component {
    component(
        "kubelet",
        [
            option("config", &node.path("kubelet.json")),
            option("kubeconfig", &node.path("pki/kubelet.kubeconfig")),
            option("root-dir", &node.path("kubelet")),
            option("cert-dir", &node.path("kubelet/pki")),
            format!("--hostname-override={NODE_NAME}"),
            format!("--node-ip={NODE_ADDRESS}"),
        ],
    )
}

pub(super) fn proxy(node: &Node) -> Component {
    component(
        "kube-proxy",
        [option("config", &node.path("kube-proxy.json"))],
    )
}

fn component<const N: usize>(name: &'static str, arguments: [String; N]) -> Component {
    Component {
        name,
        arguments: arguments.into(),
    }
}

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}
