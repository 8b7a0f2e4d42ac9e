//! Istio's ports, which people and firewalls rely on (design, "Ports"; reference mtls 7.1).

/// Proxy admin, localhost only.
pub const ADMIN: u16 = 15000;
/// Outbound capture.
pub const OUTBOUND: u16 = 15001;
/// Inbound capture.
pub const INBOUND: u16 = 15006;
/// HBONE, reserved.
pub const HBONE: u16 = 15008;
/// Discovery and certificate authority over TLS, on the control plane.
pub const DISCOVERY: u16 = 15012;
/// Control-plane metrics and its read-only API.
pub const CONTROL_MONITORING: u16 = 15014;
/// The mesh's trust bundle for other meshes, on the control plane.
pub const BUNDLE: u16 = 15016;
/// Merged metrics, probes of the application, drain.
pub const STATUS: u16 = 15020;
/// Readiness of the proxy.
pub const READINESS: u16 = 15021;
/// DNS capture.
pub const DNS: u16 = 15053;
/// Proxy metrics.
pub const METRICS: u16 = 15090;

/// Whether a port is one of those on which a sidecar listens for itself, or that is reserved for it
/// (reference cli-and-telemetry 3.4): no port of an application.
pub const fn is_sidecars(port: u16) -> bool {
    /// Istio's control-plane debug port of the agent; nothing listens there, but it is reserved.
    const DEBUG: u16 = 15004;
    matches!(port, ADMIN | OUTBOUND | DEBUG | INBOUND | HBONE | STATUS | READINESS | DNS | METRICS)
}

/// User and group of the sidecar; its traffic is never captured.
pub const PROXY_UID: u32 = 1337;

/// Source address with which the proxy delivers to its application (IPv4).
pub const INBOUND_SOURCE_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 6);

/// The same for IPv6; `maille intercept` gives it to the loopback.
pub const INBOUND_SOURCE_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
