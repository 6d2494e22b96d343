use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use nexus_crds::matcher::UpstreamProtocol::H2c;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::support::*;
use crate::error::Code;
use crate::upstream::{ConnectError, SendError, Settings};

fn limited(max_streams: u32) -> Options {
    Options {
        max_streams: Some(max_streams),
        ..Options::default()
    }
}

/// Answers at once, and then says nothing more until the client goes.
fn silent() -> Response<Body> {
    let (data, body) = channel();
    tokio::spawn(async move {
        data.send(Bytes::from_static(b": hello\n\n")).await.unwrap();
        data.closed().await;
    });
    Response::new(body)
}

#[tokio::test]
async fn request_301_is_answered_at_once_beside_300_silent_streams_at_a_limit_of_100() {
    let server = serve(limited(100), |_, _| async { silent() }).await;
    let client = client(&upstream(server.addr, H2c));
    let mut streams = Vec::new();
    for _ in 0..300 {
        let answer = timeout(Duration::from_secs(2), client.get()).await;
        streams.push(answer.expect("no request waits").unwrap());
    }
    assert_eq!(
        server.accepted(),
        3,
        "each connection is filled before the next"
    );
    let more = timeout(Duration::from_millis(500), client.get()).await;
    streams.push(more.expect("answered at once").unwrap());
    assert_eq!(server.accepted(), 4);

    drop(streams);
    for _ in 0..300 {
        timeout(Duration::from_secs(2), client.get())
            .await
            .unwrap()
            .unwrap();
    }
    assert_eq!(server.accepted(), 4, "dropped answers make room again");
}

#[tokio::test]
async fn a_cold_burst_shares_one_connection() {
    let options = Options {
        accept_after: Duration::from_millis(50),
        ..limited(1000)
    };
    let server = serve(options, number).await;
    let client = client(&upstream(server.addr, H2c));
    let mut requests = JoinSet::new();
    for _ in 0..500 {
        let client = client.clone();
        requests.spawn(async move { client.text().await });
    }
    assert!(requests.join_all().await.iter().all(|number| number == "1"));
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_cold_burst_beyond_the_limit_opens_what_it_needs() {
    let server = serve(limited(10), |_, _| async { silent() }).await;
    let client = client(&upstream(server.addr, H2c));
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let client = client.clone();
        requests.spawn(async move { client.get().await.unwrap() });
    }
    let answers = timeout(Duration::from_secs(5), requests.join_all())
        .await
        .unwrap();
    assert_eq!(answers.len(), 100);
    assert_eq!(server.accepted(), 10);
}

#[tokio::test]
async fn cancelling_the_request_that_asked_first_neither_fails_nor_delays_the_others() {
    let options = Options {
        accept_after: Duration::from_millis(100),
        ..Options::default()
    };
    let server = serve(options, number).await;
    let client = client(&upstream(server.addr, H2c));
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.text().await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let second = tokio::spawn({
        let client = client.clone();
        async move { client.text().await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    first.abort();
    assert_eq!(second.await.unwrap(), "1");
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_failed_attempt_fails_everyone_who_waited_for_it_once() {
    let server = raw(|_, stream| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(stream);
    })
    .await;
    let client = client(&upstream(server.addr, H2c));
    let mut requests = JoinSet::new();
    for _ in 0..1000 {
        let client = client.clone();
        requests.spawn(async move { client.get().await.unwrap_err() });
    }
    for failed in requests.join_all().await {
        assert!(failed.nothing_sent());
        let SendError::Connect(reason) = failed else {
            panic!("{failed:?}")
        };
        assert!(matches!(*reason, ConnectError::Http2(_)), "{reason:?}");
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn an_upstream_that_sends_no_settings_runs_into_the_connect_timeout() {
    let server = raw(|_, stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let client = client(&upstream(server.addr, H2c));
    let limit = Duration::from_millis(100);
    let failed = client
        .pool
        .send(request("GET", empty()), limit)
        .await
        .unwrap_err();
    assert_eq!(failed.code(), Code::UpstreamTimeout);
    assert_eq!(
        failed.detail(),
        "no connection to the upstream within 100ms"
    );
}

#[tokio::test]
async fn an_upstream_that_goes_away_at_once_is_given_up() {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let together = vec![[&SETTINGS[..], &GOAWAY].concat()];
    let apart = vec![SETTINGS.to_vec(), GOAWAY.to_vec()];
    for pieces in [together, apart] {
        let server = raw(move |_, mut stream| {
            let pieces = pieces.clone();
            async move {
                for piece in pieces {
                    stream.write_all(&piece).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                while stream.read_u8().await.is_ok() {}
            }
        })
        .await;
        let client = client(&upstream(server.addr, H2c));
        let failed = timeout(Duration::from_secs(2), client.get()).await;
        let failed = failed.expect("not dialled for ever").unwrap_err();
        assert_eq!(failed.code(), Code::UpstreamUnreachable);
        assert!(server.accepted() <= 3, "{} connections", server.accepted());
    }
}

#[tokio::test]
async fn a_connection_that_goes_away_is_replaced_and_its_streams_end_in_peace() {
    let server = serve(Options::default(), |number, request| async move {
        let (data, body) = channel();
        tokio::spawn(async move {
            data.send(number.to_string().into()).await.unwrap();
            if request.method() == "PUT" {
                tokio::time::sleep(Duration::from_millis(300)).await;
                data.send("!".into()).await.unwrap();
            }
        });
        Response::new(body)
    })
    .await;
    let client = client(&upstream(server.addr, H2c));
    let slow = client.send("PUT", empty()).await.unwrap();
    server.drain();
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..5 {
        assert_eq!(client.text().await, "2");
    }
    assert_eq!(text(slow).await, "1!");
}

#[tokio::test]
async fn an_upload_that_outlasts_its_answer_keeps_its_room() {
    let server = serve(limited(1), |number, request| async move {
        let mut body = request.into_body();
        tokio::spawn(async move { while body.frame().await.is_some() {} });
        Response::new(full(number.to_string()))
    })
    .await;
    let client = client(&upstream(server.addr, H2c));
    let (upload, body) = channel();
    let answer = client.send("POST", body).await.unwrap();
    assert_eq!(text(answer).await, "1");
    let other = timeout(Duration::from_secs(1), client.text()).await;
    assert_eq!(other.expect("not queued behind the upload"), "2");
    drop(upload);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(client.text().await, "1");
}

#[tokio::test]
async fn a_cancelled_request_frees_its_room() {
    let server = serve(limited(1), |number, request| async move {
        if request.method() == "PUT" {
            std::future::pending::<()>().await;
        }
        Response::new(full(number.to_string()))
    })
    .await;
    let client = client(&upstream(server.addr, H2c));
    for _ in 0..5 {
        let pending = client.send("PUT", empty());
        assert!(timeout(Duration::from_millis(50), pending).await.is_err());
        assert_eq!(client.text().await, "1");
    }
}

#[tokio::test]
async fn requests_have_an_authority_in_place_of_host_and_no_connection_fields() {
    let server = serve(Options::default(), |_, request| async move {
        let mut names: Vec<_> = request.headers().keys().map(ToString::to_string).collect();
        names.sort();
        Response::new(full(format!("{} {names:?}", request.uri())))
    })
    .await;
    let client = client(&upstream(server.addr, H2c));
    let mut request = request("GET", empty());
    for (name, value) in [
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "1"),
        ("proxy-connection", "1"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "x"),
        ("te", "gzip"),
        ("x-kept", "1"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = client.pool.send(request, TIMEOUT).await.unwrap();
    assert_eq!(
        text(answer).await,
        r#"http://upstream.example/path?query ["x-kept"]"#
    );
}

#[tokio::test]
async fn a_reader_that_stalls_lets_no_more_than_a_window_pile_up() {
    static STALLED: AtomicUsize = AtomicUsize::new(0);
    let server = serve(Options::default(), |_, _| async {
        let (data, body) = channel();
        tokio::spawn(async move {
            let chunk = Bytes::from(vec![0; 64 * 1024]);
            while data.send(chunk.clone()).await.is_ok() {
                STALLED.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        });
        Response::new(body)
    })
    .await;
    let client = client(&upstream(server.addr, H2c));
    let _unread = client.get().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent = STALLED.load(Ordering::SeqCst);
    // The window, and what the server itself buffers.
    assert!((1 << 20..3 << 20).contains(&sent), "{sent} bytes");
}

#[tokio::test]
async fn connections_unused_for_the_idle_timeout_are_closed() {
    let server = serve(limited(1), |_, _| async { silent() }).await;
    let settings = Settings {
        idle_timeout: Duration::from_millis(200),
        ..Settings::default()
    };
    let client = client_with(settings, &upstream(server.addr, H2c));
    let streams = [client.get().await.unwrap(), client.get().await.unwrap()];
    tokio::time::sleep(Duration::from_millis(400)).await;
    server.open_connections_become(2).await;
    let [one, _two] = streams;
    drop(one);
    server.open_connections_become(1).await;
}
