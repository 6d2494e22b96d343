//! Answers of the control plane, as the credential parser reads them.
//!
//! The input is a payload, optionally a second one that goes under it, and optionally a route's strategy as JSON, with
//! zero bytes between them.

#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use nexus_crds::strategy::StrategySpec;
use nexus_sidecar::credential::{Application, Credential, PayloadError};
use serde_json::{Map, Value};

/// Stands where a credential's value stands. Long enough to be scrubbed, and nothing else looks like it.
const CANARY: &str = "canary5551212";

/// Fields that say when a credential expires.
const TIMES: [&str; 3] = ["expires_at", "expires_in", "expiry"];

fuzz_target!(|data: &[u8]| {
    // Then it may stand where nothing is secret, such as in the name of a strategy.
    if contains(data, CANARY.as_bytes()) {
        return;
    }
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let payload = parts.next().unwrap_or_default();
    let key_payload = parts.next().filter(|part| !part.is_empty());
    let route: Option<StrategySpec> = parts
        .next()
        .and_then(|part| serde_json::from_slice(part).ok());

    // What a secret is cannot be told from these bytes; whatever they are, the rest has to hold.
    let _ = judge(payload, key_payload, route.as_ref());
    let key_planted = key_payload.and_then(planted);
    if let Some(payload) = planted(payload) {
        let parsed = judge(&payload, key_planted.as_deref(), route.as_ref());
        shows_no_canary(&parsed);
    }
});

/// Parses, and checks what holds for every payload.
fn judge(
    payload: &[u8],
    key_payload: Option<&[u8]>,
    route: Option<&StrategySpec>,
) -> Result<Credential, PayloadError> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let parsed = Credential::parse_merged(payload, key_payload, route, now);
    let Ok(credential) = &parsed else {
        return parsed;
    };
    if let Some(at) = credential.expires_at() {
        assert!(!credential.is_usable(at), "used when it expires");
        assert!(
            at > now || !credential.is_usable(now),
            "used after it expired"
        );
    }
    for secret in credential.secrets().filter(|secret| secret.len() >= 8) {
        let scrubber = credential.scrubber().expect("there is a secret to scrub");
        assert!(scrubber.contains(secret), "a secret is not scrubbed");
    }
    match credential.application() {
        Application::Headers(headers) => {
            for (name, value) in headers {
                assert!(value.is_sensitive(), "{name} is not marked sensitive");
                assert!(
                    credential.sets_headers().any(|set| set == name),
                    "the agent's own {name} would be sent too"
                );
            }
        }
        Application::Query(pairs) => {
            for pair in pairs {
                assert!(
                    pair.encoded
                        .bytes()
                        .all(|byte| (0x21..0x7F).contains(&byte)),
                    "not fit for a query"
                );
            }
        }
        Application::Hmac(_) | Application::Sigv4(_) => {}
    }
    parsed
}

/// The payload with the canary as the value of every field of its credential; `None` if it is no JSON object.
fn planted(payload: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(payload).ok()?;
    let root = value.as_object_mut()?;
    plant(root);
    if let Some(Value::Object(wrapped)) = root.get_mut("token") {
        plant(wrapped);
    }
    serde_json::to_vec(&value).ok()
}

fn plant(fields: &mut Map<String, Value>) {
    for (name, field) in fields {
        // The older flat form has its credential at the root, beside what is none.
        let flat = field.is_string();
        if name == "credentials" || flat {
            plant_in(name, field);
        }
    }
}

/// Texts only: other types lead elsewhere in the parser.
fn plant_in(name: &str, value: &mut Value) {
    match value {
        // What was there decides about the way through the parser, so it stays in part.
        Value::String(text) if text.trim().is_empty() || TIMES.contains(&name) => {}
        Value::String(text) => {
            let rest: String = text.chars().take(40).collect();
            *text = format!("{CANARY}{rest}");
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                plant_in(name, field);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {}
    }
}

fn shows_no_canary(parsed: &Result<Credential, PayloadError>) {
    let shown = match parsed {
        Ok(credential) => format!("{credential:?} {:?}", credential.application()),
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!shown.contains(CANARY), "a secret is shown: {shown}");
    let Ok(credential) = parsed else {
        return;
    };
    let strategy = format!("{:?}", credential.strategy());
    if TIMES.iter().any(|name| strategy.contains(name)) {
        // Presented as the credential, a time is one.
        return;
    }
    let secrets: Vec<&[u8]> = credential.secrets().collect();
    assert!(
        secrets
            .iter()
            .any(|secret| contains(secret, CANARY.as_bytes())),
        "what was planted is no secret: {secrets:?}"
    );
    // Whatever goes out with the secret in it, echoed, is found.
    let scrubber = credential.scrubber().expect("the canary is long enough");
    let out: Vec<&[u8]> = match credential.application() {
        Application::Headers(headers) => {
            headers.iter().map(|(_, value)| value.as_bytes()).collect()
        }
        Application::Query(pairs) => pairs.iter().map(|pair| pair.encoded.as_bytes()).collect(),
        Application::Hmac(_) | Application::Sigv4(_) => Vec::new(),
    };
    for sent in out {
        if contains(sent, CANARY.as_bytes()) {
            assert!(
                scrubber.contains(sent),
                "an echo would pass: {}",
                sent.escape_ascii()
            );
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
