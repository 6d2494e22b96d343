//! An HTTP client that sends what a test says and nothing else: one connection per request, no headers of its own
//! but `Host`.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::wait;

/// Sends requests to one address.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    addr: SocketAddr,
}

impl Agent {
    /// An agent of the listener at `addr`.
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr }
    }

    /// Starts a GET.
    pub fn get(&self, target: &str) -> Call {
        self.call(Method::GET, target)
    }

    /// Starts a POST.
    pub fn post(&self, target: &str, body: impl Into<Bytes>) -> Call {
        self.call(Method::POST, target).body(body)
    }

    /// Starts a request; `target` goes into the request line as it is.
    pub fn call(&self, method: Method, target: &str) -> Call {
        Call {
            addr: self.addr,
            method,
            target: target.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Call {
    addr: SocketAddr,
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    /// Adds `X-Nexus-Provider`.
    #[must_use]
    pub fn provider(self, provider: &str) -> Self {
        self.header("X-Nexus-Provider", provider)
    }

    /// Adds `X-Nexus-Tenant`.
    #[must_use]
    pub fn tenant(self, tenant: &str) -> Self {
        self.header("X-Nexus-Tenant", tenant)
    }

    /// Adds a header, also one that is there already.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
        self
    }

    /// Sets the content.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub async fn send(self) -> Answer {
        let what = format!("{} {}", self.method, self.target);
        wait::within(&what, async {
            let response = self.open().await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body,
            }
        })
        .await
    }

    /// Sends it and returns as soon as the answer's head is there. Dropping the response drops the connection.
    ///
    /// # Errors
    ///
    /// When the connection breaks before that.
    pub async fn open(self) -> hyper::Result<Response<Incoming>> {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.target)
            .body(Full::new(self.body))
            .unwrap();
        *request.headers_mut() = self.headers;
        if !request.headers().contains_key(http::header::HOST) {
            let host = HeaderValue::from_str(&self.addr.to_string()).unwrap();
            request.headers_mut().insert(http::header::HOST, host);
        }
        sender.send_request(request).await
    }
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Content.
    pub body: Bytes,
}

impl Answer {
    /// A header as text, or the empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |v| v.to_str().unwrap_or("(not text)"))
    }

    /// `X-Nexus-Error`, or the empty string when the answer is the upstream's.
    pub fn error(&self) -> &str {
        self.header("x-nexus-error")
    }

    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The content as JSON.
    ///
    /// # Panics
    ///
    /// When it is not, showing it.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{} with {:?}: {e}", self.status, self.text()))
    }
}
