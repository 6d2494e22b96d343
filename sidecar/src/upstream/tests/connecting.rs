use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nexus_crds::matcher::Upstream;
use nexus_crds::matcher::UpstreamProtocol::Auto;
use socket2::{Domain, Socket, Type};

use super::support::*;
use crate::error::{Code, ProxyError};
use crate::upstream::Settings;

/// An address whose queue of connections is full, so that attempts hang, and what keeps it so.
fn unanswering() -> (SocketAddr, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&addr);
        sockets.push(filler);
    }
    (addr.as_socket().unwrap(), sockets)
}

async fn refused_port() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn a_refused_connection_is_told_without_its_address() {
    let addr = refused_port().await;
    let failed = client(&upstream(addr, Auto)).get().await.unwrap_err();
    assert!(failed.nothing_sent());
    let failed = ProxyError::from(failed);
    assert_eq!(failed.code, Code::UpstreamUnreachable);
    assert_eq!(failed.detail, "connection refused");
    assert!(failed.internal.unwrap().contains("os error 111"));
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_runs_into_the_connect_timeout() {
    let (addr, _full) = unanswering();
    let client = client(&upstream(addr, Auto));
    let started = Instant::now();
    let limit = Duration::from_millis(200);
    let failed = client
        .pool
        .send(request("GET", empty()), limit)
        .await
        .unwrap_err();
    assert_eq!(failed.code(), Code::UpstreamTimeout);
    assert!((limit..limit * 5).contains(&started.elapsed()));
}

#[tokio::test]
async fn an_upstream_that_closes_every_connection_at_once_is_given_up() {
    let server = raw(|_, stream| async move { drop(stream) }).await;
    let client = client(&upstream(server.addr, Auto));
    let failed = client.get().await.unwrap_err();
    assert_eq!(failed.code(), Code::UpstreamUnreachable);
    assert!(server.accepted() <= 3);
}

#[tokio::test]
async fn a_name_without_an_address_is_told_as_such() {
    let target = Upstream {
        host: "nowhere.invalid".into(),
        ..upstream("127.0.0.1:80".parse().unwrap(), Auto)
    };
    let failed = client(&target).get().await.unwrap_err();
    assert_eq!(failed.code(), Code::UpstreamUnreachable);
    assert_eq!(
        failed.detail(),
        "the upstream's host name cannot be resolved"
    );
}

#[tokio::test]
async fn private_addresses_are_refused_however_they_are_written() {
    let server = serve(Options::default(), number).await;
    for host in [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "::1",
        "::ffff:127.0.0.1",
    ] {
        let target = Upstream {
            host: host.into(),
            allow_private_addresses: false,
            ..upstream(server.addr, Auto)
        };
        let failed = client(&target).get().await.unwrap_err();
        assert_eq!(failed.code(), Code::UpstreamRefusedAddress, "{host}");
        let told = "the address is private and the route does not set allowPrivateAddresses";
        assert_eq!(failed.detail(), told, "{host}");
    }
    assert_eq!(server.accepted(), 0);
}

#[tokio::test]
async fn own_listeners_and_the_control_plane_are_never_connected_to() {
    let server = serve(Options::default(), number).await;
    let port = server.addr.port();
    let own = |addr: &str| Settings {
        own_listeners: vec![SocketAddr::new(addr.parse().unwrap(), port)],
        ..Settings::default()
    };
    let control_plane = |host: &str| Settings {
        forbidden: vec![(host.to_owned(), port)],
        ..Settings::default()
    };
    for (settings, host, code) in [
        (own("127.0.0.1"), "localhost", Code::LoopDetected),
        (own("0.0.0.0"), "127.0.0.1", Code::LoopDetected),
        (own("::"), "127.0.0.1", Code::LoopDetected),
        (
            control_plane("localhost"),
            "localhost",
            Code::UpstreamRefusedAddress,
        ),
        (
            control_plane("localhost"),
            "LOCALHOST.",
            Code::UpstreamRefusedAddress,
        ),
        (
            control_plane("localhost"),
            "127.0.0.1",
            Code::UpstreamRefusedAddress,
        ),
        (
            control_plane("127.0.0.1"),
            "localhost",
            Code::UpstreamRefusedAddress,
        ),
        (
            control_plane("127.0.0.1"),
            "64:ff9b::7f00:1",
            Code::UpstreamRefusedAddress,
        ),
    ] {
        let target = Upstream {
            host: host.into(),
            ..upstream(server.addr, Auto)
        };
        let failed = client_with(settings, &target).get().await.unwrap_err();
        assert_eq!(failed.code(), code, "{host}");
    }
    assert_eq!(server.accepted(), 0);
    let elsewhere = Settings {
        own_listeners: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 1))],
        forbidden: vec![
            ("localhost".to_owned(), 1),
            ("gateway.invalid".to_owned(), 1),
        ],
        ..Settings::default()
    };
    let client = client_with(elsewhere, &upstream(server.addr, Auto));
    assert_eq!(client.text().await, "1");
}
