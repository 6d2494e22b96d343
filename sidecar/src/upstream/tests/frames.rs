//! HTTP/2 by hand, for peers that do what no server library would.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;

/// A frame's type, flags and stream, and what it carries.
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// One side of a connection, a server's.
pub(super) struct Peer<S>(pub(super) S);

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Reads the client's preface and allows it `max_streams` at once.
    pub(super) async fn greet(stream: S, max_streams: u32) -> Self {
        let mut peer = Self(stream);
        peer.0.read_exact(&mut [0; 24]).await.unwrap();
        let setting = [&[0, 3], &max_streams.to_be_bytes()[..]].concat();
        peer.write(SETTINGS, 0, 0, &setting).await;
        peer
    }

    pub(super) async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [
            &length[1..],
            &[kind, flags],
            &stream.to_be_bytes()[..],
            payload,
        ];
        // Who writes to a connection that is gone learns it by reading.
        let _ = self.0.write_all(&head.concat()).await;
    }

    /// The next frame, `None` at the end. PINGs are not answered.
    pub(super) async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [high, middle, low, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    /// The stream of the next request.
    pub(super) async fn request(&mut self) -> Option<u32> {
        loop {
            let frame = self.read().await?;
            if frame.kind == HEADERS {
                return Some(frame.stream);
            }
        }
    }

    /// Answers 200, without content or with content to come.
    pub(super) async fn answer(&mut self, stream: u32, ended: bool) {
        const END_HEADERS: u8 = 4;
        // `:status: 200` is entry 8 of HPACK's static table.
        self.write(HEADERS, END_HEADERS | u8::from(ended), stream, &[0x88])
            .await;
    }

    pub(super) async fn reset(&mut self, stream: u32, code: u32) {
        self.write(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }

    pub(super) async fn go_away(&mut self, last: u32, code: u32) {
        let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
        self.write(GOAWAY, 0, 0, &payload).await;
    }

    pub(super) async fn pong(&mut self, ping: &Frame) {
        self.write(PING, ACK, 0, &ping.payload).await;
    }
}

impl Frame {
    /// True for a PING that asks for an answer.
    pub(super) fn is_ping(&self) -> bool {
        self.kind == PING && self.flags & ACK == 0
    }
}
