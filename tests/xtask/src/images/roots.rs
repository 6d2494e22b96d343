//! Certificate authorities for images whose program has none built in: Mozilla's, of a version that is pinned, so that
//! an image does not depend on the machine that made it.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Characters of a line, after RFC 7468.
const LINE: usize = 64;

/// All of them as PEM.
pub(super) fn pem() -> anyhow::Result<String> {
    let mut pem = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        pem += "-----BEGIN CERTIFICATE-----\n";
        let text = STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(LINE) {
            writeln!(pem, "{}", str::from_utf8(line)?)?;
        }
        pem += "-----END CERTIFICATE-----\n";
    }
    Ok(pem)
}
