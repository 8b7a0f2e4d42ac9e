use super::*;

fn read(text: &str) -> ProxyConfig {
    check(text).unwrap_or_else(|found| panic!("{text}\n{found:#?}"))
}

#[test]
fn every_field_that_counts_is_read() {
    let text = "\
holdApplicationUntilProxyStarts: true
concurrency: 2
drainDuration: 1m
termination_drain_duration: 1500ms
proxyMetadata:
  ISTIO_META_DNS_CAPTURE: \"true\"
  ISTIO_META_DNS_AUTO_ALLOCATE: \"1\"
  EXIT_ON_ZERO_ACTIVE_CONNECTIONS: \"True\"
  MINIMUM_DRAIN_DURATION: 2s
  SECRET_TTL: 1h30m0s
  MAILLE_WORKLOAD_API: \"false\"
";
    let expected = ProxyConfig {
        hold_application_until_proxy_starts: Some(true),
        concurrency: Some(2),
        drain_duration: Some(Duration::from_secs(60)),
        termination_drain_duration: Some(Duration::from_millis(1500)),
        dns_capture: Some(true),
        dns_auto_allocate: Some(true),
        exit_on_zero_active_connections: Some(true),
        minimum_drain_duration: Some(Duration::from_secs(2)),
        secret_ttl: Some(Duration::from_secs(5400)),
        workload_api: Some(false),
    };
    assert_eq!(read(text), expected);
    // As people write it in one line.
    assert_eq!(
        read("{ \"holdApplicationUntilProxyStarts\": true }"),
        ProxyConfig { hold_application_until_proxy_starts: Some(true), ..ProxyConfig::default() }
    );
    for nothing in ["", "# nothing", "{}", "proxyMetadata: {}", "tracing: {}\nimage: {}", "statusPort: 15020"]
    {
        assert_eq!(read(nothing), ProxyConfig::default(), "{nothing}");
    }
}

#[test]
fn a_pods_values_go_before_the_meshs() {
    let mesh =
        read("holdApplicationUntilProxyStarts: true\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}");
    let pod = read("concurrency: 2\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: \"false\"}");
    let expected = ProxyConfig {
        hold_application_until_proxy_starts: Some(true),
        concurrency: Some(2),
        dns_capture: Some(false),
        ..ProxyConfig::default()
    };
    assert_eq!(pod.over(&mesh), expected);
    assert_eq!(ProxyConfig::default().over(&mesh), mesh);
}

#[test]
fn what_no_proxy_keeps_to_is_refused() {
    for (text, expected) in [
        ("holdApplicationUntilProxyStarts: 'yes'\n", "1:34 ML0104 holdApplicationUntilProxyStarts"),
        ("holdApplicationUntilProxyStart: true\n", "1:1 ML0103 holdApplicationUntilProxyStart"),
        ("drainDuration: 5\n", "1:16 ML0104 drainDuration"),
        ("drainDuration: 0s\n", "1:16 ML0106 drainDuration"),
        ("drainDuration: 1500ms\n", "1:16 ML0106 drainDuration"),
        ("terminationDrainDuration: 1us\n", "1:27 ML0106 terminationDrainDuration"),
        ("concurrency: -1\n", "1:14 ML0106 concurrency"),
        ("concurrency: many\n", "1:14 ML0104 concurrency"),
        ("concurrency: 1.5\n", "1:14 ML0104 concurrency"),
        ("drainDuration: 5s\ndrain_duration: 5s\n", "2:1 ML0102 drain_duration"),
        ("tracing: {sampling: 1}\n", "1:10 ML0108 tracing"),
        ("interceptionMode: TPROXY\n", "1:19 ML0108 interceptionMode"),
        ("statusPort: 15030\n", "1:13 ML0108 statusPort"),
        ("proxyMetadata: a\n", "1:16 ML0104 proxyMetadata"),
        (
            "proxyMetadata: {ISTIO_META_DNS_CAPTURE: true}\n",
            "1:41 ML0104 proxyMetadata.ISTIO_META_DNS_CAPTURE",
        ),
        (
            "proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"on\"}\n",
            "1:41 ML0106 proxyMetadata.ISTIO_META_DNS_CAPTURE",
        ),
        ("proxyMetadata: {ISTIO_META_DNS: \"true\"}\n", "1:33 ML0108 proxyMetadata.ISTIO_META_DNS"),
        (
            "proxyMetadata: {MINIMUM_DRAIN_DURATION: soon}\n",
            "1:41 ML0106 proxyMetadata.MINIMUM_DRAIN_DURATION",
        ),
        ("- a\n", "1:1 ML0109 "),
        ("a: [1\n", "1:4 ML0101 "),
    ] {
        let found = check(text).expect_err(text);
        let first = found.first().map(|d| {
            format!("{}:{} {} {}", d.line, d.column, d.code, d.field.as_deref().unwrap_or_default())
        });
        assert_eq!(first.as_deref(), Some(expected), "{text}: {found:#?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,80}") {
        let _ = check(&text);
    }
}
