//! Recorded exchanges of the real framework, byte for byte, and a server that plays one back.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// One recorded exchange.
pub(crate) struct Exchange {
    /// Text of the `== ` line, without the measured status and time.
    pub(crate) title: String,
    /// First line of the request.
    pub(crate) request_line: String,
    /// The answer's bytes.
    pub(crate) response: Vec<u8>,
}

impl Exchange {
    /// The answer's body.
    pub(crate) fn body(&self) -> &[u8] {
        let end_of_head = self
            .response
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .unwrap();
        &self.response[end_of_head + 4..]
    }

    /// True for a fetch on the token endpoint of a gateway or a broker.
    pub(crate) fn is_token_fetch(&self) -> bool {
        let line = &self.request_line;
        line.starts_with("GET /v1/token/")
            || line.starts_with("GET /connections/") && line.contains("/token ")
    }
}

/// When the recordings were made, as a time at which their credentials are valid.
pub(crate) fn recorded_at() -> SystemTime {
    SystemTime::from("2026-11-24T08:12:44Z".parse::<jiff::Timestamp>().unwrap())
}

/// The exchanges of one file, by its name without extension.
pub(crate) fn exchanges(file: &str) -> Vec<Exchange> {
    let path = format!(
        "{}/../tests/fixtures/wire/{file}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    format!("\n{text}")
        .split("\n== ")
        .skip(1)
        .filter_map(exchange)
        .collect()
}

/// The first exchange of a file whose title starts so.
pub(crate) fn named(file: &str, title: &str) -> Exchange {
    let found = exchanges(file)
        .into_iter()
        .find(|one| one.title.starts_with(title));
    found.unwrap_or_else(|| panic!("{file}: no exchange {title:?}"))
}

/// A line feed that is not part of the answer follows each; `Content-Length` tells where it ends.
fn exchange(section: &str) -> Option<Exchange> {
    let (title, rest) = section.split_once('\n')?;
    let (request, response) = rest.split_once("<<<\n")?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse().unwrap());
    let end = head.len() + 4 + length.min(body.len());
    Some(Exchange {
        title: title.split("  [").next().unwrap_or(title).to_owned(),
        request_line: request.lines().nth(1).unwrap_or_default().to_owned(),
        response: response.as_bytes()[..end].to_vec(),
    })
}

/// A server that answers every request with these bytes, or never if there are none.
pub(crate) async fn replay(response: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let response = response.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                if response.is_empty() {
                    tokio::time::sleep(Duration::from_mins(1)).await;
                }
                let _ = stream.write_all(&response).await;
            });
        }
    });
    address
}

#[test]
fn every_recording_can_be_read() {
    let folder = format!("{}/../tests/fixtures/wire", env!("CARGO_MANIFEST_DIR"));
    let mut fetches = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.extension().is_some_and(|ext| ext == "txt") && name != "README" {
            fetches += exchanges(name)
                .iter()
                .filter(|one| one.is_token_fetch())
                .count();
        }
    }
    assert!(fetches > 100, "{fetches}");
}
