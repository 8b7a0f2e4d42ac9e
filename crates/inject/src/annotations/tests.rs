use super::*;
use serde_json::json;

fn settings() -> InjectSettings {
    InjectSettings::new("i", "/maille", maille_core::TrustDomain::parse("cluster.local").expect("valid"))
}

fn parse(annotations: &[(&str, &str)]) -> Result<Wishes, InjectError> {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    let pod = json!({"metadata": {"name": "a", "annotations": annotations}, "spec": {"containers": []}});
    Wishes::parse(&serde_json::from_value(pod).expect("a pod"), &settings())
}

fn intercept(annotations: &[(&str, &str)]) -> String {
    let args = parse(annotations).expect("valid").intercept.expect("redirected").join(" ");
    let fixed = "-p 15001 -z 15006 -u 1337 -g 1337 -m REDIRECT ";
    args.strip_prefix(fixed).unwrap_or_else(|| panic!("{args}")).to_owned()
}

#[test]
fn without_annotations_everything_is_captured_but_the_sidecars_ports() {
    assert_eq!(intercept(&[]), "-i * -b * -d 15090,15021,15020");
}

#[test]
fn annotations_become_arguments() {
    assert_eq!(
        intercept(&[
            (INCLUDE_OUTBOUND_RANGES, "10.0.0.0/8, fd00::/8"),
            (EXCLUDE_OUTBOUND_RANGES, "10.1.0.0/16"),
            (INCLUDE_INBOUND_PORTS, ""),
            (EXCLUDE_INBOUND_PORTS, "22,15090"),
            (INCLUDE_OUTBOUND_PORTS, "9000"),
            (EXCLUDE_OUTBOUND_PORTS, "25, 465"),
            (EXCLUDE_INTERFACES, "docker0"),
            (VIRTUAL_INTERFACES_OLD, "net1"),
        ]),
        "-i 10.0.0.0/8,fd00::/8 -x 10.1.0.0/16 -b  -d 22,15090,15021,15020 -q 9000 -o 25,465 -c docker0 -k net1"
    );
    assert_eq!(parse(&[(INTERCEPTION_MODE, "NONE")]).map(|w| w.intercept), Ok(None));
    let metadata = |value: &str| format!("proxyMetadata: {{ISTIO_META_DNS_CAPTURE: {value}}}");
    let captured = parse(&[(PROXY_CONFIG, &metadata("\"true\""))]).expect("valid");
    assert_eq!(captured.proxy.dns_capture, Some(true));
    assert!(captured.intercept.expect("redirected").contains(&"--redirect-dns".to_owned()));
    let not = parse(&[(PROXY_CONFIG, &metadata("\"false\""))]).expect("valid");
    assert!(!not.intercept.expect("redirected").contains(&"--redirect-dns".to_owned()));
    parse(&[(PROXY_CONFIG, &metadata("maybe"))]).expect_err("no boolean");
}

#[test]
fn bad_values_name_the_annotation() {
    for (annotation, value) in [
        (EXCLUDE_OUTBOUND_PORTS, "abc"),
        (EXCLUDE_OUTBOUND_PORTS, "80,65536"),
        (EXCLUDE_INBOUND_PORTS, "*"),
        (INCLUDE_OUTBOUND_RANGES, "10.0.0.1"),
        (EXCLUDE_OUTBOUND_RANGES, "10.0.0.0/33"),
        (EXCLUDE_INTERFACES, "eth0; flush ruleset"),
        (INTERCEPTION_MODE, "TPROXY"),
        (STATUS_PORT, "8080"),
        (REWRITE_PROBES, "yes"),
        (NATIVE_SIDECAR, "yes"),
        (TEMPLATES, "grpc-agent"),
        (PROXY_CONFIG, "tracing: {sampling: 1}"),
        (PROXY_CONFIG, "terminationDrainDuration: 5"),
        (PROXY_CONFIG, "a: [1"),
        (USER_VOLUME, "nonsense"),
        (USER_VOLUME, "[{\"name\": \"workload-state\", \"emptyDir\": {}}]"),
        (USER_VOLUME_MOUNT, "[{\"name\": \"x\", \"mountPath\": \"/var/lib/maille/x\"}]"),
        (USER_VOLUME_MOUNT, "[{\"name\": \"x\", \"mountPath\": \"/var\"}]"),
        (USER_VOLUME_MOUNT, "[{\"name\": \"x\", \"mountPath\": \"/x/../var/lib\"}]"),
        ("sidecar.istio.io/proxyCPU", "a lot"),
    ] {
        let message = parse(&[(annotation, value)]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            message.starts_with(&format!("metadata.annotations[{annotation}]: '")),
            "{value}: {message:?}"
        );
    }
}

#[test]
fn what_a_pod_says_of_its_proxy_comes_before_what_holds_for_the_mesh() {
    let mut settings = settings();
    settings.proxy_config =
        proxy_config::check("{concurrency: 4, holdApplicationUntilProxyStarts: true}").expect("valid");
    let config =
        "concurrency: 2\nterminationDrainDuration: 1m5s\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}\n";
    let pod = json!({"metadata": {"annotations": {PROXY_CONFIG: config}}, "spec": {"containers": []}});
    let wishes = Wishes::parse(&serde_json::from_value(pod).expect("a pod"), &settings).expect("valid");
    assert_eq!(wishes.proxy.concurrency, Some(2));
    assert_eq!(wishes.proxy.hold_application_until_proxy_starts, Some(true));
    assert_eq!(wishes.proxy.termination_drain_duration, Some(std::time::Duration::from_secs(65)));
    assert_eq!(wishes.intercept.expect("redirected").last().map(String::as_str), Some("--redirect-dns"));
}

#[test]
fn user_volumes_come_as_lists_or_by_name() {
    for text in [
        "[{\"name\": \"c\", \"secret\": {\"secretName\": \"s\"}}]",
        "{\"c\": {\"secret\": {\"secretName\": \"s\"}}}",
    ] {
        let wishes = parse(&[
            (USER_VOLUME, text),
            (USER_VOLUME_MOUNT, "[{\"name\": \"c\", \"mountPath\": \"/etc/certs\"}]"),
        ])
        .expect("valid");
        assert_eq!(wishes.volumes.first().map(|v| v.name.as_str()), Some("c"), "{text}");
        assert_eq!(wishes.mounts.first().map(|m| m.mount_path.as_str()), Some("/etc/certs"));
    }
}

#[test]
fn annotations_nobody_reads_are_told() {
    let pod = json!({"metadata": {"annotations": {
        "traffic.sidecar.istio.io/excludeOutboundPort": "1",
        "sidecar.istio.io/logLevel": "debug",
        "sidecar.istio.io/inject": "true",
        "sidecar.istio.io/proxyCPU": "1",
        "example.com/x": "y",
    }}});
    let pod = serde_json::from_value(pod).expect("a pod");
    assert_eq!(
        without_effect(&pod),
        [
            "annotation sidecar.istio.io/logLevel has no effect on the sidecar",
            "annotation traffic.sidecar.istio.io/excludeOutboundPort has no effect on the sidecar",
        ]
    );
}
