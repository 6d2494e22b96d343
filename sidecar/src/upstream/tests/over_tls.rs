use std::sync::Arc;
use std::time::Duration;

use nexus_crds::matcher::{Upstream, UpstreamProtocol};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::support::*;
use crate::error::{Code, ProxyError};
use crate::upstream::{ConnectError, SendError};

pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn pem(&self) -> Arc<str> {
        self.0.pem().into()
    }

    pub(super) fn server(&self, name: &str, alpn: &[&str], expired: bool) -> Options {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Options {
            tls: Some(TlsAcceptor::from(Arc::new(config))),
            ..Options::default()
        }
    }
}

pub(super) fn over_tls(
    server: &Server,
    protocol: UpstreamProtocol,
    ca: Option<Arc<str>>,
) -> Upstream {
    Upstream {
        tls: true,
        host: "localhost".into(),
        ca_bundle: ca,
        ..upstream(server.addr, protocol)
    }
}

async fn version(_: usize, request: http::Request<hyper::body::Incoming>) -> http::Response<Body> {
    http::Response::new(full(format!("{:?}", request.version())))
}

#[tokio::test]
async fn alpn_chooses_the_version_the_route_allows_and_the_upstream_prefers() {
    use UpstreamProtocol::{Auto, Http1, Http2};
    let ca = Authority::new("one");
    let both: &[&str] = &["h2", "http/1.1"];
    for (protocol, offered, expected) in [
        (Auto, both, "HTTP/2.0"),
        (Auto, &["http/1.1"], "HTTP/1.1"),
        (Auto, &[], "HTTP/1.1"),
        (Http1, both, "HTTP/1.1"),
        (Http1, &[], "HTTP/1.1"),
        (Http2, both, "HTTP/2.0"),
    ] {
        let server = serve(ca.server("localhost", offered, false), version).await;
        let client = client(&over_tls(&server, protocol, Some(ca.pem())));
        for _ in 0..3 {
            assert_eq!(client.text().await, expected, "{protocol:?} {offered:?}");
        }
        assert_eq!(server.accepted(), 1, "{protocol:?} {offered:?}");
    }
}

#[tokio::test]
async fn http2_is_not_replaced_by_another_version_where_the_route_demands_it() {
    let ca = Authority::new("one");
    for offered in [&["http/1.1"][..], &[]] {
        let server = serve(ca.server("localhost", offered, false), version).await;
        let client = client(&over_tls(&server, UpstreamProtocol::Http2, Some(ca.pem())));
        let failed = client.get().await.unwrap_err();
        assert_eq!(failed.code(), Code::UpstreamUnreachable);
        assert!(
            failed.detail().contains("does not offer"),
            "{}",
            failed.detail()
        );
    }
}

#[tokio::test]
async fn an_invalid_certificate_is_refused_and_the_reason_told() {
    let (ca, other) = (Authority::new("one"), Authority::new("another"));
    for (options, trusted, reason) in [
        (
            ca.server("localhost", &[], false),
            Some(other.pem()),
            "unknown issuer (for a private CA set caBundle)",
        ),
        (
            ca.server("localhost", &[], false),
            None,
            "unknown issuer (for a private CA set caBundle)",
        ),
        (
            ca.server("elsewhere.example", &[], false),
            Some(ca.pem()),
            "issued for another name",
        ),
        (ca.server("localhost", &[], true), Some(ca.pem()), "expired"),
    ] {
        let server = serve(options, version).await;
        let client = client(&over_tls(&server, UpstreamProtocol::Auto, trusted));
        let failed = ProxyError::from(client.get().await.unwrap_err());
        assert_eq!(failed.code, Code::UpstreamUnreachable);
        assert_eq!(
            failed.detail,
            format!("the upstream's certificate is not valid: {reason}")
        );
        assert!(
            failed
                .internal
                .unwrap()
                .contains("invalid peer certificate")
        );
    }
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_named_as_such() {
    let server = raw(|_, mut stream| async move {
        use tokio::io::AsyncWriteExt;
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    })
    .await;
    let client = client(&over_tls(&server, UpstreamProtocol::Auto, None));
    let failed = client.get().await.unwrap_err();
    assert_eq!(
        failed.detail(),
        "the upstream does not speak TLS on this port"
    );
}

#[tokio::test]
async fn a_cold_burst_at_an_unknown_version_costs_one_http2_connection() {
    let ca = Authority::new("one");
    let server = serve(ca.server("localhost", &["h2", "http/1.1"], false), number).await;
    let client = client(&over_tls(&server, UpstreamProtocol::Auto, Some(ca.pem())));
    let mut requests = JoinSet::new();
    for _ in 0..150 {
        let client = client.clone();
        requests.spawn(async move { client.text().await });
    }
    assert!(requests.join_all().await.iter().all(|number| number == "1"));
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_cold_burst_at_an_unknown_version_opens_http1_connections_side_by_side() {
    let ca = Authority::new("one");
    let server = serve(
        ca.server("localhost", &["http/1.1"], false),
        |number, _| async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            http::Response::new(full(number.to_string()))
        },
    )
    .await;
    let client = client(&over_tls(&server, UpstreamProtocol::Auto, Some(ca.pem())));
    let mut requests = JoinSet::new();
    for _ in 0..10 {
        let client = client.clone();
        requests.spawn(async move { client.text().await });
    }
    let all = tokio::time::timeout(Duration::from_secs(3), requests.join_all()).await;
    assert_eq!(all.unwrap().len(), 10);
    assert_eq!(server.accepted(), 10);
}

#[tokio::test]
async fn a_failed_attempt_at_an_unknown_version_is_shared() {
    let (ca, other) = (Authority::new("one"), Authority::new("another"));
    let server = serve(ca.server("localhost", &[], false), version).await;
    let client = client(&over_tls(
        &server,
        UpstreamProtocol::Auto,
        Some(other.pem()),
    ));
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let client = client.clone();
        requests.spawn(async move { client.get().await.unwrap_err() });
    }
    for failed in requests.join_all().await {
        let SendError::Connect(reason) = failed else {
            panic!("{failed:?}")
        };
        assert!(matches!(*reason, ConnectError::Handshake(_)), "{reason:?}");
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn an_upstream_that_is_silent_in_the_handshake_runs_into_the_connect_timeout() {
    let server = raw(|_, stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let client = client(&over_tls(&server, UpstreamProtocol::Auto, None));
    let limit = Duration::from_millis(100);
    let sent = client.pool.send(request("GET", empty()), limit).await;
    assert_eq!(sent.unwrap_err().code(), Code::UpstreamTimeout);
    assert_eq!(server.accepted(), 1);
}
