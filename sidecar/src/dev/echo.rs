//! The echo upstream of `dev`: answers with what it received. It verifies nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Largest body that is shown; of longer ones only length and hash.
const MAX_SHOWN_BYTES: usize = 64 * 1024;

/// The service: any method, any path.
pub(crate) fn router() -> Router {
    Router::new().fallback(echo)
}

async fn echo(request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Some(body) = receive(body).await else {
        let mut response = Response::new(Body::from("the body broke off\n"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let shown = json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query(),
        "headers": headers(&parts.headers),
        "body": body,
    });
    let mut response = Response::new(Body::from(format!("{shown:#}\n")));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// Length, hash and, for short texts, the text of a body; `None` if it broke off.
async fn receive(mut body: Body) -> Option<Value> {
    let (mut length, mut hash, mut shown) = (0_u64, Sha256::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else {
            continue;
        };
        length += data.len() as u64;
        hash.update(&data);
        let room = (MAX_SHOWN_BYTES + 1).saturating_sub(shown.len());
        shown.extend_from_slice(&data[..data.len().min(room)]);
    }
    let text = String::from_utf8(shown)
        .ok()
        .filter(|text| text.len() <= MAX_SHOWN_BYTES);
    let sha256 = hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Some(json!({"length": length, "sha256": sha256, "text": text}))
}

/// A string per name, or a list where a name came several times.
fn headers(headers: &HeaderMap) -> BTreeMap<&str, Value> {
    headers
        .keys()
        .map(|name| {
            let mut values: Vec<Value> = headers
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into())
                .collect();
            let value = match values.len() {
                1 => values.remove(0),
                _ => Value::Array(values),
            };
            (name.as_str(), value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_answer_shows_the_request_as_it_came() {
        let request = Request::builder()
            .method("PUT")
            .uri("/bucket//a%2Fb?x=1&x=2")
            .header("a", "1")
            .header("b", "1")
            .header("b", "2")
            .body(Body::from("hello"))
            .unwrap();
        let body = echo(request).await.into_body().collect().await.unwrap();
        let shown: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        assert_eq!(shown["method"], "PUT");
        assert_eq!(shown["path"], "/bucket//a%2Fb");
        assert_eq!(shown["query"], "x=1&x=2");
        assert_eq!(shown["headers"], json!({"a": "1", "b": ["1", "2"]}));
        assert_eq!(shown["body"]["text"], "hello");
        assert_eq!(shown["body"]["length"], 5);
        assert!(
            shown["body"]["sha256"]
                .as_str()
                .unwrap()
                .starts_with("2cf24dba5fb0a30e")
        );
    }

    #[tokio::test]
    async fn a_long_body_is_counted_and_not_shown() {
        let request = Request::new(Body::from(vec![b'x'; 1 << 20]));
        let body = echo(request).await.into_body().collect().await.unwrap();
        let shown: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        assert_eq!(shown["body"]["length"], 1 << 20);
        assert_eq!(shown["body"]["text"], Value::Null);
    }
}
