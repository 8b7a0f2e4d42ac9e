use std::net::IpAddr;
use std::time::SystemTime;

use maille_core::Identity;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use crate::error::{Error, LeafRule, Result};
use crate::time::from_unix_seconds;

/// What an end-entity certificate says, read once.
///
/// This is only what the certificate *claims*: whether a trusted root stands behind it is for
/// path validation to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// URI names.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// IP addresses among the names.
    pub addresses: Vec<IpAddr>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// The subject, in the field's notation; empty for certificates of the mesh's authority.
    pub subject: String,
    role: Role,
}

/// Which of the usage rules the certificate breaks, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Role {
    /// Broken by any end entity, whatever its names.
    leaf: Option<LeafRule>,
    /// Broken as an X.509-SVID.
    svid: Option<LeafRule>,
}

impl LeafFacts {
    /// The workload identity, if the certificate keeps every leaf rule of the X509-SVID standard
    /// (reference mtls 6.2): exactly one URI name (SF-2), CA=false, digitalSignature and no signing
    /// usages, and an extended key usage, if present, for both client and server.
    pub fn identity(&self) -> Result<Identity, LeafRule> {
        let [uri] = self.uris.as_slice() else {
            return Err(LeafRule::OneUri { found: self.uris.len() });
        };
        self.check_end_entity()?;
        if let Some(broken) = &self.role.svid {
            return Err(broken.clone());
        }
        Ok(Identity::parse_uri(uri)?)
    }

    /// The rules that hold for certificates without a SPIFFE name, too: no signing certificate
    /// may authenticate.
    pub fn check_end_entity(&self) -> Result<(), LeafRule> {
        self.role.leaf.clone().map_or(Ok(()), Err)
    }

    /// Whether one of the names, of any type, is exactly `name` (SN-2, SN-5).
    pub fn is_named(&self, name: &str) -> bool {
        self.uris.iter().any(|uri| uri == name)
            || self.dns_names.iter().any(|dns| dns.eq_ignore_ascii_case(name))
            || (!self.addresses.is_empty()
                && name.parse().is_ok_and(|address| self.addresses.contains(&address)))
    }

    /// Every name, for messages.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.uris
            .iter()
            .cloned()
            .chain(self.dns_names.iter().cloned())
            .chain(self.addresses.iter().map(IpAddr::to_string))
    }
}

/// Reads an end-entity certificate.
pub fn leaf_facts(der: &[u8]) -> Result<LeafFacts> {
    let certificate = parse("certificate", der)?;
    let (mut uris, mut dns_names, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
    let mut role = Role { leaf: None, svid: Some(LeafRule::NoDigitalSignature) };
    let mut extended = None;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => {
                for name in &san.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push(printable(uri)?),
                        GeneralName::DNSName(dns) => dns_names.push(printable(dns)?),
                        GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                        _ => {}
                    }
                }
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                role.leaf = Some(LeafRule::IsAuthority);
            }
            ParsedExtension::KeyUsage(usage) => {
                if usage.key_cert_sign() || usage.crl_sign() {
                    let which = if usage.key_cert_sign() { "keyCertSign" } else { "cRLSign" };
                    role.leaf.get_or_insert(LeafRule::SigningUsage(which));
                }
                if usage.digital_signature() {
                    role.svid = None;
                }
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                if !usage.server_auth {
                    extended = Some(LeafRule::ExtendedUsage("serverAuth"));
                } else if !usage.client_auth {
                    extended = Some(LeafRule::ExtendedUsage("clientAuth"));
                }
            }
            // A name list that cannot be read must not pass for "no names".
            ParsedExtension::ParseError { error } => {
                return Err(Error::Certificate { what: "certificate", reason: error.to_string() });
            }
            _ => {}
        }
    }
    role.svid = role.svid.or(extended);
    let validity = certificate.validity();
    Ok(LeafFacts {
        uris,
        dns_names,
        addresses,
        not_before: from_unix_seconds(validity.not_before.timestamp()),
        not_after: from_unix_seconds(validity.not_after.timestamp()),
        serial: serial_text(certificate.raw_serial()),
        subject: certificate.subject().to_string(),
        role,
    })
}

/// The workload identity that a leaf certificate claims, all leaf rules checked.
///
/// It does not check the chain: that is path validation's task (`maille-tls`).
pub fn peer_identity(leaf_der: &[u8]) -> Result<Identity> {
    Ok(leaf_facts(leaf_der)?.identity()?)
}

/// The Kubernetes user that a client certificate names (Kubernetes "X509 client certificates":
/// CN is the user, each O a group).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSubject {
    /// The user.
    pub common_name: String,
    /// The groups.
    pub organizations: Vec<String>,
}

/// Reads the user of a client certificate whose chain was verified; one common name is required.
pub fn client_subject(leaf_der: &[u8]) -> Result<ClientSubject> {
    let refused = |reason: &str| Error::Certificate { what: "client certificate", reason: reason.to_owned() };
    let certificate = parse("client certificate", leaf_der)?;
    let subject = certificate.subject();
    let mut names = subject.iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(refused("its subject must hold exactly one common name"));
    };
    let common_name = name.as_str().map_err(|_| refused("its common name is no text"))?.to_owned();
    let organizations = subject
        .iter_organization()
        .map(|name| name.as_str().map(str::to_owned))
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| refused("an organization of its subject is no text"))?;
    Ok(ClientSubject { common_name, organizations })
}

/// Checks that a certificate may sign others: CA=true and, if it has a key usage, keyCertSign.
pub(crate) fn check_authority(what: &'static str, der: &[u8]) -> Result<()> {
    let refused = |reason: &str| Error::NotAnAuthority { what, reason: reason.to_owned() };
    let certificate = parse(what, der)?;
    if !certificate.is_ca() {
        return Err(refused("its basic constraints do not say CA=true"));
    }
    let usage = certificate.key_usage().map_err(|e| refused(&e.to_string()))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(refused("its key usage lacks keyCertSign"));
    }
    Ok(())
}

pub(crate) fn parse<'a>(what: &'static str, der: &'a [u8]) -> Result<X509Certificate<'a>> {
    let refused = |reason: String| Error::Certificate { what, reason };
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|e| refused(e.to_string()))?;
    if !rest.is_empty() {
        return Err(refused("bytes follow the certificate".to_owned()));
    }
    Ok(certificate)
}

/// A name of a stranger, fit for logs: names in certificates are ASCII (RFC 5280 section 4.2.1.6),
/// and none needs more than the 2048 bytes of a SPIFFE ID (SPIFFE-ID section 2.3).
fn printable(name: &str) -> Result<String> {
    if name.len() > 2048 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        let reason = "it has a name that is longer than 2048 bytes or not printable ASCII".to_owned();
        return Err(Error::Certificate { what: "certificate", reason });
    }
    Ok(name.to_owned())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// A serial number as tools show it: hexadecimal without the zero byte that DER puts before a
/// number whose highest bit is set.
pub(crate) fn serial_text(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let bytes = bytes.get(start..).unwrap_or_default();
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn reading_certificates_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = leaf_facts(&bytes);
            let _ = check_authority("root certificate", &bytes);
        }
    }
}
