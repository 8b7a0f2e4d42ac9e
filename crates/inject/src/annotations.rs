//! Annotations of a Pod that shape its sidecar (reference mtls 7.4): checked, since a slip in one of them could
//! take traffic out of the mesh.

use std::collections::BTreeMap;

use maille_config::k8s::Quantity;
use maille_config::k8s::api::core::v1::{Pod, Volume, VolumeMount};
use maille_config::proxy_config::{self, ProxyConfig};
use maille_core::ports;
use serde_json::Value;

use crate::sidecar::{RESERVED_MOUNTS, VOLUMES};
use crate::{InjectError, InjectSettings};

const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
const VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
const VIRTUAL_INTERFACES_OLD: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
const STATUS_PORT: &str = "status.sidecar.istio.io/port";
const REWRITE_PROBES: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
const PROXY_CONFIG: &str = proxy_config::ANNOTATION;
const NATIVE_SIDECAR: &str = "sidecar.istio.io/nativeSidecar";
const TEMPLATES: &str = "inject.istio.io/templates";
const USER_VOLUME: &str = "sidecar.istio.io/userVolume";
const USER_VOLUME_MOUNT: &str = "sidecar.istio.io/userVolumeMount";
const RESOURCES: [(&str, Bound, &str); 4] = [
    ("sidecar.istio.io/proxyCPU", Bound::Request, "cpu"),
    ("sidecar.istio.io/proxyMemory", Bound::Request, "memory"),
    ("sidecar.istio.io/proxyCPULimit", Bound::Limit, "cpu"),
    ("sidecar.istio.io/proxyMemoryLimit", Bound::Limit, "memory"),
];

/// Prefixes under which Istio keeps annotations for the sidecar.
const PREFIXES: [&str; 5] = [
    "traffic.sidecar.istio.io/",
    "sidecar.istio.io/",
    "status.sidecar.istio.io/",
    "proxy.istio.io/",
    "inject.istio.io/",
];

/// Those that are looked at elsewhere, or written by injection itself.
const OTHERS: [&str; 2] = ["sidecar.istio.io/inject", "sidecar.istio.io/status"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Request,
    Limit,
}

/// What the annotations ask for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wishes {
    /// Arguments of `maille intercept`; `None` without redirection (interceptionMode NONE).
    pub(crate) intercept: Option<Vec<String>>,
    /// Whether there is a status port, on which probes can be answered.
    pub(crate) status: bool,
    pub(crate) rewrite_probes: bool,
    /// How the sidecar starts and ends: `proxy.istio.io/config` over what holds for the mesh.
    pub(crate) proxy: ProxyConfig,
    /// Whether the sidecar is an init container that goes on running (reference mtls 7.7).
    pub(crate) is_native: bool,
    pub(crate) requests: BTreeMap<String, Quantity>,
    pub(crate) limits: BTreeMap<String, Quantity>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) mounts: Vec<VolumeMount>,
}

/// Annotations for the sidecar that nothing here acts upon: for a warning to who submits the Pod.
pub fn without_effect(pod: &Pod) -> Vec<String> {
    let known = [
        INCLUDE_OUTBOUND_RANGES,
        EXCLUDE_OUTBOUND_RANGES,
        INCLUDE_OUTBOUND_PORTS,
        EXCLUDE_OUTBOUND_PORTS,
        INCLUDE_INBOUND_PORTS,
        EXCLUDE_INBOUND_PORTS,
        EXCLUDE_INTERFACES,
        VIRTUAL_INTERFACES_OLD,
        INTERCEPTION_MODE,
        STATUS_PORT,
        REWRITE_PROBES,
        PROXY_CONFIG,
        NATIVE_SIDECAR,
        TEMPLATES,
        USER_VOLUME,
        USER_VOLUME_MOUNT,
    ];
    let is_known = |name: &str| {
        known.contains(&name) || OTHERS.contains(&name) || RESOURCES.iter().any(|(known, ..)| *known == name)
    };
    pod.metadata
        .annotations
        .iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !is_known(name))
        .map(|name| format!("annotation {name} has no effect on the sidecar"))
        .collect()
}

impl Wishes {
    /// Whether applications get certificates of their own from the sidecar.
    pub(crate) fn has_workload_api(&self) -> bool {
        self.proxy.workload_api != Some(false)
    }

    pub(crate) fn parse(pod: &Pod, settings: &InjectSettings) -> Result<Self, InjectError> {
        let none = BTreeMap::new();
        let all = Annotations(pod.metadata.annotations.as_ref().unwrap_or(&none));
        let is_native = match all.text(NATIVE_SIDECAR) {
            None | Some("auto") => settings.native_sidecars,
            Some("true") => true,
            Some("false") => false,
            Some(text) => {
                return Err(refusal(NATIVE_SIDECAR, text, "is none of \"true\", \"false\" and \"auto\""));
            }
        };
        all.only(TEMPLATES, &["sidecar"], "names an unknown template; there is only 'sidecar'")?;
        let status = match all.text(STATUS_PORT) {
            None => true,
            Some("0") => false,
            Some(text) if text.parse() == Ok(ports::STATUS) => true,
            Some(text) => {
                let reason = format!("is not supported; {} or 0 (none)", ports::STATUS);
                return Err(refusal(STATUS_PORT, text, reason));
            }
        };
        let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
        for (annotation, bound, resource) in RESOURCES {
            if let Some(text) = all.text(annotation) {
                if !is_quantity(text) {
                    return Err(refusal(annotation, text, "is no quantity; for example 100m or 64Mi"));
                }
                let of = if bound == Bound::Request { &mut requests } else { &mut limits };
                of.insert(resource.to_owned(), Quantity(text.to_owned()));
            }
        }
        let proxy = all.proxy_config()?.over(&settings.proxy_config);
        Ok(Self {
            intercept: all.intercept(proxy.dns_capture == Some(true))?,
            status,
            rewrite_probes: all.boolean(REWRITE_PROBES)?.unwrap_or(true),
            proxy,
            is_native,
            requests,
            limits,
            volumes: all.user_volumes()?,
            mounts: all.user_mounts()?,
        })
    }
}

struct Annotations<'p>(&'p BTreeMap<String, String>);

impl<'p> Annotations<'p> {
    fn text(&self, annotation: &str) -> Option<&'p str> {
        self.0.get(annotation).map(String::as_str)
    }

    /// Refuses values other than these.
    fn only(&self, annotation: &str, values: &[&str], reason: &str) -> Result<(), InjectError> {
        match self.text(annotation) {
            Some(text) if !values.contains(&text) => Err(refusal(annotation, text, reason)),
            _ => Ok(()),
        }
    }

    /// A Go boolean.
    fn boolean(&self, annotation: &str) -> Result<Option<bool>, InjectError> {
        match self.text(annotation) {
            None => Ok(None),
            Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(Some(true)),
            Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(Some(false)),
            Some(text) => Err(refusal(annotation, text, "is no boolean; \"true\" or \"false\"")),
        }
    }

    /// Each item of a list separated by commas, checked.
    fn list(
        &self,
        annotation: &str,
        wildcard: bool,
        item: fn(&str) -> Result<(), String>,
    ) -> Result<Option<String>, InjectError> {
        let Some(text) = self.text(annotation) else { return Ok(None) };
        if wildcard && text.trim() == "*" {
            return Ok(Some("*".to_owned()));
        }
        let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        for text in &items {
            item(text).map_err(|reason| refusal(annotation, text, reason))?;
        }
        Ok(Some(items.join(",")))
    }

    /// The arguments of the interception, in istio-iptables' names.
    fn intercept(&self, captures_dns: bool) -> Result<Option<Vec<String>>, InjectError> {
        let lists = [
            ("-i", self.list(INCLUDE_OUTBOUND_RANGES, true, range)?.unwrap_or_else(|| "*".to_owned())),
            ("-x", self.list(EXCLUDE_OUTBOUND_RANGES, false, range)?.unwrap_or_default()),
            ("-b", self.list(INCLUDE_INBOUND_PORTS, true, port)?.unwrap_or_else(|| "*".to_owned())),
            ("-d", self.excluded_inbound_ports()?),
            ("-q", self.list(INCLUDE_OUTBOUND_PORTS, false, port)?.unwrap_or_default()),
            ("-o", self.list(EXCLUDE_OUTBOUND_PORTS, false, port)?.unwrap_or_default()),
            ("-c", self.list(EXCLUDE_INTERFACES, false, interface)?.unwrap_or_default()),
            ("-k", self.virtual_interfaces()?),
        ];
        match self.text(INTERCEPTION_MODE) {
            None | Some("REDIRECT") => {}
            Some("NONE") => return Ok(None),
            Some(text) => return Err(refusal(INTERCEPTION_MODE, text, "is not supported; REDIRECT or NONE")),
        }
        let (outbound, inbound, uid) =
            (ports::OUTBOUND.to_string(), ports::INBOUND.to_string(), ports::PROXY_UID.to_string());
        let mut args: Vec<String> =
            ["-p", &outbound, "-z", &inbound, "-u", &uid, "-g", &uid, "-m", "REDIRECT"]
                .map(str::to_owned)
                .into();
        for (flag, value) in lists {
            // For what is included, the empty list has a meaning of its own: nothing.
            if !value.is_empty() || matches!(flag, "-i" | "-b") {
                args.extend([flag.to_owned(), value]);
            }
        }
        if captures_dns {
            args.push("--redirect-dns".to_owned());
        }
        Ok(Some(args))
    }

    /// The application's wishes, and always the sidecar's own ports.
    fn excluded_inbound_ports(&self) -> Result<String, InjectError> {
        let own = [ports::METRICS, ports::READINESS, ports::STATUS].map(|port| port.to_string());
        let wished = self.list(EXCLUDE_INBOUND_PORTS, false, port)?.unwrap_or_default();
        let wished = wished.split(',').filter(|port| !port.is_empty() && !own.iter().any(|own| own == port));
        Ok(wished.chain(own.iter().map(String::as_str)).collect::<Vec<_>>().join(","))
    }

    fn virtual_interfaces(&self) -> Result<String, InjectError> {
        let old = self.list(VIRTUAL_INTERFACES_OLD, false, interface)?;
        Ok(self.list(VIRTUAL_INTERFACES, false, interface)?.or(old).unwrap_or_default())
    }

    /// What the Pod itself says.
    fn proxy_config(&self) -> Result<ProxyConfig, InjectError> {
        let Some(text) = self.text(PROXY_CONFIG) else { return Ok(ProxyConfig::default()) };
        proxy_config::check(text).map_err(|found| {
            let reasons: Vec<_> = found.iter().map(|problem| problem.message.as_str()).collect();
            refusal(PROXY_CONFIG, text, format!("cannot be used: {}", reasons.join("; ")))
        })
    }

    /// A list of volumes, or an object from name to volume source.
    fn user_volumes(&self) -> Result<Vec<Volume>, InjectError> {
        let volumes: Vec<Volume> = self.named_items(USER_VOLUME)?;
        match volumes.iter().find(|volume| VOLUMES.contains(&volume.name.as_str())) {
            Some(volume) => {
                Err(refusal(USER_VOLUME, &volume.name, "is the name of a volume of the sidecar itself"))
            }
            None => Ok(volumes),
        }
    }

    fn user_mounts(&self) -> Result<Vec<VolumeMount>, InjectError> {
        let mounts: Vec<VolumeMount> = self.named_items(USER_VOLUME_MOUNT)?;
        for mount in &mounts {
            // Neither over nor under: a disk in place of the sidecar's memory would hold its key.
            let path = std::path::Path::new(&mount.mount_path);
            let clean = path.is_absolute() && !mount.mount_path.contains("..");
            if !clean
                || RESERVED_MOUNTS
                    .iter()
                    .any(|own| path.starts_with(own) || std::path::Path::new(own).starts_with(path))
            {
                return Err(refusal(
                    USER_VOLUME_MOUNT,
                    &mount.mount_path,
                    "is where the sidecar keeps its own files",
                ));
            }
        }
        Ok(mounts)
    }

    fn named_items<T: serde::de::DeserializeOwned>(&self, annotation: &str) -> Result<Vec<T>, InjectError> {
        let Some(text) = self.text(annotation) else { return Ok(Vec::new()) };
        let fail = |e: serde_json::Error| refusal(annotation, text, format!("cannot be read: {e}"));
        let items = match serde_json::from_str(text).map_err(fail)? {
            Value::Object(named) => named
                .into_iter()
                .map(|(name, item)| match item {
                    Value::Object(mut item) => {
                        item.entry("name").or_insert(Value::String(name));
                        Value::Object(item)
                    }
                    other => other,
                })
                .collect(),
            other => other,
        };
        serde_json::from_value(items).map_err(fail)
    }
}

fn refusal(annotation: &str, value: &str, reason: impl Into<String>) -> InjectError {
    InjectError::Annotation {
        annotation: annotation.to_owned(),
        value: value.chars().take(100).map(|c| if c.is_control() { ' ' } else { c }).collect(),
        reason: reason.into(),
    }
}

fn port(text: &str) -> Result<(), String> {
    match text.parse::<u16>() {
        Ok(_) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err("is no port; numbers from 0 to 65535, separated by commas".to_owned()),
    }
}

fn range(text: &str) -> Result<(), String> {
    match text.parse::<ipnet::IpNet>() {
        Ok(_) => Ok(()),
        Err(_) => Err("is no address range; for example 10.0.0.0/8, separated by commas".to_owned()),
    }
}

fn interface(text: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if text.len() <= 15 && text.chars().all(plain) {
        Ok(())
    } else {
        Err("is no name of a network interface".to_owned())
    }
}

/// Kubernetes' quantities, without exponents.
fn is_quantity(text: &str) -> bool {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text.get(number.len()..).unwrap_or_default();
    let known = ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"];
    known.contains(&suffix) && number.parse::<f64>().is_ok_and(|n| n.is_finite() && n >= 0.0)
}

#[cfg(test)]
mod tests;
