//! An upstream over raw HTTP/1.1 that decides request by request what to do, by where the request arrived: which
//! connection, and how many were before it there.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::raw::{Message, Reply};

/// A complete request.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Which connection, from 0, in order of acceptance.
    pub connection: usize,
    /// Which request of its connection, from 0.
    pub request: usize,
    /// Which of all requests, from 0.
    pub number: usize,
    /// What arrived.
    pub message: Message,
}

/// The upstream. It ends when it is dropped.
#[derive(Debug)]
pub struct ScriptedUpstream {
    addr: SocketAddr,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    task: JoinHandle<()>,
}

impl ScriptedUpstream {
    /// Starts one. `script` says how long to wait with a request, and what to do then.
    pub async fn start(
        script: impl Fn(&Arrival) -> (Duration, Reply) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&arrivals);
        let script = Arc::new(script);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut accepted = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let (log, script) = (Arc::clone(&log), Arc::clone(&script));
                connections.spawn(async move { serve(stream, accepted, &log, &*script).await });
                accepted += 1;
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            addr,
            arrivals,
            task,
        }
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every complete request so far.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }
}

impl Drop for ScriptedUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    log: &Mutex<Vec<Arrival>>,
    script: &(dyn Fn(&Arrival) -> (Duration, Reply) + Send + Sync),
) {
    stream.set_nodelay(true).unwrap();
    let mut pending = Vec::new();
    for request in 0.. {
        let message = loop {
            match Message::take(&mut pending) {
                Ok(Some(message)) => break message,
                Ok(None) => match stream.read_buf(&mut pending).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
                Err(reason) => panic!("the upstream got a malformed request: {reason}"),
            }
        };
        let arrival = {
            let mut log = log.lock().unwrap();
            let arrival = Arrival {
                connection,
                request,
                number: log.len(),
                message,
            };
            log.push(arrival.clone());
            arrival
        };
        let (delay, reply) = script(&arrival);
        tokio::time::sleep(delay).await;
        let (bytes, keeps) = match &reply {
            Reply::Bytes(bytes) => (bytes.as_slice(), true),
            Reply::BytesThenClose(bytes) | Reply::BytesThenReset(bytes) => (&bytes[..], false),
            Reply::Hang => (&[][..], true),
        };
        if stream.write_all(bytes).await.is_err() || !keeps {
            if matches!(reply, Reply::BytesThenReset(_)) {
                // A linger time of zero turns the close into a reset.
                stream.set_zero_linger().unwrap();
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::{Outcome, RawAgent, response};

    #[tokio::test]
    async fn script_sees_connection_and_request_and_its_reply_is_done() {
        let upstream = ScriptedUpstream::start(|arrival| {
            let text = format!("{}.{}", arrival.connection, arrival.request);
            let reply = response(200, "text/plain", &text);
            let reply = match arrival.request {
                0 => Reply::Bytes(reply),
                _ => Reply::BytesThenClose(Vec::new()),
            };
            (Duration::ZERO, reply)
        })
        .await;
        let request = "POST /a HTTP/1.1\r\nHost: u\r\nContent-Length: 2\r\n\r\nhi";
        for connection in 0..2 {
            let mut agent = RawAgent::connect(upstream.addr).await;
            agent.send(request).await;
            let Outcome::Response(answer) = agent.receive().await else {
                panic!("closed");
            };
            assert_eq!(answer.body, format!("{connection}.0").into_bytes());
            agent.send(request).await;
            assert_eq!(agent.receive().await, Outcome::Closed);
        }
        let arrivals = upstream.arrivals();
        assert_eq!(arrivals.len(), 4);
        assert_eq!((arrivals[3].connection, arrivals[3].request), (1, 1));
        assert_eq!(
            (arrivals[3].number, &arrivals[3].message.body[..]),
            (3, &b"hi"[..])
        );
    }
}
