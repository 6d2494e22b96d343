//! HTTP/1.1 as bytes: a strict reader of messages, and an upstream that keeps exactly what arrived.
//!
//! The reader accepts one framing only and calls everything that two readers could understand differently an
//! error. It is written against RFC 9112 alone and shares no code with the server and client libraries under test.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A message with exactly one reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Request line or status line, without its line end.
    pub start: String,
    /// Names and values as they were sent, in order.
    pub headers: Vec<(String, String)>,
    /// The content, without chunk framing.
    pub body: Vec<u8>,
}

impl Message {
    /// Takes the first complete message out of `buffer`, leaving what follows it.
    ///
    /// # Errors
    ///
    /// When what is there has no reading or more than one.
    pub fn take(buffer: &mut Vec<u8>) -> Result<Option<Self>, String> {
        let Some(end) = find(buffer, b"\r\n\r\n") else {
            return Ok(None);
        };
        let (start, headers) = parse_head(&buffer[..end])?;
        let mut message = Self {
            start,
            headers,
            body: Vec::new(),
        };
        let rest = &buffer[end + 4..];
        let used = match message.framing()? {
            Framing::Length(length) if rest.len() < length => return Ok(None),
            Framing::Length(length) => {
                message.body = rest[..length].to_vec();
                length
            }
            Framing::Chunked => match take_chunks(rest)? {
                None => return Ok(None),
                Some((body, used)) => {
                    message.body = body;
                    used
                }
            },
        };
        buffer.drain(..end + 4 + used);
        Ok(Some(message))
    }

    /// Every message in `bytes`, which must hold nothing else.
    ///
    /// # Errors
    ///
    /// When there is a rest, or no single reading.
    pub fn all(bytes: &[u8]) -> Result<Vec<Self>, String> {
        let mut buffer = bytes.to_vec();
        let mut messages = Vec::new();
        while let Some(message) = Self::take(&mut buffer)? {
            messages.push(message);
        }
        if buffer.is_empty() {
            Ok(messages)
        } else {
            Err(format!("left over: {:?}", String::from_utf8_lossy(&buffer)))
        }
    }

    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.values(name).first().copied()
    }

    /// All values of a header.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
            .collect()
    }

    /// Method of a request.
    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    /// Target of a request, as sent.
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// Status of a response.
    pub fn status(&self) -> u16 {
        self.target().parse().unwrap_or_default()
    }

    fn framing(&self) -> Result<Framing, String> {
        let lengths = self.values("content-length");
        let codings = self.values("transfer-encoding");
        match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => Ok(Framing::Length(0)),
            ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => length
                .parse()
                .map(Framing::Length)
                .map_err(|e| e.to_string()),
            ([], ["chunked"]) => Ok(Framing::Chunked),
            _ => Err(format!("framing: lengths {lengths:?}, codings {codings:?}")),
        }
    }
}

enum Framing {
    Length(usize),
    Chunked,
}

type Head = (String, Vec<(String, String)>);

fn parse_head(head: &[u8]) -> Result<Head, String> {
    let text = std::str::from_utf8(head).map_err(|e| e.to_string())?;
    let mut lines = text.split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    for line in std::iter::once(start.as_str()).chain(text.split("\r\n").skip(1)) {
        if line.contains(['\r', '\n', '\0']) {
            return Err(format!("control bytes in {line:?}"));
        }
    }
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| format!("no colon in {line:?}"))?;
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(format!("not a header name: {name:?}"));
        }
        headers.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
    Ok((start, headers))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

type Chunks = Option<(Vec<u8>, usize)>;

fn take_chunks(bytes: &[u8]) -> Result<Chunks, String> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = find(&bytes[at..], b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&bytes[at..at + line]).map_err(|e| e.to_string())?;
        let size = usize::from_str_radix(size, 16).map_err(|e| format!("chunk {size:?}: {e}"))?;
        at += line + 2;
        if size == 0 {
            // Trailers end at an empty line as a head does; here the line end of the last chunk counts too.
            let Some(end) = find(&bytes[at - 2..], b"\r\n\r\n") else {
                return Ok(None);
            };
            return Ok(Some((body, at - 2 + end + 4)));
        }
        if bytes.len() < at + size + 2 {
            return Ok(None);
        }
        body.extend_from_slice(&bytes[at..at + size]);
        if &bytes[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk is longer than its size".to_owned());
        }
        at += size + 2;
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// A complete response with a `Content-Length`; no `Content-Type` when that is empty.
pub fn response(status: u16, content_type: &str, body: &str) -> Vec<u8> {
    let content_type = match content_type {
        "" => String::new(),
        other => format!("Content-Type: {other}\r\n"),
    };
    format!(
        "HTTP/1.1 {status} Scripted\r\n{content_type}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// What a [`RawUpstream`] does with each complete request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Sends these bytes and keeps the connection.
    Bytes(Vec<u8>),
    /// Sends these bytes and closes.
    BytesThenClose(Vec<u8>),
    /// Sends these bytes and resets the connection.
    BytesThenReset(Vec<u8>),
    /// Never answers.
    Hang,
}

/// An upstream that records the exact bytes of each connection.
#[derive(Debug)]
pub struct RawUpstream {
    addr: SocketAddr,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl RawUpstream {
    /// Starts one that answers every request with `ok`.
    pub async fn ok() -> Self {
        Self::start(Reply::Bytes(response(200, "text/plain", "ok"))).await
    }

    /// Starts one.
    pub async fn start(reply: Reply) -> Self {
        Self::start_at(|_| reply).await
    }

    /// Starts one whose reply repeats its own base URL.
    pub async fn start_at(reply: impl FnOnce(&str) -> Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let reply = reply(&format!("http://{addr}"));
        let received = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&received);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let index = {
                    let mut log = log.lock().unwrap();
                    log.push(Vec::new());
                    log.len() - 1
                };
                connections.spawn(record(stream, index, Arc::clone(&log), reply.clone()));
            }
        });
        Self {
            addr,
            received,
            task,
        }
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What each connection received, byte for byte.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.received.lock().unwrap().clone()
    }

    /// All requests of all connections.
    ///
    /// # Panics
    ///
    /// When some bytes have no reading or more than one.
    pub fn requests(&self) -> Vec<Message> {
        self.received()
            .iter()
            .flat_map(|bytes| Message::all(bytes).unwrap())
            .collect()
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn record(mut stream: TcpStream, index: usize, log: Arc<Mutex<Vec<Vec<u8>>>>, reply: Reply) {
    stream.set_nodelay(true).unwrap();
    let mut pending = Vec::new();
    loop {
        let before = pending.len();
        match stream.read_buf(&mut pending).await {
            Ok(0) | Err(_) => return,
            Ok(_) => log.lock().unwrap()[index].extend_from_slice(&pending[before..]),
        }
        // What has no reading stays in the log for the test to judge; it gets no answer.
        while let Ok(Some(_)) = Message::take(&mut pending) {
            let (bytes, end) = match &reply {
                Reply::Bytes(bytes) => (bytes.as_slice(), End::Keep),
                Reply::BytesThenClose(bytes) => (bytes.as_slice(), End::Close),
                Reply::BytesThenReset(bytes) => (bytes.as_slice(), End::Reset),
                Reply::Hang => (&[][..], End::Keep),
            };
            if stream.write_all(bytes).await.is_err() {
                return;
            }
            match end {
                End::Keep => {}
                End::Close => return,
                End::Reset => {
                    // A linger time of zero turns the close into a reset.
                    let _ = stream.set_zero_linger();
                    return;
                }
            }
        }
    }
}

enum End {
    Keep,
    Close,
    Reset,
}

/// An agent that sends bytes of its own making.
#[derive(Debug)]
pub struct RawAgent {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// How an exchange of raw bytes ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response.
    Response(Message),
    /// The connection was closed without one.
    Closed,
}

impl RawAgent {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Sends bytes. That the peer may already have closed is for [`Self::receive`] to find out.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Closes the sending half.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The next response, or that there is none.
    ///
    /// # Panics
    ///
    /// When nothing happens for 30 seconds: nothing may hang.
    pub async fn receive(&mut self) -> Outcome {
        crate::wait::within("an answer to raw bytes", async {
            loop {
                match Message::take(&mut self.buffer) {
                    Ok(Some(message)) => return Outcome::Response(message),
                    Ok(None) => {}
                    Err(reason) => panic!("the sidecar sent a malformed response: {reason}"),
                }
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(0) | Err(_) => return Outcome::Closed,
                    Ok(_) => {}
                }
            }
        })
        .await
    }

    /// True once the peer has closed the connection.
    pub async fn is_closed_within(&mut self, limit: Duration) -> bool {
        let read = self.stream.read_buf(&mut self.buffer);
        matches!(tokio::time::timeout(limit, read).await, Ok(Ok(0) | Err(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_takes_lengths_and_chunks_and_leaves_the_rest() {
        let bytes = b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiPOST /b HTTP/1.1\r\n\
                      Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET";
        let mut buffer = bytes.to_vec();
        let first = Message::take(&mut buffer).unwrap().unwrap();
        let second = Message::take(&mut buffer).unwrap().unwrap();
        assert_eq!((first.target(), first.body.as_slice()), ("/a", &b"hi"[..]));
        assert_eq!(
            (second.target(), second.body.as_slice()),
            ("/b", &b"abc"[..])
        );
        assert_eq!(buffer, b"GET");
    }

    #[test]
    fn reader_refuses_what_two_readers_could_understand_differently() {
        for head in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: +1",
            "Content-Length: 1, 1",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked, chunked",
            "Content-Length : 1",
            "A: b\nC: d",
            "A: b\r\n continued",
        ] {
            let bytes = format!("POST / HTTP/1.1\r\n{head}\r\n\r\n0\r\n\r\n");
            assert!(Message::take(&mut bytes.into_bytes()).is_err(), "{head}");
        }
    }
}
