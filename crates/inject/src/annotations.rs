//! Annotations of a Pod that shape its sidecar (reference mtls 7.4): checked, since a slip in one of them could
//! take traffic out of the mesh.

use std::collections::BTreeMap;

use maille_config::k8s::Quantity;
use maille_config::k8s::api::core::v1::{Pod, Volume, VolumeMount};
use maille_config::yaml;
use maille_core::ports;
use serde_json::Value;

use crate::InjectError;
use crate::sidecar::{RESERVED_MOUNTS, VOLUMES};

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
const PROXY_CONFIG: &str = "proxy.istio.io/config";
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
    /// Environment of the sidecar from `proxy.istio.io/config`.
    pub(crate) env: Vec<(&'static str, String)>,
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
    pub(crate) fn parse(pod: &Pod) -> Result<Self, InjectError> {
        let none = BTreeMap::new();
        let all = Annotations(pod.metadata.annotations.as_ref().unwrap_or(&none));
        all.only(
            NATIVE_SIDECAR,
            &["false", "auto"],
            "is not supported: the sidecar is an ordinary container; use \"false\"",
        )?;
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
        Ok(Self {
            intercept: all.intercept()?,
            status,
            rewrite_probes: all.boolean(REWRITE_PROBES)?.unwrap_or(true),
            env: all.proxy_config()?,
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
    fn intercept(&self) -> Result<Option<Vec<String>>, InjectError> {
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

    /// `proxy.istio.io/config`, as far as it means something for this proxy.
    fn proxy_config(&self) -> Result<Vec<(&'static str, String)>, InjectError> {
        const KNOWN: &str =
            "concurrency, terminationDrainDuration and holdApplicationUntilProxyStarts: false";
        let Some(text) = self.text(PROXY_CONFIG) else { return Ok(Vec::new()) };
        let fail = |reason: String| refusal(PROXY_CONFIG, text, reason);
        let documents = yaml::parse(PROXY_CONFIG, text)
            .map_err(|found| fail(found.first().map(|d| d.message.clone()).unwrap_or_default()))?;
        let mut env = Vec::new();
        for (key, value) in documents.iter().filter_map(|d| d.value.as_object()).flatten() {
            match (key.as_str(), value) {
                ("concurrency", Value::Number(n)) if n.as_u64().is_some_and(|n| n <= 256) => {
                    // Zero is the default: as many as there are processors.
                    if n.as_u64() != Some(0) {
                        env.push(("MAILLE_WORKERS", n.to_string()));
                    }
                }
                ("terminationDrainDuration", Value::String(duration)) => {
                    let seconds = whole_seconds(duration).ok_or_else(|| {
                        fail("has a terminationDrainDuration that is no duration such as 5s".into())
                    })?;
                    env.push(("TERMINATION_DRAIN_DURATION_SECONDS", seconds.to_string()));
                }
                ("holdApplicationUntilProxyStarts", Value::Bool(false)) => {}
                _ => return Err(fail(format!("sets {key}, which is not supported; known are {KNOWN}"))),
            }
        }
        Ok(env)
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

/// Whole seconds of a Go duration such as `5s` or `1m30s`.
fn whole_seconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0u64;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let unit = tail.chars().next()?;
        let seconds = match unit {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(seconds)?)?;
        rest = tail.get(1..)?;
    }
    (!text.is_empty()).then_some(total)
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
