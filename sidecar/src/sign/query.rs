//! `query_param`: ready-made query parameters.

use nexus_crds::strategy::ParamPart;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::header::secret;
use crate::credential::payload::Fields;
use crate::credential::{Application, PayloadError, Prepared, QueryPair};

/// Each parameter set from its credential field, encoded as `application/x-www-form-urlencoded`
/// (WHATWG URL section 5.2): a space becomes `+`.
pub(crate) fn prepare(parts: &[ParamPart], fields: &Fields) -> Result<Prepared, PayloadError> {
    let mut pairs = Vec::with_capacity(parts.len());
    let mut secrets = Vec::with_capacity(parts.len());
    for part in parts {
        let ParamPart {
            name,
            credential_field,
            value_prefix,
        } = part;
        let value = fields.require(credential_field)?;
        let prefixed = Zeroizing::new([value_prefix, value].concat());
        // Room for the worst case, so that no piece of the secret stays behind in an outgrown buffer.
        let room = String::with_capacity(3 * (name.len() + prefixed.len()) + 1);
        let encoded = form_urlencoded::Serializer::new(room)
            .append_pair(name, &prefixed)
            .finish();
        pairs.push(QueryPair {
            name: name.clone(),
            encoded: Zeroizing::new(encoded),
        });
        secrets.push(secret(value));
    }
    Ok(Prepared {
        application: Application::Query(pairs),
        secrets,
        sets_headers: Vec::new(),
    })
}
