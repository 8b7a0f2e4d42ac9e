//! A token in its compact form (RFC 7515 7.1), taken apart.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::json;
use super::status::Status;

/// Longer ones are not looked into; Envoy takes no more than 60 KiB of headers altogether.
const MAX_TOKEN: usize = 60 * 1024;

/// What a token says, before anything is believed.
pub(super) struct Token<'t> {
    pub(super) algorithm: Algorithm,
    /// Empty: none.
    pub(super) key_id: String,
    /// Header and payload as they are signed.
    pub(super) signed: &'t str,
    /// The signature in base64url, which is known to decode.
    pub(super) signature: &'t str,
    pub(super) payload: Payload<'t>,
}

/// The claims, and those among them that verification looks at.
pub(super) struct Payload<'t> {
    /// As it came, in base64url.
    pub(super) text: &'t str,
    pub(super) claims: Map<String, Value>,
    /// Empty: none.
    pub(super) issuer: String,
    pub(super) audiences: Vec<String>,
    pub(super) times: Times,
}

/// When a token is good, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) not_before: u64,
    /// `None`: it is good for ever.
    pub(super) expires: Option<u64>,
}

impl<'t> Token<'t> {
    /// Says the first thing that is wrong, in Envoy's order.
    ///
    /// Stricter than Envoy where its reader is lenient beyond the RFCs: base64url has no padding, no line breaks and no
    /// stray bits (RFC 7515 2), there are exactly two dots, no member occurs twice (RFC 7515 4), and a header with
    /// `crit` is refused, since none of the extensions it may name is known here (RFC 7515 4.1.11).
    pub(super) fn parse(text: &'t [u8]) -> Result<Self, Status> {
        if text.len() > MAX_TOKEN {
            return Err(Status::BadFormat);
        }
        let text = std::str::from_utf8(text).map_err(|_| Status::BadFormat)?;
        let (signed, signature) = text.rsplit_once('.').ok_or(Status::BadFormat)?;
        let (header, payload) = signed.split_once('.').ok_or(Status::BadFormat)?;
        if header.is_empty() || payload.is_empty() || signature.is_empty() || payload.contains('.') {
            return Err(Status::BadFormat);
        }
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Status::HeaderBadBase64)?;
        let header = json::object(&header).ok_or(Status::HeaderBadJson)?;
        let algorithm = header.get("alg").and_then(Value::as_str).ok_or(Status::HeaderBadAlg)?;
        let algorithm = Algorithm::parse(algorithm).ok_or(Status::HeaderUnknownAlg)?;
        let key_id = string(&header, "kid", Status::HeaderBadKid)?.to_owned();
        let payload = Payload::parse(payload)?;
        // Into a buffer, since only whether it decodes matters here.
        URL_SAFE_NO_PAD.decode(signature).map_err(|_| Status::SignatureBadBase64)?;
        if header.contains_key("crit") {
            return Err(Status::VerificationFails);
        }
        Ok(Self { algorithm, key_id, signed, signature, payload })
    }
}

impl<'t> Payload<'t> {
    fn parse(text: &'t str) -> Result<Self, Status> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Status::PayloadBadBase64)?;
        let claims = json::object(&bytes).ok_or(Status::PayloadBadJson)?;
        let issuer = string(&claims, "iss", Status::IssNotString)?.to_owned();
        string(&claims, "sub", Status::SubNotString)?;
        seconds(&claims, "iat", Status::IatNotInteger, Status::IatOutOfRange)?;
        let not_before = seconds(&claims, "nbf", Status::NbfNotInteger, Status::NbfOutOfRange)?.unwrap_or(0);
        let expires = seconds(&claims, "exp", Status::ExpNotInteger, Status::ExpOutOfRange)?;
        string(&claims, "jti", Status::JtiNotString)?;
        let audiences = audiences(&claims)?;
        Ok(Self { text, claims, issuer, audiences, times: Times { not_before, expires } })
    }
}

impl Times {
    /// Whether the token is good at `now`, give or take `skew`.
    pub(super) fn check(self, now: u64, skew: u64) -> Result<(), Status> {
        if now.saturating_add(skew) < self.not_before {
            return Err(Status::NotYetValid);
        }
        match self.expires {
            Some(expires) if now > expires.saturating_add(skew) => Err(Status::Expired),
            _ => Ok(()),
        }
    }
}

/// A member that is a text if it is there at all; absent: empty.
fn string<'m>(members: &'m Map<String, Value>, name: &str, wrong: Status) -> Result<&'m str, Status> {
    match members.get(name) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(wrong),
    }
}

/// A `NumericDate`; fractions are cut off.
fn seconds(
    claims: &Map<String, Value>,
    name: &str,
    wrong: Status,
    out_of_range: Status,
) -> Result<Option<u64>, Status> {
    let Some(claim) = claims.get(name) else { return Ok(None) };
    let Value::Number(number) = claim else { return Err(wrong) };
    if let Some(seconds) = number.as_u64() {
        return Ok(Some(seconds));
    }
    match number.as_f64() {
        // A float that is not negative and below 2^64 fits when its fraction is cut off.
        Some(seconds) if (0.0..18_446_744_073_709_551_616.0).contains(&seconds) => Ok(Some(seconds as u64)),
        _ => Err(out_of_range),
    }
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, Status> {
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(many)) => {
            many.iter().map(|one| one.as_str().map(str::to_owned).ok_or(Status::AudNotString)).collect()
        }
        Some(_) => Err(Status::AudNotString),
    }
}
