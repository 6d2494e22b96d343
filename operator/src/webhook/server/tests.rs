//! A client of our own against the listener, over real sockets.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::routing::post;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::*;
use crate::tls::authority::Authority;
use crate::tls::serving::{Publisher, pair};

const DRAIN: Duration = Duration::from_secs(2);
const LIFE: Duration = Duration::from_secs(1000);
const SOON: Duration = Duration::from_secs(10);

type Body = axum::body::Body;

struct Scene {
    authority: Authority,
    publisher: Publisher,
    address: SocketAddr,
    shutdown: watch::Sender<bool>,
    /// Lets the answer of /slow go.
    go: Arc<Notify>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Scene {
    async fn new() -> Self {
        let (publisher, certificate) = pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let go = Arc::new(Notify::new());
        let waits = go.clone();
        let router = Router::new()
            .route("/echo", post(async |body: Bytes| body))
            .route("/slow", post(async move || waits.notified().await));
        let (shutdown, ending) = watch::channel(false);
        let task = tokio::spawn(serve(listener, router, certificate, ending, DRAIN));
        let scene = Self {
            authority: Authority::issue(Timestamp::now(), LIFE).unwrap(),
            publisher,
            address,
            shutdown,
            go,
            task,
        };
        scene.renew();
        scene
    }

    fn renew(&self) {
        let names = ["a.b.svc".to_owned()];
        let leaf = self.authority.sign(Timestamp::now(), LIFE, &names).unwrap();
        self.publisher.publish(leaf.certified().clone());
    }

    async fn connect(&self, protocol: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("a.b.svc").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }

    async fn http1(&self) -> (http1::SendRequest<Body>, JoinHandle<hyper::Result<()>>) {
        let io = TokioIo::new(self.connect("http/1.1").await);
        let (sender, connection) = http1::handshake(io).await.unwrap();
        (sender, tokio::spawn(connection))
    }
}

fn request(path: &str) -> Request<Body> {
    Request::post(path)
        .header("host", "a.b.svc")
        .body(Body::from("hello"))
        .unwrap()
}

fn closes(answer: &Response<Incoming>) -> bool {
    answer
        .headers()
        .get("connection")
        .is_some_and(|it| it == "close")
}

#[tokio::test]
async fn a_connection_lives_on_until_its_first_answer_after_another_certificate() {
    let scene = Scene::new().await;
    let (mut sender, connection) = scene.http1().await;
    for _ in 0..3 {
        let answer = sender.send_request(request("/echo")).await.unwrap();
        assert_eq!((answer.status(), closes(&answer)), (StatusCode::OK, false));
        sender.ready().await.unwrap();
    }
    scene.renew();
    // A request that is under way meets an open connection, however long it takes.
    sleep(Duration::from_millis(300)).await;
    assert!(!connection.is_finished());
    let answer = sender.send_request(request("/echo")).await.unwrap();
    assert_eq!((answer.status(), closes(&answer)), (StatusCode::OK, true));
    timeout(SOON, connection).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn every_handshake_shows_the_last_certificate() {
    let scene = Scene::new().await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let stream = scene.connect("http/1.1").await;
        let (_, session) = stream.get_ref();
        seen.push(session.peer_certificates().unwrap()[0].to_vec());
        scene.renew();
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn an_http2_connection_is_told_to_go_and_finishes_what_it_has() {
    let scene = Scene::new().await;
    let io = TokioIo::new(scene.connect("h2").await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut other = sender.clone();
    let slow = tokio::spawn(async move { other.send_request(request("/slow")).await });
    let answer = sender.send_request(request("/echo")).await.unwrap();
    assert_eq!(answer.version(), Version::HTTP_2);
    scene.renew();
    sleep(Duration::from_millis(300)).await;
    scene.go.notify_one();
    assert_eq!(slow.await.unwrap().unwrap().status(), StatusCode::OK);
    drop(sender);
    timeout(SOON, connection).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_is_in_flight_at_the_shutdown_is_answered() {
    let scene = Scene::new().await;
    let (mut sender, _connection) = scene.http1().await;
    let slow = tokio::spawn(async move { sender.send_request(request("/slow")).await });
    sleep(Duration::from_millis(200)).await;
    scene.shutdown.send_replace(true);
    sleep(Duration::from_millis(200)).await;
    assert!(
        TcpStream::connect(scene.address).await.is_err(),
        "it accepts no more"
    );
    assert!(!scene.task.is_finished());
    scene.go.notify_one();
    let answer = slow.await.unwrap().unwrap();
    assert_eq!((answer.status(), closes(&answer)), (StatusCode::OK, true));
    timeout(DRAIN / 2, scene.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn an_idle_connection_may_still_ask_during_the_drain_and_does_not_hold_it_up() {
    let scene = Scene::new().await;
    let (mut asks, _one) = scene.http1().await;
    let (mut idles, idle) = scene.http1().await;
    for sender in [&mut asks, &mut idles] {
        sender.send_request(request("/echo")).await.unwrap();
        sender.ready().await.unwrap();
    }
    let begun = Instant::now();
    scene.shutdown.send_replace(true);
    sleep(DRAIN / 4).await;
    let answer = asks.send_request(request("/echo")).await.unwrap();
    assert_eq!((answer.status(), closes(&answer)), (StatusCode::OK, true));
    assert!(!idle.is_finished());
    timeout(SOON, scene.task).await.unwrap().unwrap().unwrap();
    assert!(begun.elapsed() >= DRAIN && begun.elapsed() < 2 * DRAIN);
}

#[tokio::test]
async fn a_client_that_says_nothing_keeps_nobody_out() {
    let scene = Scene::new().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(scene.address).await.unwrap());
    }
    let (mut sender, _connection) = scene.http1().await;
    let answer = timeout(SOON, sender.send_request(request("/echo"))).await;
    assert_eq!(answer.unwrap().unwrap().status(), StatusCode::OK);
}
