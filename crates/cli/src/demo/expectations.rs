//! What the shop's policies mean, pair by pair.

/// One pair that tries to talk, and what must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expectation {
    /// `namespace/workload`.
    pub(crate) from: &'static str,
    /// `namespace/workload`; of what is outside of the mesh, the host.
    pub(crate) to: &'static str,
    /// Workload port.
    pub(crate) port: u64,
    /// Whether the calls get through.
    pub(crate) allowed: bool,
    /// Whether over mutual TLS.
    pub(crate) mtls: bool,
    /// Whether the destination is outside of the mesh, so that only the caller's proxy sees it.
    pub(crate) outside: bool,
}

const fn expect(from: &'static str, to: &'static str, port: u64, allowed: bool, mtls: bool) -> Expectation {
    Expectation { from, to, port, allowed, mtls, outside: false }
}

const fn expect_outside(from: &'static str, to: &'static str, port: u64) -> Expectation {
    Expectation { from, to, port, allowed: true, mtls: true, outside: true }
}

/// Every pair of the shop that tries to talk.
pub(crate) const EXPECTATIONS: &[Expectation] = &[
    expect("production/frontend", "production/product-catalog", 8080, true, true),
    expect("production/frontend", "production/cart", 8080, true, true),
    expect("production/frontend", "production/payment-service", 8080, false, true),
    expect("production/frontend", "production/orders", 8080, false, true),
    expect("production/cart", "production/payment-service", 8080, true, true),
    expect("production/cart", "production/orders", 8080, false, true),
    expect("production/payment-service", "production/orders", 8080, true, true),
    expect_outside("production/payment-service", "api.external-service.com", 443),
    expect("development/dev-service", "production/frontend", 8080, false, true),
    expect("development/dev-service", "production/product-catalog", 8080, false, true),
    expect("development/dev-service", "production/payment-service", 8080, false, true),
    expect("development/dev-service", "production/payment-service", 9090, true, true),
    expect("legacy/legacy-client", "legacy/inventory", 8080, true, false),
    expect("legacy/legacy-client", "production/frontend", 8080, false, false),
    expect("legacy/legacy-client", "production/payment-service", 9090, true, false),
];
