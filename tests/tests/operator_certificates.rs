//! The operator's own certificates on a real control plane: issued, rotated while pods are created, repaired.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine};
use nexus_tests::admission::{Calls, Creator};
use nexus_tests::operator::NAMESPACE;
use nexus_tests::tls::{Authority, Leaf};
use nexus_tests::turn::Turn;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const SECRETS: [&str; 2] = ["nexus-operator-ca", "nexus-operator-webhook-tls"];
const CONFIGURATIONS: [&str; 2] = ["mutating", "validating"];
/// Lives that let a test see a whole rotation.
const SHORT: [&str; 4] = [
    "--ca-lifetime=20s",
    "--ca-publish-before=4s",
    "--ca-keep-after=6s",
    "--certificate-lifetime=8s",
];
/// Of a serving certificate, where nothing else is said.
const LIFE: Duration = Duration::from_hours(720);
/// Pods that are still created once the first authority is gone, and the one that is being created then.
const AFTERWARDS: usize = 11;
const LIMIT: Duration = Duration::from_mins(1);

/// The names of Secrets and webhook configurations are the cluster's.
struct Scene(Turn);

impl Deref for Scene {
    type Target = Turn;

    fn deref(&self) -> &Turn {
        &self.0
    }
}

impl Scene {
    async fn new() -> Self {
        let scene = Self(Turn::behind_forwarder(&[]).await);
        for secret in SECRETS {
            scene.admin.delete(&secret_path(secret), &Value::Null).await;
        }
        scene
    }

    async fn secret(&self, name: &str) -> Option<Value> {
        let answer = self.admin.get(&secret_path(name)).await;
        (answer.code == 200).then_some(answer.body)
    }

    async fn configuration(&self, kind: &str) -> Value {
        let answer = self.admin.get(&configuration_path(kind)).await;
        assert_eq!(answer.code, 200, "{}", answer.body);
        answer.body
    }

    /// The certificates of every caBundle, which are the same.
    async fn bundle(&self) -> Vec<CertificateDer<'static>> {
        let configuration = self.configuration("mutating").await;
        bundle_of(&configuration["webhooks"][0])
    }

    /// Waits until `condition` says so of the caBundles' certificates.
    async fn bundled(
        &self,
        what: &str,
        condition: impl Fn(&[CertificateDer<'static>]) -> bool,
    ) -> Vec<CertificateDer<'static>> {
        let start = Instant::now();
        loop {
            let mut bundles = Vec::new();
            for kind in CONFIGURATIONS {
                let configuration = self.configuration(kind).await;
                let webhooks = configuration["webhooks"].as_array().unwrap();
                bundles.extend(webhooks.iter().map(bundle_of));
            }
            if bundles
                .iter()
                .all(|bundle| *bundle == bundles[0] && condition(bundle))
            {
                return bundles.remove(0);
            }
            assert!(
                start.elapsed() < LIMIT,
                "waited in vain for {what}: {bundles:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The certificate that a port shows to a client with this caBundle.
    async fn shown(
        &self,
        port: u16,
        bundle: &[CertificateDer<'static>],
    ) -> Result<CertificateDer<'static>, String> {
        let mut roots = RootCertStore::empty();
        for authority in bundle {
            roots
                .add(authority.clone())
                .map_err(|error| error.to_string())?;
        }
        handshake(port, roots, &format!("nexus-operator.{NAMESPACE}.svc")).await
    }
}

async fn handshake(
    port: u16,
    roots: RootCertStore,
    name: &str,
) -> Result<CertificateDer<'static>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let text = |error: std::io::Error| error.to_string();
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .map_err(text)?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(text)?;
    let (_, session) = stream.get_ref();
    Ok(session.peer_certificates().unwrap()[0].clone().into_owned())
}

fn secret_path(name: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}")
}

fn configuration_path(kind: &str) -> String {
    format!("/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations/nexus-operator")
}

fn bundle_of(webhook: &Value) -> Vec<CertificateDer<'static>> {
    let bundle = webhook["clientConfig"]["caBundle"].as_str().unwrap_or("");
    let pem = BASE64_STANDARD.decode(bundle).unwrap();
    CertificateDer::pem_slice_iter(&pem)
        .filter_map(Result::ok)
        .collect()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_rotation_while_pods_are_created_fails_not_one_call() {
    let scene = Scene::new().await;
    let namespace = scene.cluster.namespace("rotation");
    let port = free_port();
    scene.forwarder().lead_to(&[port]);
    let operator = scene.installation.start_with("operator-0", port, &SHORT);
    let first = scene.bundle().await;
    assert_eq!(first.len(), 1);
    let before = Calls::of(scene.cluster);
    // One after the other, so that the API server has one connection for each certificate it meets.
    let creator = Creator::start(&scene.admin, &namespace, "pod");

    let (mut leaves, mut authorities) = (BTreeSet::new(), BTreeMap::new());
    let start = Instant::now();
    loop {
        // What an API server that has just read the caBundle thinks of the certificate.
        let bundle = scene.bundle().await;
        for authority in &bundle {
            authorities
                .entry(authority.to_vec())
                .or_insert_with(Instant::now);
        }
        let leaf = scene.shown(port, &bundle).await;
        let leaf = leaf.unwrap_or_else(|error| panic!("{error}\n{}", operator.log()));
        if leaves.insert(leaf.to_vec()) {
            for authority in bundle.iter().filter(|it| **it != first[0]) {
                // Four seconds, of which the test may have missed the first.
                let known = authorities[authority.as_ref()].elapsed();
                let signs = scene
                    .shown(port, std::slice::from_ref(authority))
                    .await
                    .is_ok();
                assert!(
                    !signs || known >= Duration::from_secs(3),
                    "it signs after {known:?}"
                );
            }
        }
        if !bundle.contains(&first[0]) && start.elapsed() > Duration::from_secs(15) {
            break;
        }
        assert!(
            start.elapsed() < LIMIT,
            "the first authority stays: {}",
            operator.log()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Also those pods are admitted whose calls come after the first authority's end.
    let enough = creator.created() + AFTERWARDS;
    let start = Instant::now();
    while creator.created() < enough {
        assert!(start.elapsed() < LIMIT, "{}", operator.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let created = creator.finish().await;
    let calls = Calls::of(scene.cluster);
    assert_eq!(calls.failed, before.failed);
    assert!(calls.admitted - before.admitted >= created);
    assert!(authorities.len() >= 2, "{}", authorities.len());
    assert!(leaves.len() >= 3, "{}", leaves.len());
    let connections = scene.forwarder().connections(port);
    assert!(
        connections >= leaves.len(),
        "{connections} connections of the API server for {} certificates",
        leaves.len()
    );
    assert!(
        connections < created / 2,
        "{connections} connections for {created} pods"
    );
    assert!(
        operator.metric(
            "nexus_operator_certificate_expiration_timestamp_seconds",
            &["Ca"]
        ) > 0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_agree() {
    let scene = Scene::new().await;
    let ports = [free_port(), free_port()];
    scene.forwarder().lead_to(&ports);
    let operators = ["operator-0", "operator-1"].into_iter().zip(ports);
    let operators: Vec<_> = operators
        .map(|(identity, port)| scene.installation.spawn(identity, port, &[]))
        .collect();
    for operator in &operators {
        operator.wait_until_ready();
    }
    let bundle = scene.bundle().await;
    assert_eq!(bundle.len(), 1);
    let shown = [
        scene.shown(ports[0], &bundle).await.unwrap(),
        scene.shown(ports[1], &bundle).await.unwrap(),
    ];
    assert_eq!(shown[0], shown[1]);
    // Once settled, nobody writes.
    let mut versions = Vec::new();
    for pause in [0, 3] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        let mut seen = Vec::new();
        for name in SECRETS {
            seen.push(scene.secret(name).await.unwrap()["metadata"]["resourceVersion"].clone());
        }
        for kind in CONFIGURATIONS {
            seen.push(scene.configuration(kind).await["metadata"]["resourceVersion"].clone());
        }
        versions.push(seen);
    }
    assert_eq!(versions[0], versions[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_somebody_overwrites_is_put_back() {
    let scene = Scene::new().await;
    let port = free_port();
    scene.forwarder().lead_to(&[port]);
    let operator = scene.installation.start_with("operator-0", port, &[]);
    let bundle = scene.bundle().await;
    // Issued a moment ago, for its usual life.
    let ends = operator.metric(
        "nexus_operator_certificate_expiration_timestamp_seconds",
        &["Serving"],
    );
    let left = ends
        - SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
    let life = LIFE.as_secs_f64();
    assert!(left > life - 300.0 && left <= life, "{left} of {life}");
    let other = BASE64_STANDARD.encode(Authority::new().pem());
    for kind in CONFIGURATIONS {
        for value in [json!(other), Value::Null] {
            let webhooks = scene.configuration(kind).await["webhooks"].clone();
            let patches: Vec<_> = webhooks
                .as_array()
                .unwrap()
                .iter()
                .map(|it| json!({"name": it["name"], "clientConfig": {"caBundle": value}}))
                .collect();
            let patch = json!({"webhooks": patches});
            let answer = scene
                .admin
                .strategic(&configuration_path(kind), &patch)
                .await;
            assert_eq!(answer.code, 200, "{}", answer.body);
            scene
                .bundled("the bundle that was overwritten", |it| it == bundle)
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_somebody_damages_are_repaired_while_pods_are_created() {
    let scene = Scene::new().await;
    let namespace = scene.cluster.namespace("damage");
    let port = free_port();
    scene.forwarder().lead_to(&[port]);
    let before = Calls::of(scene.cluster);
    let arguments = ["--ca-publish-before=2s", "--ca-keep-after=2s"];
    let operator = scene
        .installation
        .start_with("operator-0", port, &arguments);
    let first = scene.bundle().await;
    let shown = scene.shown(port, &first).await.unwrap();
    let creator = Creator::start(&scene.admin, &namespace, "pod");

    // The authority's key is lost: a new one begins, and the old one stays trusted until its certificate is gone.
    let patch = json!({"data": {"tls.key": BASE64_STANDARD.encode("no key")}});
    let answer = scene.admin.merge(&secret_path(SECRETS[0]), &patch).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    scene
        .bundled("both authorities", |it| {
            it.len() == 2 && it.contains(&first[0])
        })
        .await;
    let second = scene
        .bundled("the new authority alone", |it| it.len() == 1 && it != first)
        .await;
    assert_ne!(scene.shown(port, &second).await.unwrap(), shown);

    // The serving certificate is lost, damaged, and of a type that cannot be changed.
    let foreign = json!({
        "metadata": {"name": SECRETS[1]},
        "type": "Opaque",
        "immutable": true,
        "stringData": {"tls.crt": "no certificate"},
    });
    let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    for round in ["gone", "foreign"] {
        let shown = scene.shown(port, &second).await.unwrap();
        scene
            .admin
            .delete(&secret_path(SECRETS[1]), &Value::Null)
            .await;
        if round == "foreign" {
            // Either this is first or the operator; then the operator's is replaced.
            let answer = scene.admin.post(&secrets, &foreign).await;
            assert!([201, 409].contains(&answer.code), "{}", answer.body);
        }
        let start = Instant::now();
        while scene.shown(port, &second).await.unwrap() == shown {
            assert!(start.elapsed() < LIMIT, "{round}: {}", operator.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let secret = scene.secret(SECRETS[1]).await.unwrap();
        assert_eq!(secret["type"], "kubernetes.io/tls", "{round}");
    }
    creator.finish().await;
    assert_eq!(Calls::of(scene.cluster).failed, before.failed);
    let log = operator.log();
    assert!(log.contains(SECRETS[0]) && log.contains("tls.key"), "{log}");
}

/// Writes a certificate as the kubelet writes a Secret's volume.
fn mount(folder: &Path, number: u32, authority: &Authority) {
    let (certificate, key) = authority.serving(Leaf::Valid);
    let version = folder.join(format!("..{number}"));
    std::fs::create_dir(&version).unwrap();
    std::fs::write(version.join("tls.crt"), certificate).unwrap();
    std::fs::write(version.join("tls.key"), key).unwrap();
    symlink(format!("..{number}"), folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_from_files_is_swapped_and_nothing_else_is_touched() {
    let scene = Scene::new().await;
    let before = scene.bundle().await;
    let folder = scene.cluster.scratch("cert-manager");
    let authority = Authority::new();
    mount(&folder, 1, &authority);
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), folder.join(name)).unwrap();
    }
    let port = free_port();
    let arguments = [
        format!("--tls-cert={}", folder.join("tls.crt").display()),
        format!("--tls-key={}", folder.join("tls.key").display()),
    ];
    let arguments = arguments.each_ref().map(String::as_str);
    let operator = scene
        .installation
        .start_with("operator-0", port, &arguments);
    let roots = || {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
            .unwrap();
        roots
    };
    let mut seen = handshake(port, roots(), "localhost").await.unwrap();
    for number in 2..=3 {
        mount(&folder, number, &authority);
        let start = Instant::now();
        loop {
            let shown = handshake(port, roots(), "localhost").await.unwrap();
            if shown != seen {
                seen = shown;
                break;
            }
            assert!(start.elapsed() < LIMIT, "{}", operator.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    for name in SECRETS {
        assert!(scene.secret(name).await.is_none(), "{name}");
    }
    assert_eq!(scene.bundle().await, before);
}
