//! The Kubernetes control plane that the operator's tests run against: etcd, kube-apiserver, kube-controller-manager
//! and kubectl, helm for the chart, and the definitions of others' objects that are in it. `KUBEBUILDER_ASSETS` names a
//! folder that has the control plane; else it is built once from its Go modules into the user's cache. A cluster with pods
//! takes all of Kubernetes from there, and CoreDNS.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::cache;
use crate::step::{command, repository, run, succeeds};

/// Release of Kubernetes; `tests/cluster/go.mod` names the same.
const KUBERNETES: &str = "v1.35.4";
/// Release of Helm.
const HELM: &str = "v3.22.0";
/// Release of CoreDNS; `tests/cluster/dns/go.mod` names the same.
const COREDNS: &str = "v1.14.7";
/// Release of BuildKit; `tests/images/dockerfile/go.mod` names the same.
const BUILDKIT: &str = "v0.27.1";
/// Definitions of others, by the Go module that has them.
const DEFINITIONS: [Definitions; 2] = [
    Definitions {
        module: "github.com/cert-manager/cert-manager",
        version: "v1.21.2",
        sum: "h1:UWgoYM+KLNtRlqmoWOKjKBOBUPVHeepQ6/ac3ERJW68=",
        folder: "deploy/crds",
        files: [
            "cert-manager.io_certificates.yaml",
            "cert-manager.io_issuers.yaml",
        ],
    },
    Definitions {
        module: "github.com/prometheus-operator/prometheus-operator",
        version: "v0.85.0",
        sum: "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        folder: "example/prometheus-operator-crd",
        files: [
            "monitoring.coreos.com_podmonitors.yaml",
            "monitoring.coreos.com_servicemonitors.yaml",
        ],
    },
];
/// Names that the one program is called by.
const COMPONENTS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];
/// What the tests call.
const NEEDED: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kubectl",
];

/// Kinds that the chart uses of a project which is not here.
struct Definitions {
    module: &'static str,
    version: &'static str,
    /// The module's checksum, as in a go.sum.
    sum: &'static str,
    folder: &'static str,
    files: [&'static str; 2],
}

/// Where the tests find their programs.
pub(crate) struct Assets {
    /// Folder of the control plane.
    pub(crate) folder: PathBuf,
    /// The program `helm`.
    pub(crate) helm: PathBuf,
    /// Folder of others' definitions.
    definitions: PathBuf,
}

impl Assets {
    /// Variables that tell the tests.
    pub(crate) fn environment(&self) -> [(&'static str, OsString); 3] {
        [
            ("KUBEBUILDER_ASSETS", self.folder.clone().into()),
            ("NEXUS_HELM", self.helm.clone().into()),
            ("NEXUS_DEFINITIONS", self.definitions.clone().into()),
        ]
    }
}

/// Finds or builds them.
pub(crate) fn assets() -> anyhow::Result<Assets> {
    let folder = folder_with(&NEEDED)?;
    Ok(Assets {
        folder,
        helm: helm()?,
        definitions: definitions()?,
    })
}

/// The program `helm`: the machine's own if there is one.
pub(crate) fn helm() -> anyhow::Result<PathBuf> {
    Ok(if succeeds(&mut command("helm", &["version"])) {
        "helm".into()
    } else {
        built("helm", HELM, build_helm)?.join("helm")
    })
}

fn definitions() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("NEXUS_DEFINITIONS") {
        return Ok(given.into());
    }
    let versions = DEFINITIONS.map(|it| it.version).join("-");
    built("definitions", &versions, |folder| {
        DEFINITIONS.iter().try_for_each(|it| it.copy_to(folder))
    })
}

impl Definitions {
    /// Takes them out of the module, whose dependencies are not needed.
    fn copy_to(&self, folder: &Path) -> anyhow::Result<()> {
        let module = format!("{}@{}", self.module, self.version);
        let output = command("go", &["mod", "download", "-json", &module])
            .output()
            .context("cannot start go")?;
        let said: Value = serde_json::from_slice(&output.stdout).with_context(|| {
            let why = String::from_utf8_lossy(&output.stderr);
            format!("`go mod download` of {module}: {why}")
        })?;
        if let Some(error) = said["Error"].as_str() {
            bail!("{error}");
        }
        ensure!(
            said["Sum"] == self.sum,
            "{module} has the checksum {} and not {}",
            said["Sum"],
            self.sum
        );
        let sources = said["Dir"]
            .as_str()
            .context("`go mod download` says no Dir")?;
        let sources = Path::new(sources).join(self.folder);
        for file in self.files {
            std::fs::copy(sources.join(file), folder.join(file))
                .with_context(|| format!("{module} has no {}/{file}", self.folder))?;
        }
        Ok(())
    }
}

/// Folder of all components of Kubernetes.
pub(crate) fn kubernetes() -> anyhow::Result<PathBuf> {
    folder_with(&COMPONENTS)
}

/// Fails with what is missing where a folder was given for the control plane that is too little for a cluster with pods.
pub(crate) fn enough_for_pods() -> anyhow::Result<()> {
    let Some(given) = std::env::var_os("KUBEBUILDER_ASSETS") else {
        return Ok(());
    };
    kubernetes()?;
    let there = PathBuf::from(given).join("coredns").exists();
    if !there && !cache::folder("coredns", COREDNS)?.exists() && !has_go() {
        bail!("there is no coredns: install Go 1.25 or newer, or put one into KUBEBUILDER_ASSETS");
    }
    Ok(())
}

/// The program `coredns`: beside the components if it is there, else of the cache.
pub(crate) fn coredns() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("KUBEBUILDER_ASSETS") {
        let program = PathBuf::from(given).join("coredns");
        if program.exists() {
            return Ok(program);
        }
    }
    Ok(built("coredns", COREDNS, build_coredns)?.join("coredns"))
}

/// The program of `tests/images/dockerfile`.
pub(crate) fn dockerfile_reader() -> anyhow::Result<PathBuf> {
    Ok(built("dockerfile", BUILDKIT, build_dockerfile_reader)?.join("dockerfile"))
}

fn folder_with(programs: &[&str]) -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os("KUBEBUILDER_ASSETS") {
        Some(given) => given.into(),
        None => built("kubernetes", KUBERNETES, build_kubernetes)?,
    };
    for program in programs {
        if !folder.join(program).exists() {
            bail!(
                "{} has no {program}; unset KUBEBUILDER_ASSETS to have all of them built",
                folder.display()
            );
        }
    }
    Ok(folder)
}

fn has_go() -> bool {
    succeeds(&mut command("go", &["version"]))
}

/// The folder of a program in the cache; `build` fills it if there is none for the version and the sources.
fn built(
    name: &str,
    version: &str,
    build: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    if !cache::folder(name, version)?.exists() && !has_go() {
        bail!(
            "{name} {version} is made from Go modules: install Go 1.25 or newer, or set KUBEBUILDER_ASSETS and NEXUS_DEFINITIONS and put helm on the PATH"
        );
    }
    cache::filled(name, version, build)
}

fn build_kubernetes(folder: &Path) -> anyhow::Result<()> {
    // Without these every component takes itself for a development build and names no version.
    let minor = KUBERNETES.split('.').nth(1).unwrap_or_default();
    let flags = [
        ("gitVersion", KUBERNETES),
        ("gitMajor", "1"),
        ("gitMinor", minor),
        ("gitTreeState", "clean"),
    ]
    .map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}"))
    .join(" ");
    let program = folder.join("kubernetes");
    run(command("go", &["build", "-trimpath", "-ldflags"])
        .arg(format!("-s -w {flags}"))
        .arg("-o")
        .arg(&program)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .current_dir(repository().join("tests/cluster")))?;
    for component in COMPONENTS {
        std::os::unix::fs::symlink("kubernetes", folder.join(component))?;
    }
    Ok(())
}

fn build_coredns(folder: &Path) -> anyhow::Result<()> {
    build_module("tests/cluster/dns", &folder.join("coredns"))
}

fn build_dockerfile_reader(folder: &Path) -> anyhow::Result<()> {
    build_module("tests/images/dockerfile", &folder.join("dockerfile"))
}

/// Builds the program of a Go module of ours.
fn build_module(module: &str, program: &Path) -> anyhow::Result<()> {
    let build = ["build", "-trimpath", "-ldflags", "-s -w", "-o"];
    run(command("go", &build)
        .arg(program)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .current_dir(repository().join(module)))
}

fn build_helm(folder: &Path) -> anyhow::Result<()> {
    let package = format!("helm.sh/helm/v3/cmd/helm@{HELM}");
    run(
        command("go", &["install", "-trimpath", "-ldflags", "-s -w"])
            .arg(package)
            .env("CGO_ENABLED", "0")
            .env("GOBIN", folder),
    )
}
