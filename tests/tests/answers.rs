//! What of an upstream's answer reaches the agent: compressed or not, no credential in it; links and cookies that lead
//! back through the sidecar; and nothing that would reach beyond the answer.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::clients::{output, python};
use nexus_tests::connection;
use nexus_tests::raw::{Outcome, RawAgent, RawUpstream, Reply};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::wait;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;

const TOKEN: &str = "token-that-the-upstream-repeats";
const CODINGS: [&str; 4] = ["gzip", "deflate", "br", "zstd"];

fn gzip(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut pieces: Vec<_> = parts
        .iter()
        .map(|part| {
            encoder.write_all(part).unwrap();
            encoder.flush().unwrap();
            std::mem::take(encoder.get_mut())
        })
        .collect();
    pieces.push(encoder.finish().unwrap());
    pieces
}

fn encoded(coding: &str, text: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => gzip(&[text]).concat(),
        "deflate" => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(text).unwrap();
            encoder.into_inner()
        }
        "zstd" => {
            let mut out = vec![0; zstd_safe::compress_bound(text.len())];
            let length = zstd_safe::compress(&mut out[..], text, 3).unwrap();
            out.truncate(length);
            out
        }
        other => panic!("no coding {other}"),
    }
}

/// A whole answer. `fields` are lines with their ends.
fn answer(fields: &str, content: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n",
        content.len()
    );
    [head.as_bytes(), content].concat()
}

/// A sidecar before an upstream that answers everything alike.
struct Fixed {
    _broker: Broker,
    upstream: RawUpstream,
    sidecar: Sidecar,
}

impl Fixed {
    async fn new(reply: Vec<u8>, response: Value) -> Self {
        Self::with(reply, Answer::oauth2(TOKEN), response).await
    }

    async fn with(reply: Vec<u8>, credential: Answer, response: Value) -> Self {
        let upstream = RawUpstream::start(Reply::Bytes(reply)).await;
        let url = format!("{}/v1", upstream.url());
        let (broker, sidecar) = before(&url, credential, response).await;
        Self {
            _broker: broker,
            upstream,
            sidecar,
        }
    }

    async fn get(&self) -> nexus_tests::agent::Answer {
        let agent = self.sidecar.agent();
        agent.get("/x").provider("p").send().await
    }
}

async fn before(url: &str, credential: Answer, response: Value) -> (Broker, Sidecar) {
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), credential);
    let route = Route::new("p", url).connection(&Scene::id());
    let sidecar = Sidecar::with(&broker, &route.with("response", response)).await;
    (broker, sidecar)
}

/// An upstream for one request whose answer the test writes piece by piece.
struct Scripted {
    _broker: Broker,
    sidecar: Sidecar,
    pieces: mpsc::UnboundedSender<Vec<u8>>,
}

impl Scripted {
    async fn new(response: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (pieces, mut script) = mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            }
            while let Some(piece) = script.recv().await {
                // The sidecar hangs up on an answer that it cuts.
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
            }
        });
        let (broker, sidecar) = before(&url, Answer::oauth2(TOKEN), response).await;
        Self {
            _broker: broker,
            sidecar,
            pieces,
        }
    }

    /// A chunked answer to a request, with these lines in its head and nothing of its content yet.
    async fn begin(&self, fields: &str) -> Response<Incoming> {
        let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{fields}\r\n");
        self.pieces.send(head.into_bytes()).unwrap();
        let call = self.sidecar.agent().get("/").provider("p");
        wait::within("a head", call.header("TE", "trailers").open())
            .await
            .unwrap()
    }

    fn chunk(&self, content: &[u8]) {
        let size = format!("{:x}\r\n", content.len());
        let chunk = [size.as_bytes(), content, b"\r\n"].concat();
        self.pieces.send(chunk).unwrap();
    }

    fn end(&self, trailers: &str) {
        self.pieces
            .send(format!("0\r\n{trailers}\r\n").into_bytes())
            .unwrap();
    }
}

/// The next piece of a body, as long as it streams.
async fn next(body: &mut Incoming) -> Bytes {
    let frame = wait::within("a piece of the body", body.frame()).await;
    frame.unwrap().unwrap().into_data().unwrap()
}

/// What else comes of a body, its trailers, and whether it ends well.
async fn rest(mut body: Incoming) -> (Vec<u8>, HeaderMap, bool) {
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    loop {
        match wait::within("the end of the body", body.frame()).await {
            None => return (bytes, trailers, true),
            Some(Err(_)) => return (bytes, trailers, false),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().unwrap(),
            },
        }
    }
}

/// The line about the only answer that a credential was found in.
async fn audited(sidecar: &Sidecar) -> Value {
    wait::until("a line about a credential", || {
        let lines = sidecar.access_log();
        lines.into_iter().find(|line| line["scrubbed"].is_number())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_compressed_answer_arrives_byte_for_byte() {
    let text: String = (0..5_000).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    for scrub in ["Redact", "Block"] {
        for coding in CODINGS {
            let content = encoded(coding, text.as_bytes());
            let fields = format!(
                "Content-Type: application/json\r\nContent-Encoding: {coding}\r\nETag: \"1\"\r\n"
            );
            let fixed = Fixed::new(answer(&fields, &content), json!({"scrub": scrub})).await;
            let got = fixed.get().await;
            assert_eq!(got.status, 200, "{coding}: {}", got.text());
            assert!(got.body == content, "{coding}: changed on the way");
            assert_eq!(got.header("content-encoding"), coding);
            assert_eq!(got.header("content-length"), content.len().to_string());
            assert_eq!(got.header("etag"), "\"1\"");
            let asked = fixed.upstream.requests();
            assert_eq!(asked[0].header("accept-encoding"), Some("identity"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_answer_with_a_credential_is_refused() {
    let text = format!("{{\"you\": \"Bearer {TOKEN}\"}}");
    for scrub in ["Redact", "Block"] {
        for codings in [
            &["gzip"][..],
            &["deflate"],
            &["br"],
            &["zstd"],
            &["br", "gzip"],
        ] {
            let content = codings
                .iter()
                .fold(text.clone().into_bytes(), |bytes, coding| {
                    encoded(coding, &bytes)
                });
            let fields = format!(
                "Content-Type: application/json\r\nContent-Encoding: {}\r\n",
                codings.join(", ")
            );
            let fixed = Fixed::new(answer(&fields, &content), json!({"scrub": scrub})).await;
            let got = fixed.get().await;
            assert_eq!(
                (got.status, got.error()),
                (502, "upstream_unreachable"),
                "{codings:?}"
            );
            assert!(got.text().contains("compressed body"), "{}", got.text());
            let line = audited(&fixed.sidecar).await;
            assert_eq!(
                (&line["type"], &line["scrubbed"]),
                (&json!("audit"), &json!(1))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_comes_later_cuts_a_compressed_answer_before_it() {
    let (first, second) = TOKEN.split_at(TOKEN.len() / 2);
    let begins = format!("data: {first}");
    let pieces = gzip(&[b"data: clean\n\n", begins.as_bytes(), second.as_bytes()]);
    let scripted = Scripted::new(json!({})).await;
    let response = scripted
        .begin("Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n")
        .await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    scripted.chunk(&pieces[0]);
    assert_eq!(
        next(&mut body).await,
        pieces[0],
        "a flushed event is not delayed"
    );
    scripted.chunk(&pieces[1]);
    scripted.chunk(&pieces[2]);
    scripted.end("");
    assert_eq!(rest(body).await, (Vec::new(), HeaderMap::new(), false));
    let line = audited(&scripted.sidecar).await;
    assert_eq!(line["error"], "upstream_unreachable");
    assert!(line["reason"].as_str().unwrap().contains("credential"));
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_takes_a_cut_answer_for_broken() {
    let content = format!("{}{TOKEN}", "clean ".repeat(50_000));
    // Stored, so that the credential comes long after the head.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(content.as_bytes()).unwrap();
    let content = encoder.finish().unwrap();
    let fields = "Content-Type: text/plain\r\nContent-Encoding: gzip\r\n";
    let fixed = Fixed::new(answer(fields, &content), json!({})).await;
    let url = format!("{}/via/p/x", fixed.sidecar.url());
    let mut curl = Command::new("curl");
    let done = curl
        .args([
            "--silent",
            "--compressed",
            "--noproxy",
            "*",
            "--max-time",
            "30",
            &url,
        ])
        .output();
    let done = wait::within("curl", done).await.unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(text.starts_with("clean clean"), "{text}");
    assert!(!text.contains(&TOKEN[..4]));
    // CURLE_PARTIAL_FILE, or CURLE_RECV_ERROR where the end of the connection is seen first.
    assert!(
        matches!(done.status.code(), Some(18 | 56)),
        "{:?}",
        done.status
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_events_arrive_one_by_one() {
    let events: Vec<String> = (0..20).map(|n| format!("data: {n}\n\n")).collect();
    let events: Vec<&[u8]> = events.iter().map(String::as_bytes).collect();
    let scripted = Scripted::new(json!({"compression": "Pass"})).await;
    let response = scripted
        .begin("Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n")
        .await;
    let mut body = response.into_body();
    for piece in gzip(&events) {
        // The next one is not sent before this one has arrived.
        scripted.chunk(&piece);
        assert_eq!(next(&mut body).await, piece);
    }
    scripted.end("");
    assert_eq!(rest(body).await, (Vec::new(), HeaderMap::new(), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_or_a_false_coding_is_refused() {
    let bomb = encoded("gzip", &vec![b' '; 8 << 20]);
    for (content, reason) in [
        (&bomb[..], "100 times"),
        (b"plain text", "not what its Content-Encoding says"),
    ] {
        let fields = "Content-Type: text/plain\r\nContent-Encoding: gzip\r\n";
        let fixed = Fixed::new(answer(fields, content), json!({})).await;
        let got = fixed.get().await;
        assert_eq!((got.status, got.error()), (502, "upstream_unreachable"));
        assert!(got.text().contains(reason), "{}", got.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_text_not_whole_or_not_known_passes() {
    let secret = encoded("gzip", TOKEN.as_bytes());
    for fields in [
        "Content-Type: image/png\r\nContent-Encoding: gzip\r\n",
        "Content-Type: text/plain\r\nContent-Encoding: compress\r\n",
        "Content-Type: text/plain\r\nContent-Encoding: gzip\r\nContent-Range: bytes 5-9/80\r\n",
    ] {
        let fixed = Fixed::new(answer(fields, &secret), json!({})).await;
        let got = fixed.get().await;
        assert_eq!(got.status, 200, "{fields}: {}", got.text());
        assert!(got.body == secret, "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn block_refuses_an_answer_that_repeats_the_credential_in_its_head() {
    let plain = answer("X-Echo: 1\r\n", b"fine");
    let header = answer(&format!("X-Echo: Bearer {TOKEN}\r\n"), b"fine");
    let content = answer("Content-Type: text/plain\r\n", TOKEN.as_bytes());
    let reason = format!("HTTP/1.1 401 Bad {TOKEN}\r\nContent-Length: 4\r\n\r\nfine").into_bytes();
    for (reply, status) in [(plain, 200), (header, 502), (reason, 502), (content, 502)] {
        let fixed = Fixed::new(reply, json!({"scrub": "Block"})).await;
        let got = fixed.get().await;
        assert_eq!(got.status, status, "{}", got.text());
        if status == 502 {
            assert_eq!(got.error(), "upstream_unreachable");
            assert!(got.text().contains("response.scrub is Block"));
            assert_eq!(got.headers.get("x-echo"), None);
            let line = audited(&fixed.sidecar).await;
            assert_eq!(
                (&line["status"], &line["scrubbed"]),
                (&json!(502), &json!(1))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn block_cuts_where_the_head_is_out_already() {
    for in_trailers in [false, true] {
        let scripted = Scripted::new(json!({"scrub": "Block"})).await;
        let response = scripted
            .begin("Content-Type: text/plain\r\nTrailer: X-Echo\r\n")
            .await;
        let mut body = response.into_body();
        scripted.chunk(b"first");
        assert_eq!(next(&mut body).await, "first");
        if in_trailers {
            scripted.end(&format!("X-Echo: {TOKEN}\r\n"));
        } else {
            scripted.chunk(format!("and {TOKEN}").as_bytes());
            scripted.end("");
        }
        let (bytes, trailers, whole) = rest(body).await;
        assert_eq!(
            (bytes, trailers, whole),
            (Vec::new(), HeaderMap::new(), false)
        );
        assert_eq!(audited(&scripted.sidecar).await["scrubbed"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vouches_for_masked_content_does_not_arrive() {
    let vouching = "ETag: \"1\"\r\nContent-MD5: x\r\nDigest: x\r\nRepr-Digest: x\r\n\
                    Content-Digest: x\r\nx-amz-checksum-crc32: x\r\n";
    let fields = format!("Content-Type: text/plain\r\n{vouching}");
    for (content, left) in [("nothing", 6), (TOKEN, 0)] {
        let fixed = Fixed::new(answer(&fields, content.as_bytes()), json!({})).await;
        let got = fixed.get().await;
        assert_eq!(got.status, 200);
        let found = [
            "etag",
            "content-md5",
            "digest",
            "repr-digest",
            "content-digest",
            "x-amz-checksum-crc32",
        ]
        .iter()
        .filter(|name| got.headers.contains_key(**name))
        .count();
        assert_eq!(found, left, "{content}: {:?}", got.headers);
        assert_eq!(got.header("content-length"), content.len().to_string());
        let masked = content.replace(TOKEN, &"*".repeat(TOKEN.len()));
        assert_eq!(got.text(), masked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_are_masked_and_filtered() {
    for (content, vouched) in [("clean", true), (TOKEN, false)] {
        let scripted = Scripted::new(json!({})).await;
        let names = "X-Echo, X-Nexus-Error, Set-Cookie, Content-Digest, X-Last";
        let response = scripted
            .begin(&format!("Content-Type: text/plain\r\nTrailer: {names}\r\n"))
            .await;
        scripted.chunk(content.as_bytes());
        scripted.end(&format!(
            "X-Nexus-Error: forged\r\nSet-Cookie: a=b\r\nContent-Digest: x\r\nX-Last: 1\r\n"
        ));
        let (bytes, trailers, whole) = rest(response.into_body()).await;
        assert!(whole);
        assert_eq!(bytes.len(), content.len());
        let mut names: Vec<_> = trailers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        if vouched {
            assert_eq!(names, ["content-digest", "x-last"]);
        } else {
            assert_eq!(names, ["x-last"]);
        }
    }
    let scripted = Scripted::new(json!({})).await;
    let response = scripted.begin("Trailer: X-Echo\r\n").await;
    scripted.end(&format!("X-Echo: Bearer {TOKEN}\r\n"));
    let (_, trailers, whole) = rest(response.into_body()).await;
    assert!(whole);
    assert_eq!(
        trailers["x-echo"],
        format!("Bearer {}", "*".repeat(TOKEN.len()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_reaches_beyond_the_answer_and_no_hint_comes_before_it() {
    let reply = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n\
        HTTP/1.1 200 OK\r\nX-Nexus-Error: forged\r\nX-Nexus-Request-Id: forged\r\nAuthorization: x\r\n\
        Alt-Svc: h3=\":443\"\r\nStrict-Transport-Security: max-age=1\r\nClear-Site-Data: \"*\"\r\n\
        Set-Cookie: a=b\r\nConnection: X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
        WWW-Authenticate: Negotiate\r\nWWW-Authenticate: Basic realm=\"a\"\r\nX-Public: 1\r\n\
        Content-Length: 2\r\n\r\nok";
    let fixed = Fixed::new(reply.to_vec(), json!({})).await;
    let mut agent = RawAgent::connect(fixed.sidecar.proxy_addr()).await;
    agent
        .send("GET /x HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\r\n")
        .await;
    let Outcome::Response(got) = agent.receive().await else {
        panic!("no answer");
    };
    assert_eq!(got.status(), 200, "the first thing to come: {}", got.start);
    let mut names: Vec<_> = got
        .headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "content-length",
            "date",
            "www-authenticate",
            "x-nexus-request-id",
            "x-public"
        ]
    );
    assert_eq!(got.values("www-authenticate"), ["Basic realm=\"a\""]);
    assert_ne!(got.header("x-nexus-request-id"), Some("forged"));
}

/// The credential is a query parameter, which links repeat.
fn key_in_query() -> Answer {
    Answer::credential(
        json!({"type": "query_param", "config": {"param_name": "api_key"}}),
        json!({"api_key": "key-in-the-query"}),
    )
}

/// An upstream whose answers hold links to itself, and a sidecar before it.
async fn linked(encoding: &str, response: Value) -> Fixed {
    let upstream = RawUpstream::start_at(|url| {
        let content = format!(
            "{{\"next\":\"{url}/v1/x?page=2&api_key=key-in-the-query\",\"self\":\"{}\",\"other\":\"{url}/v10\"}}",
            format!("{url}/v1").replace('/', "\\/")
        );
        let mut fields = String::from(
            "Content-Type: application/json\r\nETag: \"1\"\r\nAccept-Ranges: bytes\r\n",
        );
        let content = if encoding.is_empty() {
            content.into_bytes()
        } else {
            fields += &format!("Content-Encoding: {encoding}\r\n");
            encoded(encoding, content.replace("key-in-the-query", "").as_bytes())
        };
        Reply::Bytes(answer(&fields, &content))
    })
    .await;
    let url = format!("{}/v1", upstream.url());
    let (broker, sidecar) = before(&url, key_in_query(), response).await;
    Fixed {
        _broker: broker,
        upstream,
        sidecar,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_content_lead_back_through_the_sidecar() {
    for scrub in ["Redact", "Block"] {
        let fixed = linked("", json!({"rewriteLinks": "Body", "scrub": scrub})).await;
        let url = fixed.upstream.url();
        let agent = fixed.sidecar.agent();
        let other = format!("{url}/v10");
        let absolute = format!("{url}/v1");
        for (call, own) in [
            (agent.get("/x").provider("p"), ""),
            (agent.get("/via/p/x"), "/via/p"),
            (agent.get(&format!("{absolute}/x")), absolute.as_str()),
        ] {
            let got = call.send().await;
            assert_eq!(got.status, 200, "{}", got.text());
            let root = if own.is_empty() { "/" } else { own };
            assert_eq!(
                got.json(),
                json!({"next": format!("{own}/x?page=2"), "self": root, "other": other})
            );
            for name in ["etag", "content-length", "accept-ranges"] {
                assert_eq!(got.header(name), "", "{name}");
            }
        }
        let next = agent.get("/via/p/x?page=2").send().await;
        assert_eq!(next.status, 200);
        let asked = fixed.upstream.requests();
        let last = asked.last().unwrap().target();
        assert_eq!(last, "/v1/x?page=2&api_key=key-in-the-query");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_content_stay_unless_they_are_asked_for_and_readable() {
    for (encoding, response) in [("", json!({})), ("gzip", json!({"rewriteLinks": "Body"}))] {
        let fixed = linked(encoding, response).await;
        let got = fixed.get().await;
        assert_eq!(got.status, 200, "{}", got.text());
        assert_ne!(got.header("content-length"), "");
        let text = if encoding.is_empty() {
            got.text()
        } else {
            assert_eq!(got.header("etag"), "\"1\"");
            let mut decoder = flate2::write::GzDecoder::new(Vec::new());
            decoder.write_all(&got.body).unwrap();
            String::from_utf8(decoder.finish().unwrap()).unwrap()
        };
        let next = format!("\"{}/v1/x?page=2&api_key=", fixed.upstream.url());
        assert!(text.contains(&next), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_stay_with_their_provider() {
    let set = "Set-Cookie: session=of-p; Domain=api.example.com; Path=/v1; Secure; HttpOnly\r\n";
    let p = RawUpstream::start(Reply::Bytes(answer(set, b"ok"))).await;
    let q = RawUpstream::ok().await;
    let broker = Broker::gateway().await;
    let mut run = Sidecar::run().control(&broker);
    for (number, (name, upstream)) in [(1, ("p", &p)), (2, ("q", &q))] {
        broker.set(&connection(number), Answer::oauth2(TOKEN));
        let route = Route::new(name, &format!("{}/v1", upstream.url()))
            .connection(&connection(number))
            .with("response", json!({"setCookie": "Pass"}));
        run = run.route(&route);
    }
    let sidecar = run.start().await;
    let script = "import requests, sys\n\
        session = requests.Session()\n\
        session.trust_env = False\n\
        for path in ['/via/p/login', '/via/p/x', '/via/q/x', '/via/p']:\n\
        \x20   session.get(sys.argv[1] + path)\n";
    output(Command::new(python()).args(["-c", script, &sidecar.url()])).await;
    let cookies = |upstream: &RawUpstream| -> Vec<(String, Vec<String>)> {
        let requests = upstream.requests();
        requests
            .iter()
            .map(|request| {
                let values = request.values("cookie").into_iter().map(str::to_owned);
                (request.target().to_owned(), values.collect())
            })
            .collect()
    };
    let sent = vec!["session=of-p".to_owned()];
    assert_eq!(
        cookies(&p),
        [
            ("/v1/login".to_owned(), vec![]),
            ("/v1/x".to_owned(), sent.clone()),
            ("/v1/".to_owned(), sent),
        ]
    );
    assert_eq!(cookies(&q), [("/v1/x".to_owned(), vec![])]);
}
