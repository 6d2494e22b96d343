//! Somebody who talks to an API server: requests as plain paths and JSON, so that every subresource and every forged
//! object can be sent, and answers with the warnings that kubectl would show.

use http::{Method, Request};
use http_body_util::BodyExt;
use kube::Client;
use serde_json::Value;

/// A user of the API server.
#[derive(Clone)]
pub struct Caller {
    client: Client,
    user: Option<(String, Vec<String>)>,
}

/// What the API server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status code.
    pub code: u16,
    /// The object, or the `Status` that says why not.
    pub body: Value,
    /// The `Warning` headers' texts.
    pub warnings: Vec<String>,
}

impl Caller {
    /// Whoever the client is.
    pub fn new(client: Client) -> Self {
        Self { client, user: None }
    }

    /// Somebody else, by impersonation.
    #[must_use]
    pub fn user(&self, name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Self {
            user: Some((name.to_owned(), groups)),
            ..self.clone()
        }
    }

    /// A service account, by impersonation.
    #[must_use]
    pub fn service_account(&self, namespace: &str, name: &str) -> Self {
        self.user(&format!("system:serviceaccount:{namespace}:{name}"), &[])
    }

    /// Sends a request without a body.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "application/json", &Value::Null)
            .await
    }

    /// Creates an object, or calls a subresource.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, "application/json", body)
            .await
    }

    /// Replaces an object.
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, "application/json", body).await
    }

    /// Changes an object by a merge patch.
    pub async fn merge(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, "application/merge-patch+json", body)
            .await
    }

    /// Changes an object by a strategic merge patch, as `kubectl patch` does: lists are merged by name.
    pub async fn strategic(&self, path: &str, body: &Value) -> Answer {
        let content = "application/strategic-merge-patch+json";
        self.send(Method::PATCH, path, content, body).await
    }

    /// Applies an object server-side, taking over what others own. `path` names it.
    pub async fn apply(&self, path: &str, body: &Value) -> Answer {
        let path = format!("{path}?fieldManager=caller&force=true");
        self.send(Method::PATCH, &path, "application/apply-patch+yaml", body)
            .await
    }

    /// Deletes an object, with `DeleteOptions` or `null`.
    pub async fn delete(&self, path: &str, options: &Value) -> Answer {
        self.send(Method::DELETE, path, "application/json", options)
            .await
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: &Value) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content);
        if let Some((name, groups)) = &self.user {
            request = request.header("impersonate-user", name);
            for group in groups {
                request = request.header("impersonate-group", group);
            }
        }
        let body = match body {
            Value::Null => Vec::new(),
            body => serde_json::to_vec(body).unwrap(),
        };
        let request = request.body(body.into()).unwrap();
        let response = self.client.send(request).await.unwrap();
        let code = response.status().as_u16();
        let warnings = response
            .headers()
            .get_all("warning")
            .iter()
            .map(|value| unquoted(&String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
        Answer {
            code,
            body,
            warnings,
        }
    }
}

impl Answer {
    /// The object of an answer that must be a success.
    ///
    /// # Panics
    ///
    /// When it is none.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{}", self.message());
        self.body
    }

    /// Why a request failed.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// The admission policy that denied the request, and what it said.
    pub fn denial(&self) -> Option<(&str, &str)> {
        let (_, rest) = self.message().split_once("ValidatingAdmissionPolicy '")?;
        let (policy, rest) = rest.split_once('\'')?;
        let (_, why) = rest.split_once(" denied request: ")?;
        (self.code == 403).then_some((policy, why))
    }
}

/// The text of `299 - "text"`.
fn unquoted(warning: &str) -> String {
    let text = warning.strip_prefix("299 - \"").unwrap_or(warning);
    let text = text.strip_suffix('"').unwrap_or(text);
    text.replace("\\\"", "\"").replace("\\\\", "\\")
}
