//! An AdmissionReview: a request is read, and what was decided is written in the form that the API server wants.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use json_patch::Patch;
use kube::Resource;
use kube::core::DynamicObject;
use kube::core::admission::{
    AdmissionRequest, AdmissionResponse, AdmissionReview, META_API_VERSION_V1, Operation,
};
use serde::de::DeserializeOwned;

/// What the API server asks.
#[derive(Debug)]
pub(super) struct Review(AdmissionRequest<DynamicObject>);

/// Why an object is not admitted.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It must not be as it is.
    Forbidden(String),
    /// It cannot be read.
    Malformed(String),
    /// It cannot be judged now.
    Unavailable(String),
}

impl Refusal {
    /// What the one who asked is told.
    pub(super) fn message(&self) -> &str {
        match self {
            Self::Forbidden(message) | Self::Malformed(message) | Self::Unavailable(message) => {
                message
            }
        }
    }

    fn code(&self) -> StatusCode {
        match self {
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Malformed(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// In the API server's own words, which clients look at.
    fn reason(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => "Forbidden",
            Self::Malformed(_) => "Invalid",
            Self::Unavailable(_) => "ServiceUnavailable",
        }
    }
}

impl Review {
    /// Reads the body of a request. Only the frame: an object that cannot be read is refused under the request's name.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body)
            .map_err(|error| format!("the body is not an AdmissionReview: {error}"))?;
        let version = review.types.api_version.clone();
        if version != META_API_VERSION_V1 {
            return Err(format!(
                "the body is an AdmissionReview of {version}; set admissionReviewVersions to [v1]"
            ));
        }
        let request = review.try_into();
        let request = request.map_err(|_| "the AdmissionReview holds no request".to_owned())?;
        Ok(Self(request))
    }

    /// What is about to happen to the object.
    pub(super) fn operation(&self) -> &Operation {
        &self.0.operation
    }

    /// Whether it is about a part of the object, such as its status.
    pub(super) fn is_subresource(&self) -> bool {
        self.0
            .sub_resource
            .as_deref()
            .is_some_and(|part| !part.is_empty())
    }

    /// Whether nothing will be stored.
    pub(super) fn is_dry_run(&self) -> bool {
        self.0.dry_run
    }

    /// The namespace the object will be in.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.0
            .namespace
            .as_deref()
            .filter(|namespace| !namespace.is_empty())
    }

    /// The object's name, or what it will begin with.
    pub(super) fn name(&self) -> &str {
        let generated = self
            .0
            .object
            .as_ref()
            .and_then(|object| object.metadata.generate_name.as_deref());
        if self.0.name.is_empty() {
            generated.unwrap_or_default()
        } else {
            &self.0.name
        }
    }

    /// The object that would be stored.
    pub(super) fn object<K>(&self, kind: &str) -> Result<K, Refusal>
    where
        K: Resource + DeserializeOwned,
    {
        parse(self.0.object.as_ref(), &self.0.kind.kind, kind)
    }

    /// The object that is stored now.
    pub(super) fn old_object<K>(&self, kind: &str) -> Result<K, Refusal>
    where
        K: Resource + DeserializeOwned,
    {
        parse(self.0.old_object.as_ref(), &self.0.kind.kind, kind)
    }

    /// The answer that it may be as it is.
    pub(super) fn allow(&self) -> AdmissionResponse {
        AdmissionResponse::from(&self.0)
    }

    /// The answer that it may be with these changes.
    pub(super) fn patch(
        &self,
        patch: Patch,
        warnings: Vec<String>,
    ) -> Result<AdmissionResponse, Refusal> {
        let mut response = self
            .allow()
            .with_patch(patch)
            .map_err(|error| Refusal::Unavailable(error.to_string()))?;
        response.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
        Ok(response)
    }

    /// The answer that it may not be.
    pub(super) fn refuse(&self, refusal: &Refusal) -> AdmissionResponse {
        let mut response = self.allow().deny(refusal.message());
        response.result.code = refusal.code().as_u16();
        refusal.reason().clone_into(&mut response.result.reason);
        response
    }
}

fn parse<K>(object: Option<&DynamicObject>, found: &str, kind: &str) -> Result<K, Refusal>
where
    K: Resource + DeserializeOwned,
{
    if found != kind {
        let why =
            format!("a {found} was sent where a {kind} is judged; correct the webhook's rules");
        return Err(Refusal::Malformed(why));
    }
    let object = object
        .cloned()
        .ok_or_else(|| Refusal::Malformed(format!("the request holds no {kind}")))?;
    object
        .try_parse()
        .map_err(|error| Refusal::Malformed(format!("the {kind} cannot be read: {error}")))
}

/// What the API server gets for what has no name to answer to.
pub(super) fn bad_request(problem: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response()
}

/// Sends an answer.
pub(super) fn answer(response: AdmissionResponse) -> Response {
    Json(response.into_review()).into_response()
}
