//! Through an egress proxy of the test's own, which notes what it was asked and connects wherever the test says.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use nexus_crds::matcher::Upstream;
use nexus_crds::matcher::UpstreamProtocol::{Auto, H2c, Http2};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use super::names::{ips, scripted};
use super::over_tls::{Authority, over_tls};
use super::support::*;
use crate::error::{Code, ProxyError};
use crate::upstream::Settings;
use crate::upstream::egress::EgressProxy;

/// A public address that nobody here connects to: only the proxy is asked for it.
pub(super) const PUBLIC: &str = "93.184.216.34";

/// Every head the proxy got.
pub(super) type Asked = Arc<Mutex<Vec<String>>>;

/// A proxy that answers `answer`, and where that is a success goes on to `target`.
pub(super) async fn proxy(target: SocketAddr, answer: &'static str) -> (Server, Asked) {
    let asked = Asked::default();
    let heads = Arc::clone(&asked);
    let server = raw(move |_, mut stream| {
        let heads = Arc::clone(&heads);
        async move {
            let head = read_head(&mut stream).await;
            heads.lock().unwrap().push(head);
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.contains(" 200 ") {
                let mut onward = TcpStream::connect(target).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut onward).await;
            }
        }
    })
    .await;
    (server, asked)
}

/// Settings with the proxy, the list of exceptions and the credentials' file.
pub(super) fn through(proxy: SocketAddr, bypass: &str, credentials: Option<&Path>) -> Settings {
    let entries = [bypass.to_owned()];
    let url = format!("http://{proxy}");
    let egress = EgressProxy::new(&url, &entries, credentials, None).unwrap();
    Settings {
        egress: Some(Arc::new(egress)),
        ..Settings::default()
    }
}

/// A route to a name that may only lead to public addresses.
pub(super) fn public(port: u16) -> Upstream {
    Upstream {
        host: "api.example".into(),
        port,
        allow_private_addresses: false,
        ..upstream(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Auto)
    }
}

pub(super) const OK: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

#[tokio::test]
async fn the_proxy_is_asked_for_the_judged_address_and_for_nothing_else() {
    let server = serve(Options::default(), number).await;
    let (proxy, asked) = proxy(server.addr, OK).await;
    for protocol in [Auto, H2c] {
        let settings = Settings {
            resolver: scripted(|_| ips(&[PUBLIC])),
            ..through(proxy.addr, "", None)
        };
        let target = Upstream {
            protocol,
            ..public(8443)
        };
        let client = client_with(settings, &target);
        client.text().await;
        client.text().await;
    }
    assert_eq!(
        server.accepted(),
        2,
        "connections are kept as without a proxy"
    );
    let connect = format!("CONNECT {PUBLIC}:8443 HTTP/1.1\r\nhost: {PUBLIC}:8443\r\n\r\n");
    assert_eq!(*asked.lock().unwrap(), [connect.clone(), connect]);
}

#[tokio::test]
async fn ipv6_addresses_are_asked_for_in_brackets() {
    let server = serve(Options::default(), number).await;
    let (proxy, asked) = proxy(server.addr, OK).await;
    let settings = Settings {
        resolver: scripted(|_| ips(&["2606:4700::1111"])),
        ..through(proxy.addr, "", None)
    };
    client_with(settings, &public(443)).text().await;
    let asked = asked.lock().unwrap().concat();
    assert!(
        asked.starts_with("CONNECT [2606:4700::1111]:443 HTTP/1.1\r\n"),
        "{asked}"
    );
}

#[tokio::test]
async fn addresses_are_judged_before_the_proxy_is_asked() {
    let (proxy, asked) = proxy("127.0.0.1:1".parse().unwrap(), OK).await;
    for address in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::1",
        "fd00:ec2::254",
    ] {
        let settings = Settings {
            resolver: scripted(move |_| ips(&[address])),
            ..through(proxy.addr, "", None)
        };
        let failed = client_with(settings, &public(443)).get().await.unwrap_err();
        assert_eq!(failed.code(), Code::UpstreamRefusedAddress, "{address}");
    }
    assert_eq!(proxy.accepted(), 0);
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn addresses_are_tried_in_turn_until_the_proxy_reaches_one() {
    let server = serve(Options::default(), number).await;
    let upstream = server.addr;
    let asked = Asked::default();
    let heads = Arc::clone(&asked);
    let proxy = raw(move |number, mut stream| {
        let heads = Arc::clone(&heads);
        async move {
            let head = read_head(&mut stream).await;
            heads.lock().unwrap().push(head);
            if number == 1 {
                let answer = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 3\r\n\r\nno\n";
                stream.write_all(answer).await.unwrap();
            } else if number == 3 {
                stream.write_all(OK.as_bytes()).await.unwrap();
                let mut onward = TcpStream::connect(upstream).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut onward).await;
            }
        }
    })
    .await;
    let settings = Settings {
        resolver: scripted(|_| ips(&["1.0.0.1", "1.0.0.2", "1.0.0.3", "1.0.0.4"])),
        ..through(proxy.addr, "", None)
    };
    assert_eq!(client_with(settings, &public(80)).text().await, "1");
    let asked = asked.lock().unwrap();
    let first_lines: Vec<_> = asked
        .iter()
        .map(|head| head.lines().next().unwrap())
        .collect();
    assert_eq!(
        first_lines,
        [
            "CONNECT 1.0.0.1:80 HTTP/1.1",
            "CONNECT 1.0.0.2:80 HTTP/1.1",
            "CONNECT 1.0.0.3:80 HTTP/1.1"
        ]
    );
}

#[tokio::test]
async fn an_address_that_the_proxy_hangs_at_gets_company() {
    let server = serve(Options::default(), number).await;
    let onward = server.addr;
    let proxy = raw(move |number, mut stream| async move {
        read_head(&mut stream).await;
        if number == 1 {
            let _open = stream;
            return std::future::pending().await;
        }
        stream.write_all(OK.as_bytes()).await.unwrap();
        let mut onward = TcpStream::connect(onward).await.unwrap();
        let _ = copy_bidirectional(&mut stream, &mut onward).await;
    })
    .await;
    let settings = Settings {
        resolver: scripted(|_| ips(&["1.0.0.1", "1.0.0.2"])),
        ..through(proxy.addr, "", None)
    };
    assert_eq!(client_with(settings, &public(80)).text().await, "1");
    assert_eq!(proxy.accepted(), 2);
}

#[tokio::test]
async fn what_comes_with_the_proxys_answer_is_the_upstreams() {
    // An HTTP/2 server may speak first, and the proxy may send that along.
    let answer = "HTTP/1.1 200 OK\r\nvia: proxy\r\n\r\n";
    let server = serve(Options::default(), number).await;
    let upstream_addr = server.addr;
    let proxy = raw(move |_, mut stream| async move {
        read_head(&mut stream).await;
        let mut onward = TcpStream::connect(upstream_addr).await.unwrap();
        onward
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut settings = vec![0; 9];
        onward.read_exact(&mut settings).await.unwrap();
        let length = usize::from(settings[2]);
        settings.resize(9 + length, 0);
        onward.read_exact(&mut settings[9..]).await.unwrap();
        stream
            .write_all(&[answer.as_bytes(), &settings].concat())
            .await
            .unwrap();
        // The preface went ahead.
        stream.read_exact(&mut [0; 24]).await.unwrap();
        let _ = copy_bidirectional(&mut stream, &mut onward).await;
    })
    .await;
    let client = client_with(through(proxy.addr, "", None), &upstream(server.addr, H2c));
    assert_eq!(client.text().await, "1");
}

#[tokio::test]
async fn listed_upstreams_are_connected_to_directly() {
    let server = serve(Options::default(), number).await;
    let (proxy, asked) = proxy(server.addr, OK).await;
    let port = server.addr.port();
    for (host, listed, direct) in [
        ("api.example", "api.example".to_owned(), true),
        ("api.example", ".example".to_owned(), true),
        ("api.example", format!("*.example:{port}"), true),
        ("api.example", "*.example:1".to_owned(), false),
        ("api.example", "127.0.0.0/8".to_owned(), true),
        ("api.example", "10.0.0.0/8".to_owned(), false),
        ("127.0.0.1", "127.0.0.1".to_owned(), true),
        ("127.0.0.1", "*".to_owned(), true),
    ] {
        let settings = Settings {
            resolver: scripted(|_| ips(&["127.0.0.1"])),
            ..through(proxy.addr, &listed, None)
        };
        let target = Upstream {
            host: host.into(),
            ..upstream(server.addr, Auto)
        };
        asked.lock().unwrap().clear();
        client_with(settings, &target).text().await;
        let asked = asked.lock().unwrap().len();
        assert_eq!(asked, usize::from(!direct), "{host} with {listed}");
    }
}

#[tokio::test]
async fn a_proxy_over_tls_is_trusted_by_its_own_ca_and_carries_the_upstreams_tls() {
    let (theirs, ours) = (Authority::new("proxy"), Authority::new("upstream"));
    let server = serve(ours.server("localhost", &["h2"], false), number).await;
    let acceptor = theirs
        .server("localhost", &["http/1.1"], false)
        .tls
        .unwrap();
    let onward = server.addr;
    let proxy = raw(move |_, stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(OK.as_bytes()).await.unwrap();
            let mut onward = TcpStream::connect(onward).await.unwrap();
            let _ = copy_bidirectional(&mut stream, &mut onward).await;
        }
    })
    .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let client = |ca: &Authority| {
        std::fs::write(file.path(), &*ca.pem()).unwrap();
        let url = format!("https://localhost:{}", proxy.addr.port());
        let egress = EgressProxy::new(&url, &[], None, Some(file.path())).unwrap();
        let settings = Settings {
            egress: Some(Arc::new(egress)),
            resolver: scripted(|_| ips(&["127.0.0.1"])),
            ..Settings::default()
        };
        client_with(settings, &over_tls(&server, Http2, Some(ours.pem())))
    };
    assert_eq!(client(&theirs).text().await, "1");
    let failed = client(&ours).get().await.unwrap_err();
    assert_eq!(failed.code(), Code::UpstreamUnreachable);
    assert_eq!(
        failed.detail(),
        "the egress proxy's certificate is not valid: unknown issuer (for a private CA set --egress-proxy-ca)"
    );
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn credentials_are_read_for_every_connection_and_only_the_proxy_gets_them() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "user:one\n").unwrap();
    let server = raw(|_, mut stream| async move {
        let head = read_head(&mut stream).await;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{head}",
            head.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let (proxy, asked) = proxy(server.addr, OK).await;
    let settings = through(proxy.addr, "", Some(file.path()));
    let client = client_with(settings, &upstream(server.addr, Auto));
    let first = client.text().await;
    std::fs::write(file.path(), "user:two").unwrap();
    let second = client.text().await;
    assert!(
        !(first + &second)
            .to_ascii_lowercase()
            .contains("proxy-auth")
    );
    let heads = asked.lock().unwrap().clone();
    // `user:one` and `user:two` in base64.
    assert!(
        heads[0].contains("\r\nproxy-authorization: Basic dXNlcjpvbmU=\r\n"),
        "{}",
        heads[0]
    );
    assert!(
        heads[1].contains("\r\nproxy-authorization: Basic dXNlcjp0d28=\r\n"),
        "{}",
        heads[1]
    );

    std::fs::write(file.path(), "").unwrap();
    let failed = ProxyError::from(client.get().await.unwrap_err());
    assert_eq!(failed.code, Code::UpstreamUnreachable);
    assert_eq!(
        failed.detail,
        "the sidecar's file of --egress-proxy-credentials cannot be used"
    );
    let path = file.path().display().to_string();
    assert!(failed.internal.unwrap().contains(&path));
}
