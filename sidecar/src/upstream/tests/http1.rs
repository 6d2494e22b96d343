use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use nexus_crds::matcher::UpstreamProtocol::Auto;
use tokio::io::AsyncReadExt;

use super::support::*;
use crate::error::Code;
use crate::upstream::{SendError, Settings};

#[tokio::test]
async fn sequential_requests_share_one_connection() {
    let server = serve(Options::default(), number).await;
    let client = client(&upstream(server.addr, Auto));
    for method in ["GET", "POST", "PUT"] {
        for _ in 0..20 {
            let answer = client.send(method, full("data")).await.unwrap();
            assert_eq!(text(answer).await, "1");
        }
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_give_their_connection_back_unread() {
    let server = serve(Options::default(), |_, request| async move {
        let mut answer = http::Response::new(empty());
        if request.method() == "HEAD" {
            answer = answer.map(|_| full("not sent"));
        } else {
            *answer.status_mut() = StatusCode::NO_CONTENT;
        }
        answer
    })
    .await;
    let client = client(&upstream(server.addr, Auto));
    for method in ["HEAD", "DELETE", "HEAD", "DELETE"] {
        let answer = client.send(method, empty()).await.unwrap();
        assert!(answer.body().is_end_stream());
        drop(answer);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn an_answer_read_to_its_end_gives_its_connection_back_though_it_is_still_held() {
    let server = serve(Options::default(), number).await;
    let client = client(&upstream(server.addr, Auto));
    let mut held = client.get().await.unwrap();
    while held.body_mut().frame().await.is_some() {}
    assert_eq!(client.text().await, "1");
    drop(held);
}

#[tokio::test]
async fn the_connection_used_last_is_used_next() {
    let server = serve(Options::default(), number).await;
    let client = client(&upstream(server.addr, Auto));
    let answers = [
        client.get().await.unwrap(),
        client.get().await.unwrap(),
        client.get().await.unwrap(),
    ];
    assert_eq!(server.accepted(), 3);
    let [one, two, three] = answers;
    for answer in [one, three, two] {
        text(answer).await;
    }
    for _ in 0..5 {
        assert_eq!(client.text().await, "2");
    }
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_replaced_without_a_failure() {
    let server = raw(|_, mut stream| async move {
        answer_raw(
            &mut stream,
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        )
        .await;
    })
    .await;
    let client = client(&upstream(server.addr, Auto));
    for _ in 0..10 {
        // A body that cannot be sent twice: it must not have been touched.
        let (data, body) = channel();
        tokio::spawn(async move { data.send("once".into()).await });
        let answer = client.send("POST", body).await.unwrap();
        assert_eq!(text(answer).await, "ok");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.accepted(), 10);
}

#[tokio::test]
async fn a_body_dropped_midway_closes_its_connection() {
    let server = serve(Options::default(), |_, _| async {
        let (data, body) = channel();
        tokio::spawn(async move { while data.send("more".into()).await.is_ok() {} });
        http::Response::new(body)
    })
    .await;
    let client = client(&upstream(server.addr, Auto));
    for expected in 1..4 {
        let mut answer = client.get().await.unwrap();
        answer.body_mut().frame().await.unwrap().unwrap();
        drop(answer);
        server.open_connections_become(0).await;
        assert_eq!(server.accepted(), expected);
    }
}

#[tokio::test]
async fn a_cancelled_request_closes_its_connection() {
    let server = serve(Options::default(), |_, _| std::future::pending()).await;
    let client = client(&upstream(server.addr, Auto));
    let sent = tokio::time::timeout(Duration::from_millis(100), client.get()).await;
    assert!(sent.is_err());
    server.open_connections_become(0).await;
}

#[tokio::test]
async fn a_connection_still_busy_with_an_upload_waits_until_it_is_done() {
    let server = serve(Options::default(), |number, request| async move {
        let mut body = request.into_body();
        tokio::spawn(async move { while body.frame().await.is_some() {} });
        http::Response::new(full(number.to_string()))
    })
    .await;
    let client = client(&upstream(server.addr, Auto));
    let (upload, body) = channel();
    let answer = client.send("POST", body).await.unwrap();
    assert_eq!(text(answer).await, "1");
    assert_eq!(
        client.text().await,
        "2",
        "answered, but its upload is not done"
    );
    upload.send("rest".into()).await.unwrap();
    drop(upload);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(client.text().await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_read_though_the_upstream_takes_no_more_of_the_upload() {
    let server = raw(|_, mut stream| async move {
        let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig";
        answer_raw(&mut stream, answer).await;
    })
    .await;
    let client = client(&upstream(server.addr, Auto));
    for _ in 0..50 {
        let (upload, body) = channel();
        tokio::spawn(async move {
            let piece = bytes::Bytes::from(vec![0; 64 * 1024]);
            while upload.send(piece.clone()).await.is_ok() {}
        });
        let answer = client.send("POST", body).await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(text(answer).await, "big");
    }
}

#[tokio::test]
async fn a_connection_closed_before_an_answer_is_told_from_a_broken_answer() {
    for (answer, unanswered) in [
        ("", true),
        ("HTTP/1.1 200 OK\r\ncontent-le", false),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", false),
        ("HTTP/1.1 100 Continue\r\n\r\n", false),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            false,
        ),
    ] {
        let server = raw(move |_, mut stream| async move {
            answer_raw(&mut stream, answer.as_bytes()).await;
        })
        .await;
        let failed = client(&upstream(server.addr, Auto))
            .get()
            .await
            .unwrap_err();
        match &failed {
            SendError::Unanswered { .. } => assert!(unanswered, "{answer:?}"),
            SendError::BadAnswer(_) => assert!(!unanswered, "{answer:?}"),
            other => panic!("{answer:?}: {other:?}"),
        }
        assert!(!failed.nothing_sent());
        assert_eq!(failed.code(), Code::UpstreamUnreachable);
    }
}

#[tokio::test]
async fn a_reset_before_an_answer_is_unanswered() {
    let server = raw(|_, mut stream| async move {
        read_head(&mut stream).await;
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await;
    let failed = client(&upstream(server.addr, Auto))
        .get()
        .await
        .unwrap_err();
    assert!(matches!(failed, SendError::Unanswered { .. }), "{failed:?}");
}

#[tokio::test]
async fn an_answer_head_without_end_is_cut_off() {
    let server = raw(|_, mut stream| async move {
        answer_raw(&mut stream, b"HTTP/1.1 200 OK\r\na: ").await;
        let filler = vec![b'a'; 65536];
        while tokio::io::AsyncWriteExt::write_all(&mut stream, &filler)
            .await
            .is_ok()
        {}
    })
    .await;
    let failed = client(&upstream(server.addr, Auto))
        .get()
        .await
        .unwrap_err();
    assert!(matches!(failed, SendError::BadAnswer(_)), "{failed:?}");
}

#[tokio::test]
async fn interim_answers_are_skipped_and_unasked_upgrades_refused() {
    let server = raw(|number, mut stream| async move {
        let answer: &[u8] = match number {
            1 => b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n!",
            _ => b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        };
        answer_raw(&mut stream, answer).await;
        stream.read_u8().await.unwrap_err();
    })
    .await;
    let client = client(&upstream(server.addr, Auto));
    assert_eq!(client.text().await, "!");
    let failed = client.get().await.unwrap_err();
    assert!(matches!(failed, SendError::UnaskedUpgrade), "{failed:?}");
}

#[tokio::test]
async fn a_request_body_that_breaks_off_is_the_agents_failure() {
    let server = serve(Options::default(), number).await;
    let client = client(&upstream(server.addr, Auto));
    let broken = broken();
    let failed = client.send("POST", broken).await.unwrap_err();
    assert!(matches!(failed, SendError::RequestBody(_)), "{failed:?}");
    assert_eq!(failed.code(), Code::BadRequest);
}

#[tokio::test]
async fn connections_unused_for_the_idle_timeout_are_closed() {
    let server = serve(Options::default(), number).await;
    let settings = Settings {
        idle_timeout: Duration::from_millis(200),
        ..Settings::default()
    };
    let client = client_with(settings, &upstream(server.addr, Auto));
    for _ in 0..10 {
        assert_eq!(client.text().await, "1", "in use, so it stays");
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    server.open_connections_become(0).await;
}

#[tokio::test]
async fn no_more_connections_are_kept_than_allowed() {
    let server = serve(Options::default(), number).await;
    let settings = Settings {
        max_idle_per_upstream: 2,
        ..Settings::default()
    };
    let client = client_with(settings, &upstream(server.addr, Auto));
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(client.get().await.unwrap());
    }
    for answer in answers {
        text(answer).await;
    }
    server.open_connections_become(2).await;
    assert_eq!(client.text().await, "5", "the ones unused longest went");
}

#[tokio::test]
async fn dropped_pools_close_their_connections_and_end_every_task() {
    let server = raw(|_, mut stream| async move {
        answer_raw(
            &mut stream,
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        )
        .await;
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    })
    .await;
    let before = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    let settings = Settings {
        idle_timeout: Duration::from_millis(40),
        ..Settings::default()
    };
    let client = client_with(settings, &upstream(server.addr, Auto));
    client.text().await;
    let upstreams = std::sync::Arc::downgrade(&client.upstreams);
    drop(client);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(upstreams.upgrade().is_none());
    assert_eq!(
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks(),
        before
    );
}

#[tokio::test]
async fn equal_targets_share_a_pool_and_unused_ones_are_dropped() {
    let addr = "127.0.0.1:1".parse().unwrap();
    let target = upstream(addr, Auto);
    let client = client(&target);
    let mut elsewhere = target.clone();
    elsewhere.base_path = "/other".into();
    let same = client.upstreams.pool(&elsewhere).unwrap();
    assert!(std::sync::Arc::ptr_eq(&same, &client.pool));
    elsewhere.allow_private_addresses = false;
    let other = std::sync::Arc::downgrade(&client.upstreams.pool(&elsewhere).unwrap());
    assert!(other.upgrade().is_some());
    client.upstreams.retain_used();
    assert!(other.upgrade().is_none());
    assert!(std::sync::Arc::ptr_eq(
        &client.upstreams.pool(&target).unwrap(),
        &client.pool
    ));
}

#[tokio::test]
async fn the_future_of_a_request_is_small() {
    let client = client(&upstream("127.0.0.1:1".parse().unwrap(), Auto));
    let future = client.pool.send(request("GET", empty()), TIMEOUT);
    let size = size_of_val(&future);
    assert!(size < 2048, "{size} bytes");
}
