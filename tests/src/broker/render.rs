//! The form in which each of the framework's services says the same thing, as it was recorded.

use http::StatusCode;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::{Map, Value, json};

use super::Front;

/// Root fields of a credential that the gateway passes on, in its order.
const GATEWAY_ROOT: [&str; 5] = [
    "access_token",
    "refresh_token",
    "id_token",
    "token_type",
    "expiry",
];
/// Fields of a refreshed token that the gateways pass on.
const GATEWAY_REFRESHED: [&str; 4] = ["access_token", "refresh_token", "id_token", "token_type"];

/// What there is to say, before a front gives it a form.
#[derive(Clone, Debug)]
pub(super) enum Saying {
    /// 200 of the token endpoint.
    Credential { strategy: Value, credentials: Value },
    /// 200 of the refresh endpoint: the provider's answer.
    Refreshed(Map<String, Value>),
    /// The broker's refusal.
    Refused { status: u16, body: Value },
    /// The broker cannot be reached: what stands before it says so.
    Unavailable,
}

impl Saying {
    /// A refusal as most of the broker's are.
    pub(super) fn refused(status: u16, error: &str, message: &str) -> Self {
        let body = json!({"error": error, "message": message});
        Self::Refused { status, body }
    }

    /// 409, whose body differs from the others'.
    pub(super) fn attention(detail: &str) -> Self {
        let body = json!({"error": "attention_required", "detail": detail});
        Self::Refused { status: 409, body }
    }

    /// The whole response.
    pub(super) fn render(&self, front: Front) -> Vec<u8> {
        match self {
            Self::Credential {
                strategy,
                credentials,
            } => message(front, 200, &credential(front, strategy, credentials)),
            Self::Refreshed(answer) => message(front, 200, &refreshed(front, answer)),
            Self::Refused { status, body } => match front {
                Front::Broker => message(front, *status, &body.to_string()),
                Front::Gateway => message(front, *status, ""),
                Front::Grpc => message(front, 200, r#"{"token":{}}"#),
            },
            Self::Unavailable => unavailable(front),
        }
    }
}

fn unavailable(front: Front) -> Vec<u8> {
    match front {
        Front::Gateway => {
            let body = r#"{"error":"broker_unavailable","message":"broker request failed"}"#;
            message(front, 502, body)
        }
        Front::Grpc => {
            let body = r#"{"code":13,"message":"broker request failed","details":[]}"#;
            message(front, 500, body)
        }
        // Nothing of the broker's own: the page of a load balancer.
        Front::Broker => head(502, &["Content-Type: text/html"], "<html>502</html>"),
    }
}

fn credential(front: Front, strategy: &Value, credentials: &Value) -> String {
    let mut root = match credentials {
        Value::Object(fields) if strategy["type"] == "oauth2" => fields.clone(),
        _ => Map::new(),
    };
    if front == Front::Broker {
        root.insert("strategy".to_owned(), strategy.clone());
        root.insert("credentials".to_owned(), credentials.clone());
        return Value::Object(root).to_string();
    }
    let mut fields: Vec<(&str, &Value)> = GATEWAY_ROOT
        .iter()
        .filter_map(|name| Some((*name, root.get(*name)?)))
        .collect();
    fields.push(("strategy", strategy));
    fields.push(("credentials", credentials));
    wrapped(front, &object(&fields))
}

fn refreshed(front: Front, answer: &Map<String, Value>) -> String {
    if front == Front::Broker {
        return Value::Object(answer.clone()).to_string();
    }
    let fields: Vec<(&str, &Value)> = GATEWAY_REFRESHED
        .iter()
        .filter_map(|name| Some((*name, answer.get(*name)?)))
        .collect();
    wrapped(front, &object(&fields))
}

fn wrapped(front: Front, body: &str) -> String {
    match front {
        Front::Grpc => format!(r#"{{"token":{body}}}"#),
        Front::Gateway | Front::Broker => body.to_owned(),
    }
}

/// An object whose fields keep their order.
fn object(fields: &[(&str, &Value)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{}:{value}", Value::from(*name)))
        .collect();
    format!("{{{}}}", fields.join(","))
}

/// A response with the headers of the front. An empty body has no type.
fn message(front: Front, status: u16, body: &str) -> Vec<u8> {
    let mut headers = Vec::new();
    if !body.is_empty() {
        headers.push("Content-Type: application/json");
    }
    if front == Front::Grpc && status == 200 {
        headers.push("Grpc-Metadata-Content-Type: application/grpc");
    }
    if front != Front::Broker {
        headers.push("Vary: Origin");
    }
    head(status, &headers, body)
}

/// The answer to a path that there is not.
pub(super) fn no_such_path(front: Front) -> Vec<u8> {
    let mut headers = vec!["Content-Type: text/plain; charset=utf-8"];
    if front != Front::Broker {
        headers.push("Vary: Origin");
    }
    headers.push("X-Content-Type-Options: nosniff");
    head(404, &headers, "404 page not found\n")
}

/// What a check that a deployment puts before the control plane answers to who has no valid token.
pub(super) fn not_authenticated() -> Vec<u8> {
    head(401, &["WWW-Authenticate: Bearer"], "")
}

fn head(status: u16, headers: &[&str], body: &str) -> Vec<u8> {
    let reason = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unknown");
    let headers = headers
        .iter()
        .fold(String::new(), |lines, line| lines + line + "\r\n");
    let date = DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&Timestamp::now())
        .unwrap();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\n{headers}Date: {date}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
