//! `x-forwarded-client-cert` (reference mtls 8.3).

use http::header::{HeaderMap, HeaderName, HeaderValue};
use maille_core::Identity;
use rustls::pki_types::CertificateDer;

/// The header's name.
pub(crate) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// What this proxy says of the client whose certificate it verified: By, Hash, Subject, URI, DNS.
pub(crate) fn element(own: &Identity, client: &Identity, leaf: &CertificateDer<'_>) -> Option<HeaderValue> {
    let hash: String = maille_tls::leaf_fingerprint(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    let facts = maille_pki::leaf_facts(leaf).ok()?;
    let subject = facts.subject.replace('\\', "\\\\").replace('"', "\\\"");
    let mut text = format!("By={};Hash={hash};Subject=\"{subject}\";URI={}", own.uri(), client.uri());
    for name in &facts.dns_names {
        text.push_str(";DNS=");
        text.push_str(name);
    }
    HeaderValue::from_str(&text).ok()
}

/// APPEND_FORWARD on mutual TLS; removed otherwise, since a plaintext caller's word is worth nothing.
pub(crate) fn apply(headers: &mut HeaderMap, element: Option<&HeaderValue>) {
    let Some(element) = element else {
        headers.remove(&XFCC);
        return;
    };
    if !headers.contains_key(&XFCC) {
        headers.insert(XFCC, element.clone());
        return;
    }
    let mut all: Vec<&[u8]> = headers.get_all(&XFCC).iter().map(HeaderValue::as_bytes).collect();
    all.push(element.as_bytes());
    let joined = HeaderValue::from_bytes(&all.join(&b","[..]));
    match joined {
        Ok(joined) => headers.insert(XFCC, joined),
        Err(_) => headers.insert(XFCC, element.clone()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference mtls XF-2, XF-4.
    #[test]
    fn a_plaintext_caller_cannot_forge_it_and_a_verified_one_is_appended() {
        let forged = HeaderValue::from_static("URI=spiffe://cluster.local/ns/a/sa/admin");
        let mut headers = HeaderMap::new();
        headers.append(XFCC, forged.clone());
        headers.append(XFCC, forged);
        let mut plain = headers.clone();
        apply(&mut plain, None);
        assert!(!plain.contains_key(XFCC));
        apply(&mut headers, Some(&HeaderValue::from_static("By=x")));
        let joined = "URI=spiffe://cluster.local/ns/a/sa/admin,URI=spiffe://cluster.local/ns/a/sa/admin,By=x";
        assert_eq!(headers.get_all(XFCC).iter().collect::<Vec<_>>(), [joined]);
    }
}
