use super::*;

fn read(text: &str) -> MeshConfig {
    check(text).unwrap_or_else(|found| panic!("{text}\n{found:#?}"))
}

/// `line:column code field`, in order.
fn found(text: &str) -> Vec<String> {
    let found = check(text).err().unwrap_or_default();
    let place = |d: &crate::Diagnostic| format!("{}:{}", d.line, d.column);
    found
        .iter()
        .map(|d| format!("{} {} {}", place(d), d.code, d.field.as_deref().unwrap_or_default()))
        .collect()
}

fn provider(body: &str) -> String {
    format!(
        "extensionProviders: [{{name: p, envoyExtAuthzHttp: {{service: a.b.svc.cluster.local, port: 80, {body}}}}}]"
    )
}

#[test]
fn an_empty_text_is_istios_default() {
    for text in
        ["", "\n", "# nothing\n", "---\n", "{}", "rootNamespace: null\ntrustDomain: ~\n", "maille: {}"]
    {
        assert_eq!(read(text), MeshConfig::default(), "{text:?}");
    }
    assert_eq!(MeshConfig::default().root_namespace, "istio-system");
}

/// What `istioctl install` writes.
#[test]
fn istios_own_configuration_is_accepted() {
    let stock = "\
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  proxyMetadata: {}
defaultProviders:
  metrics:
  - prometheus
enablePrometheusMerge: true
extensionProviders:
- name: prometheus
  prometheus: {}
enableAutoMtls: true
enableTracing: true
ingressControllerMode: STRICT
ingressClass: istio
connectTimeout: 10s
protocolDetectionTimeout: 0s
rootNamespace: istio-system
trustDomain: cluster.local
";
    let config = read(stock);
    assert_eq!(config.trust_domain.as_ref().map(TrustDomain::as_str), Some("cluster.local"));
    assert_eq!(MeshConfig { trust_domain: None, ..config }, MeshConfig::default());
}
