//! Section 2: which policies apply to a workload.

use maille_config::istio::AuthorizationPolicySpec;
use maille_config::scope::Attachment;
use maille_core::Labels;

/// Whether a policy of this namespace and spec applies to a workload of that namespace with these labels.
fn applies(policy: (&str, &str), workload: (&str, &str)) -> bool {
    let spec: AuthorizationPolicySpec = serde_saphyr::from_str(policy.1).expect(policy.1);
    let labels: Labels = serde_saphyr::from_str(workload.1).expect(workload.1);
    Attachment::from(&spec).applies(policy.0, "istio-system", (workload.0, &labels))
}

/// Policy, workload, and whether the one applies to the other.
type Row<'a> = ((&'a str, &'a str), (&'a str, &'a str), bool);

fn check(rows: &[Row<'_>]) {
    for (policy, workload, expected) in rows {
        assert_eq!(applies(*policy, *workload), *expected, "{policy:?} {workload:?}");
    }
}

#[test]
fn section_2_1_namespaces() {
    let web = "selector: {matchLabels: {app: web}}";
    check(&[
        (("foo", "{}"), ("bar", "{}"), false),
        (("foo", "{}"), ("foo", "{}"), true),
        (("istio-system", "{}"), ("bar", "{}"), true),
        (("istio-system", "{}"), ("istio-system", "{}"), true),
        (("istio-system", web), ("bar", "{app: web, v: '1'}"), true),
        (("istio-system", web), ("bar", "{app: db}"), false),
        (("foo", web), ("bar", "{app: web}"), false),
    ]);
}

#[test]
fn section_2_2_selectors() {
    let two = "selector: {matchLabels: {app: web, v: '1'}}";
    let empty = "selector: {matchLabels: {app: ''}}";
    check(&[
        (("foo", two), ("foo", "{app: web}"), false),
        (("foo", two), ("foo", "{app: web, v: '1', x: y}"), true),
        (("foo", two), ("foo", "{app: web, v: '2'}"), false),
        (("foo", "selector: {}"), ("foo", "{}"), true),
        (("foo", "selector: {matchLabels: {}}"), ("foo", "{app: web}"), true),
        (("foo", empty), ("foo", "{app: ''}"), true),
        (("foo", empty), ("foo", "{}"), false),
        (("foo", empty), ("foo", "{app: web}"), false),
    ]);
}

#[test]
fn section_2_3_targets() {
    let edge = "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: edge}]";
    let single = "targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: edge}";
    let service = "targetRefs: [{kind: Service, group: '', name: web}]";
    let class = "targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}]";
    let both = "targetRefs: [{kind: Service, group: '', name: web}, {kind: Gateway, group: gateway.networking.k8s.io, name: edge}]";
    let gateway = "{gateway.networking.k8s.io/gateway-name: edge}";
    let other = "{gateway.networking.k8s.io/gateway-name: inner}";
    let waypoint = "{gateway.networking.k8s.io/gateway-name: w, gateway.networking.k8s.io/gateway-class-name: istio-waypoint}";
    check(&[
        // An ordinary workload ignores a policy with targets; without one, the selector decides.
        (("foo", edge), ("foo", "{}"), false),
        (("foo", service), ("foo", "{app: web}"), false),
        (("foo", "{}"), ("foo", "{}"), true),
        (("foo", edge), ("foo", gateway), true),
        (("foo", single), ("foo", gateway), true),
        (("foo", both), ("foo", gateway), true),
        (("foo", edge), ("foo", other), false),
        (("istio-system", edge), ("foo", gateway), false),
        (("foo", "{}"), ("foo", gateway), true),
        (("foo", "{}"), ("foo", waypoint), false),
        (("istio-system", class), ("foo", waypoint), true),
        (("foo", class), ("foo", waypoint), false),
    ]);
}
