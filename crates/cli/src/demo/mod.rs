//! The demo: the shop's manifests, what is expected of it, and the table that compares.

pub(crate) mod certificates;
mod expectations;
mod run;
mod table;

pub(crate) use expectations::{EXPECTATIONS, Expectation};
pub(crate) use run::{READY_LIMIT, apply_shop, wait_until_ready, watch_pairs};
pub(crate) use table::{Row, compare, render};

/// The manifests of `examples/shop/`, in the order in which they apply.
pub(crate) const MANIFESTS: &[(&str, &str)] = &[
    ("examples/shop/00-namespaces.yaml", include_str!("../../../../examples/shop/00-namespaces.yaml")),
    ("examples/shop/05-policies.yaml", include_str!("../../../../examples/shop/05-policies.yaml")),
    ("examples/shop/10-production.yaml", include_str!("../../../../examples/shop/10-production.yaml")),
    ("examples/shop/20-development.yaml", include_str!("../../../../examples/shop/20-development.yaml")),
    ("examples/shop/30-legacy.yaml", include_str!("../../../../examples/shop/30-legacy.yaml")),
    (
        "examples/shop/40-external-service.yaml",
        include_str!("../../../../examples/shop/40-external-service.yaml"),
    ),
    ("examples/shop/45-external-mtls.yaml", include_str!("../../../../examples/shop/45-external-mtls.yaml")),
];

/// What to try next; every line works when pasted.
pub(crate) fn next_steps(data_dir: &std::path::Path, maille: &str) -> String {
    let kubeconfig = data_dir.join("kubeconfig");
    let kubeconfig = kubeconfig.display();
    // Commands find the mesh of the usual folder by themselves.
    let at = match data_dir == std::path::Path::new(crate::DEFAULT_DATA_DIR) {
        true => String::new(),
        false => format!(" --data-dir {}", data_dir.display()),
    };
    format!(
        "Try next, in another terminal:\n\
         \n\
         \x20 export KUBECONFIG={kubeconfig}\n\
         \x20 {maille} status{at}\n\
         \x20 {maille} flows --denied\n\
         \x20 {maille} exec deploy/frontend -n production -- curl -si http://cart/api/v1/cart\n\
         \x20 {maille} exec deploy/frontend -n production -- curl -si http://orders/api/v1/orders/1\n\
         \x20 {maille} exec deploy/frontend -n production -- curl -si http://api.external-service.com:443/\n\
         \x20 {maille} delete authorizationpolicy allow-frontend-to-cart -n production\n\
         \x20 {maille} exec deploy/frontend -n production -- curl -si http://cart/api/v1/cart\n\
         \x20 {maille} logs deploy/cart -n production -c istio-proxy --tail 3\n"
    )
}
