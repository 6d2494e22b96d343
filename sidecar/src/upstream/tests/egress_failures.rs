//! Egress proxies that do not connect: what the agent is told, and that it is told in time.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nexus_crds::matcher::UpstreamProtocol::Auto;
use tokio::io::AsyncWriteExt;

use super::egress::{OK, PUBLIC, proxy, public, through};
use super::names::{ips, scripted};
use super::support::*;
use crate::error::{Code, ProxyError};
use crate::upstream::{SendError, Settings};

#[tokio::test]
async fn refusals_are_told_apart() {
    for (answer, detail) in [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "the egress proxy demands a user name and password (407): the sidecar needs --egress-proxy-credentials",
        ),
        (
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 100\r\n\r\n",
            "the egress proxy answered CONNECT with 403 Forbidden",
        ),
        (
            "HTTP/1.0 504 Gateway Timeout\r\n\r\n",
            "the egress proxy answered CONNECT with 504 Gateway Timeout",
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: http://elsewhere.example/\r\n\r\n",
            "the egress proxy answered CONNECT with 302 Found",
        ),
        (
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "the egress proxy's answer to CONNECT is malformed or its head too large",
        ),
        (
            "",
            "the egress proxy closed the connection before it answered CONNECT",
        ),
        (
            "HTTP/1.1 200 Con",
            "the egress proxy closed the connection before it answered CONNECT",
        ),
    ] {
        let (proxy, _) = proxy("127.0.0.1:1".parse().unwrap(), answer).await;
        let target = upstream("127.0.0.1:1".parse().unwrap(), Auto);
        let client = client_with(through(proxy.addr, "", None), &target);
        let failed = client.get().await.unwrap_err();
        assert_eq!(failed.code(), Code::UpstreamUnreachable, "{answer:?}");
        assert_eq!(failed.detail(), detail, "{answer:?}");
        assert!(failed.nothing_sent());
    }
}

#[tokio::test]
async fn refused_credentials_are_told_without_them_and_not_tried_at_every_address() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "user:hunter2").unwrap();
    let answer = "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
    let (proxy, _) = proxy("127.0.0.1:1".parse().unwrap(), answer).await;
    let settings = Settings {
        resolver: scripted(|_| ips(&["1.0.0.1", "1.0.0.2"])),
        ..through(proxy.addr, "", Some(file.path()))
    };
    let failed = client_with(settings, &public(80)).get().await.unwrap_err();
    let shown = format!("{failed:?}");
    let failed = ProxyError::from(failed);
    assert_eq!(
        failed.detail,
        "the egress proxy does not accept the user name and password of --egress-proxy-credentials (407)"
    );
    for secret in ["hunter2", "dXNlcjpodW50ZXIy"] {
        assert!(!shown.contains(secret), "{shown}");
        assert!(!format!("{failed:?}").contains(secret), "{failed:?}");
    }
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let proxy = raw(|_, mut stream| async move {
        answer_raw(&mut stream, b"HTTP/1.1 200 OK\r\na: ").await;
        while stream.write_all(&[b'a'; 1024]).await.is_ok() {}
    })
    .await;
    let target = upstream("127.0.0.1:1".parse().unwrap(), Auto);
    let client = client_with(through(proxy.addr, "", None), &target);
    let failed = client.get().await.unwrap_err();
    assert_eq!(
        failed.detail(),
        "the egress proxy's answer to CONNECT is malformed or its head too large"
    );
}

#[tokio::test]
async fn a_silent_or_trickling_proxy_runs_into_the_connect_timeout() {
    for trickle in [false, true] {
        let proxy = raw(move |_, mut stream| async move {
            read_head(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\n"
                .bytes()
                .chain("a: b\r\n".bytes().cycle());
            for byte in head {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if trickle && stream.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let target = upstream("127.0.0.1:1".parse().unwrap(), Auto);
        let client = client_with(through(proxy.addr, "", None), &target);
        let limit = Duration::from_millis(200);
        let started = Instant::now();
        let sent = client.pool.send(request("GET", empty()), limit).await;
        assert_eq!(sent.unwrap_err().code(), Code::UpstreamTimeout);
        assert!(started.elapsed() >= limit);
    }
}

#[tokio::test]
async fn the_proxy_may_be_private_but_neither_a_listener_of_ours_nor_the_control_plane() {
    let (proxy, _) = proxy("127.0.0.1:1".parse().unwrap(), OK).await;
    let port = proxy.addr.port();
    let own = Settings {
        own_listeners: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))],
        ..through(proxy.addr, "", None)
    };
    let control_plane = |host: &str| Settings {
        forbidden: vec![(host.to_owned(), port)],
        ..through(proxy.addr, "", None)
    };
    for (settings, code, detail) in [
        (
            own,
            Code::LoopDetected,
            "the egress proxy is refused: the address is one the sidecar itself listens on",
        ),
        (
            control_plane("127.0.0.1"),
            Code::UpstreamUnreachable,
            "the egress proxy is refused: the address is the control plane's, which is never an upstream",
        ),
        (
            control_plane("localhost"),
            Code::UpstreamUnreachable,
            "the egress proxy is refused: the address is the control plane's, which is never an upstream",
        ),
    ] {
        let settings = Settings {
            resolver: scripted(|host| match host {
                "localhost" => ips(&["127.0.0.1"]),
                _ => ips(&[PUBLIC]),
            }),
            ..settings
        };
        let failed = client_with(settings, &public(443)).get().await.unwrap_err();
        assert_eq!(failed.code(), code);
        assert_eq!(failed.detail(), detail);
    }
    assert_eq!(proxy.accepted(), 0);
}

#[tokio::test]
async fn a_proxy_that_is_gone_is_told_from_an_upstream_that_is() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let client = client_with(through(addr, "", None), &upstream(addr, Auto));
    let failed = client.get().await.unwrap_err();
    assert!(matches!(failed, SendError::Connect(_)), "{failed:?}");
    assert_eq!(
        failed.detail(),
        "the egress proxy cannot be connected to: connection refused"
    );
}
