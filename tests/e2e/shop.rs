//! The pairs of the shop, called one by one with curl from inside the Pods.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::mesh::{Mesh, eventually};

/// (caller, curl arguments, HTTP status: 200, 403, or 0 for a connection that is cut).
const CALLS: &[(&str, &[&str], u16)] = &[
    ("production/frontend", &["http://product-catalog/api/v1/products"], 200),
    ("production/frontend", &["http://product-catalog/api/v1/products/7?x=1"], 200),
    ("production/frontend", &["-X", "POST", "http://product-catalog/api/v1/products"], 403),
    ("production/frontend", &["http://product-catalog/api/v1/productsX"], 403),
    ("production/frontend", &["http://product-catalog/"], 403),
    ("production/frontend", &["http://product-catalog.production.svc.cluster.local/api/v1/products"], 200),
    ("production/frontend", &["http://cart/anything"], 200),
    ("production/frontend", &["http://payment-service/api/v1/payments"], 403),
    ("production/frontend", &["http://orders/api/v1/orders/1"], 403),
    ("production/frontend", &["http://payment-service:9090/metrics"], 200),
    ("production/cart", &["http://payment-service/api/v1/payments"], 200),
    ("production/cart", &["http://orders/api/v1/orders/1"], 403),
    ("production/cart", &["http://product-catalog/api/v1/products"], 403),
    ("production/payment-service", &["http://orders/api/v1/orders/1"], 200),
    ("production/payment-service", &["-X", "POST", "-d", "x", "http://orders/api/v1/orders/1"], 200),
    ("production/payment-service", &["-X", "PUT", "-d", "x", "http://orders/api/v1/orders/1"], 200),
    ("production/payment-service", &["-X", "DELETE", "http://orders/api/v1/orders/1"], 403),
    ("production/payment-service", &["http://orders/api/v1/orders"], 403),
    ("production/orders", &["http://frontend/"], 403),
    ("development/dev-service", &["http://frontend.production/"], 403),
    ("development/dev-service", &["http://product-catalog.production/api/v1/products"], 403),
    ("development/dev-service", &["http://cart.production/"], 403),
    ("development/dev-service", &["http://payment-service.production/"], 403),
    ("development/dev-service", &["http://orders.production/api/v1/orders/1"], 403),
    ("development/dev-service", &["http://payment-service.production:9090/metrics"], 200),
    ("legacy/legacy-client", &["http://inventory/"], 200),
    ("legacy/legacy-client", &["http://frontend.production/"], 0),
    ("legacy/legacy-client", &["http://payment-service.production:9090/metrics"], 200),
];

pub(crate) fn every_pair(mesh: &Mesh) -> Result<()> {
    let mut wrong = Vec::new();
    for (caller, arguments, expected) in CALLS {
        let (code, body) = mesh.curl(caller, arguments)?;
        if code != *expected {
            wrong.push(format!("{caller} {arguments:?}: {code}, expected {expected}; {body}"));
        } else if code == 403 && body != "RBAC: access denied" {
            wrong.push(format!("{caller} {arguments:?}: the refusal's body is '{body}'"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

pub(crate) fn refusals_explain_themselves(mesh: &Mesh) -> Result<()> {
    mesh.curl("production/payment-service", &["-X", "DELETE", "http://orders/api/v1/orders/77"])?;
    mesh.curl("development/dev-service", &["http://orders.production/api/v1/orders/78"])?;
    eventually(Duration::from_secs(5), || {
        let log = mesh
            .maille(&["logs", "deploy/orders", "-n", "production", "-c", "istio-proxy", "--tail", "400"])?
            .stdout;
        let nearest = log.lines().find(|line| line.contains("/api/v1/orders/77"));
        ensure!(
            nearest.is_some_and(|line| line.contains("allow-payment-to-orders")
                && line.contains("DELETE")
                && line.contains("cluster.local/ns/production/sa/payment-service")),
            "no line names the nearest rule and the caller: {nearest:?}"
        );
        let denied = log.lines().find(|line| line.contains("/api/v1/orders/78"));
        ensure!(
            denied.is_some_and(|line| line.contains(
                "rbac_access_denied_matched_policy[ns[production]-policy[deny-from-untrusted]-rule[0]]"
            ) && line.contains("cluster.local/ns/development/sa/dev-service")),
            "no line names the policy that denied: {denied:?}"
        );
        Ok(())
    })
}

/// What `maille up --demo` printed compares what the proxies saw with what is expected.
pub(crate) fn table_is_as_expected(mesh: &Mesh) -> Result<()> {
    eventually(Duration::from_secs(30), || {
        let log = mesh.up_log();
        ensure!(log.contains("AS EXPECTED"), "no table was printed:\n{log}");
        ensure!(!log.contains("NO: "), "the table is not as expected:\n{log}");
        ensure!(log.contains("production/allow-frontend-to-cart"), "the table names no policies:\n{log}");
        Ok(())
    })
}
