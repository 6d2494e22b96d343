//! What `dev` runs without any file: three routes to the echo upstream, with credentials made up for this run.

use std::fmt::Write as _;
use std::net::SocketAddr;

use aws_lc_rs::rand;

use super::SetupError;

/// Routes as a user would write them.
pub(crate) fn routes(echo: SocketAddr) -> String {
    ["bearer", "aws", "query"]
        .map(|name| {
            format!(
                "---
apiVersion: nexus.io/v1alpha1
kind: NexusRoute
metadata: {{name: {name}}}
spec:
  upstream: {{url: \"http://{echo}\", allowInsecure: true, allowPrivateAddresses: true}}
"
            )
        })
        .concat()
}

/// Credentials as a user would write them, one for each way to authenticate.
pub(crate) fn credentials() -> Result<String, SetupError> {
    Ok(format!(
        "credentials:
  bearer: {{access_token: dev-token-{}}}
  aws:
    access_key: AKIADEVEXAMPLE
    secret_key: dev-secret-{}
    strategy: {{type: aws_sigv4, config: {{service: s3, region: eu-central-1}}}}
  query:
    api_key: dev-key-{}
    strategy: {{type: query_param, config: {{param_name: api_key}}}}
",
        secret()?,
        secret()?,
        secret()?
    ))
}

/// 128 random bits in hexadecimal.
pub(crate) fn secret() -> Result<String, SetupError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| SetupError::Random)?;
    Ok(bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}
