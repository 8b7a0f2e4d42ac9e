//! What ServiceEntries and DestinationRules add to a service.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use maille_core::Hostname;
use maille_proto::facts as wire;

use super::{Checked, wrong};
use crate::snapshot::{CredentialUse, OrderFiles, OrderMode, Resolution, RootsFrom, TlsOrder};

/// A host name, or `*.` and one (ServiceEntry's `hosts`).
pub(super) fn host(field: &str, text: &str) -> Checked<String> {
    let (star, rest) = match text.strip_prefix("*.") {
        Some(rest) => ("*.", rest),
        None => ("", text),
    };
    let name = Hostname::parse(rest).map_err(|e| wrong(field, e))?;
    Ok(format!("{star}{name}"))
}

/// The single addresses of a service. A ServiceEntry may list blocks, too: which of them an address is in, the control
/// plane has found out when it is asked.
pub(super) fn addresses(field: &str, texts: &[String]) -> Checked<Vec<IpAddr>> {
    let mut single = Vec::with_capacity(texts.len());
    for text in texts {
        let (ip, length) = text.split_once('/').map_or((text.as_str(), None), |(ip, l)| (ip, Some(l)));
        let unreadable = || wrong(field, format!("'{text}' is no IP address and no block of them"));
        let ip: IpAddr = ip.parse().map_err(|_| unreadable())?;
        let full = if ip.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(full), |length| length.parse::<u8>().map_err(|_| unreadable()))?;
        match length.cmp(&full) {
            Ordering::Less => {}
            Ordering::Equal => single.push(ip),
            Ordering::Greater => return Err(unreadable()),
        }
    }
    Ok(single)
}

pub(super) fn resolution(value: i32) -> Checked<Resolution> {
    match wire::Resolution::try_from(value) {
        Ok(wire::Resolution::Endpoints) => Ok(Resolution::Listed),
        Ok(wire::Resolution::Dns) => Ok(Resolution::Dns),
        Ok(wire::Resolution::DnsRoundRobin) => Ok(Resolution::DnsFirst),
        Ok(wire::Resolution::None) => Ok(Resolution::Dialled),
        Ok(wire::Resolution::DynamicDns) => Ok(Resolution::NameAsked),
        // Guessing would send the application's bytes somewhere else than its operator meant.
        Err(_) => Err(wrong("service.resolution", format!("unknown value {value}"))),
    }
}

/// A TLS order. Never fails: what cannot be read is an order under which nothing is sent, since a port without an
/// order would be plaintext.
pub(super) fn order(message: &wire::ClientTls) -> TlsOrder {
    use wire::client_tls::Mode;
    let mode = match Mode::try_from(message.mode) {
        Ok(Mode::Disable) => OrderMode::Disable,
        Ok(Mode::Simple) => OrderMode::Simple,
        Ok(Mode::Mutual) => OrderMode::Mutual,
        Ok(Mode::IstioMutual) => OrderMode::IstioMutual,
        Ok(Mode::Unspecified) | Err(_) => OrderMode::Unknown,
    };
    let is_mutual = mode == OrderMode::Mutual;
    let credential = (!message.credential.is_empty())
        .then(|| CredentialUse { name: message.credential.as_str().into(), shows_certificate: is_mutual });
    let files = OrderFiles {
        own: (is_mutual && credential.is_none())
            .then(|| (message.client_certificate.as_str().into(), message.private_key.as_str().into())),
        roots: match message.ca_certificates.as_str() {
            _ if message.insecure_skip_verify => RootsFrom::Nowhere,
            "" if credential.is_some() => RootsFrom::Credential,
            "" | "system" => RootsFrom::System,
            path => RootsFrom::File(path.into()),
        },
        crl: (!message.ca_crl.is_empty()).then(|| message.ca_crl.as_str().into()),
        credential,
    };
    TlsOrder {
        mode,
        rule: message.rule.as_str().into(),
        files,
        subject_alt_names: message.subject_alt_names.as_slice().into(),
        sni: (!message.sni.is_empty()).then(|| Arc::from(message.sni.as_str())),
        insecure_skip_verify: message.insecure_skip_verify,
        material: Arc::default(),
    }
}
