//! Names that lead to several addresses, or elsewhere each time they are asked for.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use nexus_crds::matcher::Upstream;
use nexus_crds::matcher::UpstreamProtocol::Auto;

use super::egress::{OK, PUBLIC, proxy, through};
use super::support::*;
use crate::error::Code;
use crate::upstream::address::tests::{METADATA, NOT_UNICAST, PRIVATE};
use crate::upstream::resolve::Script;
use crate::upstream::{Resolver, Settings};

pub(super) fn scripted(answer: impl Fn(&str) -> Vec<IpAddr> + Send + Sync + 'static) -> Resolver {
    Resolver::Scripted(Script::new(answer))
}

pub(super) fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// A name that answers `first` to the first question and `then` to all later ones.
fn rebinding(first: &'static str, then: &'static str) -> Resolver {
    let asked = AtomicUsize::new(0);
    scripted(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => ips(&[first]),
        _ => ips(&[then]),
    })
}

fn named(addr: SocketAddr, allow_private_addresses: bool) -> Upstream {
    Upstream {
        host: "rebinding.example".into(),
        allow_private_addresses,
        ..upstream(addr, Auto)
    }
}

/// Answers one request per connection.
async fn closing() -> Server {
    raw(|_, mut stream| async move {
        let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
        answer_raw(&mut stream, answer).await;
    })
    .await
}

#[tokio::test]
async fn a_name_that_turns_from_public_to_private_is_refused_at_the_next_connection() {
    for then in [
        "127.0.0.1",
        "10.0.0.1",
        "::1",
        "::ffff:7f00:1",
        "169.254.169.254",
    ] {
        let server = closing().await;
        let (proxy, asked) = proxy(server.addr, OK).await;
        let settings = Settings {
            resolver: rebinding(PUBLIC, then),
            ..through(proxy.addr, "", None)
        };
        let client = client_with(settings, &named(server.addr, false));
        assert_eq!(client.text().await, "ok");
        let failed = client.get().await.unwrap_err();
        assert_eq!(failed.code(), Code::UpstreamRefusedAddress, "{then}");
        assert!(failed.nothing_sent());
        assert_eq!(asked.lock().unwrap().len(), 1, "{then}");
    }
}

#[tokio::test]
async fn a_name_that_turns_to_a_metadata_service_is_refused_where_private_addresses_are_allowed() {
    for then in ["169.254.169.254", "::ffff:a9fe:a9fe", "fd00:ec2::254"] {
        let server = closing().await;
        let settings = Settings {
            resolver: rebinding("127.0.0.1", then),
            ..Settings::default()
        };
        let client = client_with(settings, &named(server.addr, true));
        assert_eq!(client.text().await, "ok");
        let failed = client.get().await.unwrap_err();
        assert_eq!(failed.code(), Code::UpstreamRefusedAddress, "{then}");
        assert_eq!(server.accepted(), 1);
    }
}

#[tokio::test]
async fn of_a_good_and_a_bad_address_only_the_good_one_is_connected_to() {
    let server = serve(Options::default(), number).await;
    for list in [
        ["169.254.169.254", "127.0.0.1"],
        ["127.0.0.1", "169.254.169.254"],
    ] {
        let settings = Settings {
            resolver: scripted(move |_| ips(&list)),
            ..Settings::default()
        };
        client_with(settings, &named(server.addr, true))
            .text()
            .await;
    }
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn a_bad_address_is_not_even_tried_when_the_good_one_fails() {
    let (proxy, asked) = proxy("127.0.0.1:1".parse().unwrap(), "HTTP/1.1 502 Bad\r\n\r\n").await;
    let settings = Settings {
        resolver: scripted(|_| ips(&["127.0.0.1", PUBLIC, "10.0.0.1", "::1"])),
        ..through(proxy.addr, "", None)
    };
    let target = named("127.0.0.1:443".parse().unwrap(), false);
    let failed = client_with(settings, &target).get().await.unwrap_err();
    assert_eq!(failed.code(), Code::UpstreamUnreachable);
    let connect = format!("CONNECT {PUBLIC}:443 HTTP/1.1\r\nhost: {PUBLIC}:443\r\n\r\n");
    assert_eq!(*asked.lock().unwrap(), [connect]);
}

#[tokio::test]
async fn every_address_of_the_tables_is_refused_as_a_literal_and_behind_a_name() {
    let any = "127.0.0.1:443".parse().unwrap();
    let tables = [(PRIVATE, false), (METADATA, true), (NOT_UNICAST, true)];
    for (addresses, allow_private) in tables {
        for address in addresses {
            let literal = Upstream {
                host: (*address).into(),
                ..named(any, allow_private)
            };
            for target in [literal, named(any, allow_private)] {
                let settings = Settings {
                    resolver: scripted(|_| ips(&[address])),
                    ..Settings::default()
                };
                let failed = client_with(settings, &target).get().await.unwrap_err();
                assert_eq!(failed.code(), Code::UpstreamRefusedAddress, "{address}");
            }
        }
    }
}

#[tokio::test]
async fn a_name_that_leads_to_our_own_listener_is_a_loop() {
    let settings = Settings {
        own_listeners: vec!["10.9.8.7:8080".parse().unwrap()],
        resolver: scripted(|_| ips(&["10.9.8.7"])),
        ..Settings::default()
    };
    let target = named("127.0.0.1:8080".parse().unwrap(), true);
    let failed = client_with(settings, &target).get().await.unwrap_err();
    assert_eq!(failed.code(), Code::LoopDetected);
}
