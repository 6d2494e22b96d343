//! Which failures say that a request may be sent once more.

use std::sync::Arc;

use nexus_crds::matcher::UpstreamProtocol::{Auto, H2c};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, watch};

use super::frames::Peer;
use super::support::*;
use crate::upstream::SendError;

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const HTTP_1_1_REQUIRED: u32 = 13;

const KEPT: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn reused(failed: &SendError) -> bool {
    match failed {
        SendError::Unanswered { reused, .. } => *reused,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_kept_connection_that_ends_unanswered_is_told_from_a_new_one() {
    for answered in 0..3 {
        let server = raw(move |_, mut stream| async move {
            for _ in 0..answered {
                answer_raw(&mut stream, KEPT).await;
            }
            read_head(&mut stream).await;
        })
        .await;
        let client = client(&upstream(server.addr, Auto));
        for _ in 0..answered {
            assert_eq!(client.text().await, "ok");
        }
        let failed = client.get().await.unwrap_err();
        assert_eq!(server.accepted(), 1);
        assert_eq!(reused(&failed), answered > 0);
        assert_eq!(failed.may_be_repeated(), answered > 0);
        assert!(!failed.nothing_sent());
    }
}

#[tokio::test]
async fn an_answer_that_began_forbids_to_repeat_the_request() {
    let server = raw(|_, mut stream| async move {
        answer_raw(&mut stream, KEPT).await;
        answer_raw(&mut stream, b"HTTP/1.1 2").await;
    })
    .await;
    let client = client(&upstream(server.addr, Auto));
    client.text().await;
    let failed = client.get().await.unwrap_err();
    assert!(matches!(failed, SendError::BadAnswer(_)), "{failed:?}");
    assert!(!failed.may_be_repeated());
}

#[tokio::test]
async fn what_was_never_sent_may_be_repeated() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = nobody.local_addr().unwrap();
    drop(nobody);
    let failed = client(&upstream(addr, Auto)).get().await.unwrap_err();
    assert!(failed.nothing_sent() && failed.may_be_repeated());
}

#[tokio::test]
async fn a_repeated_request_does_not_meet_the_next_dead_connection() {
    // As after a restart behind a balancer: the kept connections take one more request each, and then are gone.
    let together = Arc::new(Barrier::new(3));
    let server = raw(move |number, mut stream| {
        let together = Arc::clone(&together);
        async move {
            read_head(&mut stream).await;
            if number <= 3 {
                together.wait().await;
            }
            tokio::io::AsyncWriteExt::write_all(&mut stream, KEPT)
                .await
                .unwrap();
            read_head(&mut stream).await;
        }
    })
    .await;
    let client = client(&upstream(server.addr, Auto));
    let (a, b, c) = tokio::join!(client.text(), client.text(), client.text());
    assert_eq!([a, b, c], ["ok"; 3]);
    assert_eq!(server.accepted(), 3);
    let failed = client.get().await.unwrap_err();
    assert!(failed.may_be_repeated());
    assert_eq!(client.text().await, "ok");
    assert_eq!(server.accepted(), 4);
}

#[tokio::test]
async fn a_repeated_request_does_not_meet_another_shared_connection_that_ended() {
    let (gone, _) = watch::channel(());
    let gone = Arc::new(gone);
    let together = Arc::new(Barrier::new(2));
    let server = raw(move |number, stream| {
        let (gone, together) = (Arc::clone(&gone), Arc::clone(&together));
        async move {
            let mut peer = Peer::greet(stream, 1).await;
            let first = peer.request().await.unwrap();
            if number <= 2 {
                together.wait().await;
            }
            peer.answer(first, true).await;
            let mut ended = gone.subscribe();
            tokio::select! {
                Some(_) = peer.request() => gone.send_replace(()),
                _ = ended.changed() => (),
            }
        }
    })
    .await;
    let client = client(&upstream(server.addr, H2c));
    let (a, b) = tokio::join!(client.text(), client.text());
    assert_eq!([a, b], ["", ""]);
    assert_eq!(server.accepted(), 2);
    let failed = client.get().await.unwrap_err();
    assert!(reused(&failed) && failed.may_be_repeated());
    assert_eq!(client.text().await, "");
    assert_eq!(server.accepted(), 3);
}

/// Answers `answered` requests and does `then` with the next, and returns how that one failed.
async fn over_h2<F, R>(answered: usize, then: F) -> SendError
where
    F: Fn(Peer<TcpStream>, u32) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let server = raw(move |_, stream| {
        let then = then.clone();
        async move {
            let mut peer = Peer::greet(stream, 100).await;
            for _ in 0..answered {
                let stream = peer.request().await.unwrap();
                peer.answer(stream, true).await;
            }
            let stream = peer.request().await.unwrap();
            then(peer, stream).await;
        }
    })
    .await;
    let client = client(&upstream(server.addr, H2c));
    for _ in 0..answered {
        client.text().await;
    }
    let failed = client.get().await.unwrap_err();
    assert_eq!(server.accepted(), 1);
    assert_eq!(reused(&failed), answered > 0, "{failed:?}");
    failed
}

#[tokio::test]
async fn a_stream_that_the_peer_refused_may_be_repeated_and_one_that_it_reset_may_not() {
    for answered in [0, 2] {
        for (code, repeat) in [
            (REFUSED_STREAM, true),
            (NO_ERROR, false),
            (INTERNAL_ERROR, false),
            (CANCEL, false),
            (HTTP_1_1_REQUIRED, false),
        ] {
            let failed = over_h2(answered, move |mut peer, stream| async move {
                peer.reset(stream, code).await;
                while peer.read().await.is_some() {}
            })
            .await;
            assert_eq!(failed.may_be_repeated(), repeat, "{code} after {answered}");
        }
    }
}

#[tokio::test]
async fn a_stream_above_the_last_of_a_goaway_may_be_repeated() {
    for (answered, code) in [(0, NO_ERROR), (2, NO_ERROR), (0, INTERNAL_ERROR)] {
        let failed = over_h2(answered, move |mut peer, stream| async move {
            peer.go_away(stream.saturating_sub(2), code).await;
            while peer.read().await.is_some() {}
        })
        .await;
        assert!(failed.may_be_repeated(), "{failed:?}");
    }
}

#[tokio::test]
async fn a_stream_that_a_goaway_covers_is_judged_by_its_connection() {
    for (answered, code) in [
        (0, NO_ERROR),
        (2, NO_ERROR),
        (0, INTERNAL_ERROR),
        (2, INTERNAL_ERROR),
    ] {
        let failed = over_h2(answered, move |mut peer, stream| async move {
            peer.go_away(stream, code).await;
        })
        .await;
        assert_eq!(failed.may_be_repeated(), answered > 0, "{failed:?}");
    }
}

#[tokio::test]
async fn a_shared_connection_that_ends_is_told_from_a_new_one() {
    for answered in [0, 1, 2] {
        let failed = over_h2(answered, |_, _| async {}).await;
        assert_eq!(failed.may_be_repeated(), answered > 0, "{failed:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_reason_to_repeat_the_request() {
    for protocol in [Auto, H2c] {
        let server = serve(Options::default(), number).await;
        let client = client(&upstream(server.addr, protocol));
        client.text().await;
        let failed = client.send("POST", broken()).await.unwrap_err();
        assert!(!failed.may_be_repeated(), "{failed:?}");
    }
}
