/// What a workload's proxy accepts on a port (reference mtls section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Plaintext only; TLS bytes are not looked at.
    Disable,
    /// Both mutual TLS and plaintext.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl MtlsMode {
    /// Istio's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        }
    }
}

/// How a client's proxy reaches an endpoint (reference mtls section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndpointTls {
    /// The bytes as the application sent them.
    Plaintext,
    /// Mutual TLS with the workload's certificate.
    IstioMutual,
}

/// How a port's bytes are to be understood (reference mtls 1.3, "Port protocol class").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PortProtocol {
    /// Not declared: detected from the first bytes.
    #[default]
    Auto,
    /// HTTP/1 or HTTP/2, as the bytes say.
    Http,
    /// HTTP/2 (gRPC included).
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl PortProtocol {
    /// The class of a service port: `appProtocol` if it says something known, else the part of the port's
    /// name before the first `-`; an undeclared port in {25, 53, 3306, 27017} is TCP
    /// (istio pkg/config/kube/conversion.go).
    pub fn of_port(app_protocol: Option<&str>, name: Option<&str>, service_port: u16) -> Self {
        app_protocol
            .and_then(|p| match p.to_ascii_lowercase().as_str() {
                "kubernetes.io/h2c" => Some(Self::Http2),
                "kubernetes.io/ws" => Some(Self::Http),
                "kubernetes.io/wss" => Some(Self::Tcp),
                other => Self::named(other),
            })
            .or_else(|| name.and_then(|n| Self::named(n.split('-').next().unwrap_or(n))))
            .unwrap_or(if matches!(service_port, 25 | 53 | 3306 | 27017) { Self::Tcp } else { Self::Auto })
    }

    fn named(protocol: &str) -> Option<Self> {
        match protocol.to_ascii_lowercase().as_str() {
            "http" | "http_proxy" => Some(Self::Http),
            "http2" | "grpc" | "grpc-web" => Some(Self::Http2),
            "tcp" | "https" | "tls" | "mongo" | "redis" | "mysql" => Some(Self::Tcp),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_comes_from_app_protocol_then_name_then_number() {
        use PortProtocol::{Auto, Http, Http2, Tcp};
        let cases = [
            (Some("http"), Some("tcp-x"), 80, Http),
            (Some("kubernetes.io/h2c"), None, 80, Http2),
            (Some("unknown"), Some("http-web"), 80, Http),
            (None, Some("grpc-web"), 80, Http2),
            (None, Some("db"), 5433, Auto),
            (None, None, 3306, Tcp),
            (None, Some("https"), 443, Tcp),
            (None, Some("httpx"), 80, Auto),
        ];
        for (app, name, number, expected) in cases {
            assert_eq!(PortProtocol::of_port(app, name, number), expected, "{app:?} {name:?} {number}");
        }
    }
}
