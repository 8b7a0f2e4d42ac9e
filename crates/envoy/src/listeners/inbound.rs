//! `virtualInbound` (15006): one group of chains per port, as the table of reference mtls 1.3 has them, and one for
//! all other ports.

use maille_core::ports;
use maille_proto::facts as wire;
use serde_json::{Value, json};
use wire::{MtlsMode, Protocol};

use super::{Match, PLAIN_HTTP, capture_address, connection_manager, listener, tcp_proxy};
use crate::address::{BLACK_HOLE, INBOUND_PASSTHROUGH, inbound_cluster, type_url};
use crate::known::Known;
use crate::rbac::{self, Layer};
use crate::{jwt_authn, routes, transport};

/// ALPN groups of the reference.
const MTLS_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
const MTLS_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];
const ALL_ISTIO: [&str; 5] = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// What one chain takes, and what becomes of it.
struct Chain {
    transport: Option<&'static str>,
    applications: &'static [&'static str],
    terminates: bool,
    layer: Layer,
}

const fn mutual(applications: &'static [&'static str], layer: Layer) -> Chain {
    Chain { transport: Some("tls"), applications, terminates: true, layer }
}

const fn plain(
    transport: Option<&'static str>,
    applications: &'static [&'static str],
    layer: Layer,
) -> Chain {
    Chain { transport, applications, terminates: false, layer }
}

/// The chains of a port, most specific first (reference mtls 1.3).
fn chains(mode: MtlsMode, protocol: Protocol) -> Vec<Chain> {
    use Layer::{Http, Tcp};
    const RAW: Option<&str> = Some("raw_buffer");
    match (mode, protocol) {
        (MtlsMode::Strict | MtlsMode::Unspecified, Protocol::Http | Protocol::Http2) => {
            vec![mutual(&[], Http)]
        }
        (MtlsMode::Strict | MtlsMode::Unspecified, Protocol::Tcp | Protocol::Tls) => vec![mutual(&[], Tcp)],
        (MtlsMode::Strict | MtlsMode::Unspecified, Protocol::Auto) => {
            vec![mutual(&MTLS_HTTP, Http), mutual(&[], Tcp)]
        }
        (MtlsMode::Permissive, Protocol::Http | Protocol::Http2) => {
            vec![mutual(&ALL_ISTIO, Http), plain(RAW, &[], Http)]
        }
        (MtlsMode::Permissive, Protocol::Tcp | Protocol::Tls) => {
            vec![mutual(&ALL_ISTIO, Tcp), plain(Some("tls"), &[], Tcp), plain(RAW, &[], Tcp)]
        }
        (MtlsMode::Permissive, Protocol::Auto) => vec![
            mutual(&MTLS_HTTP, Http),
            mutual(&MTLS_TCP, Tcp),
            plain(Some("tls"), &[], Tcp),
            plain(RAW, &PLAIN_HTTP, Http),
            plain(RAW, &[], Tcp),
        ],
        // Without TLS inspection, TLS bytes are bytes like any other: every connection counts as raw_buffer.
        (MtlsMode::Disable, Protocol::Http | Protocol::Http2) => vec![plain(RAW, &[], Http)],
        (MtlsMode::Disable, Protocol::Tcp | Protocol::Tls) => vec![plain(RAW, &[], Tcp)],
        (MtlsMode::Disable, Protocol::Auto) => vec![plain(RAW, &PLAIN_HTTP, Http), plain(RAW, &[], Tcp)],
    }
}

/// The listener.
pub(super) fn capture(known: &Known<'_>) -> Value {
    let bootstrap = known.dump.bootstrap.as_ref();
    let configured = bootstrap.map(|b| b.inbound.as_str()).unwrap_or_default();
    let (address, port) = capture_address(configured, ports::INBOUND);
    // PA-16: what is addressed to the capture port itself would come back for ever.
    let mut all = vec![json!({
        "name": "virtualInbound-blackhole",
        "filterChainMatch": Match { port: Some(port), ..Match::default() }.to_value(),
        "filters": [tcp_proxy(BLACK_HOLE)],
    })];
    for chain in chains(known.mode(), Protocol::Auto) {
        let name = match chain.layer {
            Layer::Http => "virtualInbound-catchall-http",
            Layer::Tcp => "virtualInbound",
        };
        let matched = Match { any_address: true, ..matching(&chain) };
        all.push(filter_chain(known, name, &matched, &chain, INBOUND_PASSTHROUGH, "inbound|http|0"));
    }
    for own in known.own_ports() {
        let cluster = match own.declared {
            Some(_) => inbound_cluster(own.number),
            None => INBOUND_PASSTHROUGH.to_owned(),
        };
        for chain in chains(own.mode, own.protocol) {
            let matched = Match { port: Some(own.number), ..matching(&chain) };
            let vhost = format!("inbound|http|{}", own.number);
            let name = format!("0.0.0.0_{}", own.number);
            all.push(filter_chain(known, &name, &matched, &chain, &cluster, &vhost));
        }
    }
    let mut listener = listener("virtualInbound", &address, port, "INBOUND", all);
    if let Some(fields) = listener.as_object_mut() {
        fields.insert("listenerFilters".to_owned(), inspectors(known));
        fields.insert("useOriginalDst".to_owned(), json!(true));
    }
    listener
}

fn matching(chain: &Chain) -> Match<'static> {
    Match { transport: chain.transport, applications: chain.applications, ..Match::default() }
}

fn filter_chain(
    known: &Known<'_>,
    name: &str,
    matched: &Match<'_>,
    chain: &Chain,
    cluster: &str,
    vhost: &str,
) -> Value {
    let mut filters = Vec::new();
    match chain.layer {
        Layer::Http => {
            let route = ("routeConfig", routes::inline(cluster, vhost));
            // A bad token is answered before any policy is asked (reference authorization 3).
            let mut http: Vec<Value> = jwt_authn::filter(known.facts).into_iter().collect();
            http.extend(rbac::filters(known.facts, chain.layer));
            filters.push(connection_manager(&format!("inbound_{name}"), route, http));
        }
        Layer::Tcp => {
            filters.extend(rbac::filters(known.facts, chain.layer));
            filters.push(tcp_proxy(cluster));
        }
    }
    let mut value = json!({"name": name, "filterChainMatch": matched.to_value(), "filters": filters});
    if chain.terminates
        && let Some(fields) = value.as_object_mut()
    {
        fields.insert("transportSocket".to_owned(), transport::downstream());
    }
    value
}

/// The inspectors, each on for the ports that need it.
fn inspectors(known: &Known<'_>) -> Value {
    let needs_tls = |mode| mode != MtlsMode::Disable;
    let off: Vec<u32> = known.own_ports().iter().filter(|p| !needs_tls(p.mode)).map(|p| p.number).collect();
    let mut tls = json!({
        "name": "envoy.filters.listener.tls_inspector",
        "typedConfig": {"@type": type_url("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector")}
    });
    if let (false, Some(fields)) = (off.is_empty(), tls.as_object_mut()) {
        let ranges: Vec<_> =
            off.iter().map(|p| json!({"destinationPortRange": {"start": p, "end": p + 1}})).collect();
        let disabled = match ranges.as_slice() {
            [one] => one.clone(),
            many => json!({"orMatch": {"rules": many}}),
        };
        fields.insert("filterDisabled".to_owned(), disabled);
    }
    json!([
        {
            "name": "envoy.filters.listener.original_dst",
            "typedConfig": {"@type": type_url("envoy.extensions.filters.listener.original_dst.v3.OriginalDst")}
        },
        tls,
        {
            "name": "envoy.filters.listener.http_inspector",
            "typedConfig": {"@type": type_url("envoy.extensions.filters.listener.http_inspector.v3.HttpInspector")}
        },
    ])
}
