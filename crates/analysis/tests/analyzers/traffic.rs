//! Findings about traffic policies, Sidecars and workloads outside of Pods.

use super::support::expect;
use super::{SHOP, destination_rule, service_entry};

fn with(kind: &str, name: &str, spec: &str, base: &str) -> String {
    format!(
        "{base}---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn sidecars_are_held_against_workloads_and_each_other() {
    let base = SHOP.trim_end().trim_end_matches("---");
    let one = |spec: &str| with("Sidecar", "a", spec, base);
    let two = |first: &str, second: &str| with("Sidecar", "b", second, &one(first));
    let selecting =
        |app: &str| format!("{{workloadSelector: {{labels: {{app: {app}}}}}, egress: [{{hosts: [./*]}}]}}");
    let all = "{egress: [{hosts: [./*]}]}";
    expect(&one(&selecting("web")), "IST0101", None);
    expect(&one(&selecting("wep")), "IST0101", Some("app=wep"));
    expect(&two(&selecting("web"), all), "IST0110", None);
    expect(&two(&selecting("web"), &selecting("web")), "IST0110", Some("shop/web"));
    expect(&two(&selecting("web"), all), "IST0111", None);
    expect(&two(all, all), "IST0111", Some("a, b"));
    let showing = |host: &str| one(&format!("{{egress: [{{hosts: [\"{host}\"]}}]}}"));
    for fine in
        ["./*", "*/*.corp", "./web.shop.svc.cluster.local", "shop/web.shop.svc.cluster.local", "~/x.corp"]
    {
        expect(&showing(fine), "ML0224", None);
    }
    expect(
        &showing("./wep.shop.svc.cluster.local"),
        "ML0224",
        Some("did you mean web.shop.svc.cluster.local?"),
    );
    expect(&showing("bank/web.shop.svc.cluster.local"), "ML0224", Some("of namespace bank"));
}

#[test]
fn ml0222_and_ml0223_join_entries_and_workloads() {
    let entry = |app: &str| {
        service_entry(&format!(
            "{{hosts: [vm.corp], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: STATIC, \
             workloadSelector: {{labels: {{app: {app}}}}}}}"
        ))
    };
    expect(&entry("web"), "ML0222", None);
    expect(&entry("vm"), "ML0222", Some("app=vm"));
    let machine =
        |app: &str| with("WorkloadEntry", "vm1", "{address: 192.0.2.7, labels: {app: vm}}", &entry(app));
    expect(&machine("vm"), "ML0222", None);
    expect(&machine("vm"), "ML0223", None);
    expect(&machine("web"), "ML0223", Some("nothing is sent to it"));
    let by_metadata = machine("vm")
        .replace("labels: {app: vm}}\n", "labels: {app: other}}\n")
        .replace("{name: vm1, namespace: shop}", "{name: vm1, namespace: shop, labels: {app: vm}}");
    expect(&by_metadata, "ML0223", None);
}

#[test]
fn ml0225_and_ml0226_hold_settings_against_ports() {
    let rule = |settings: &str| {
        destination_rule(&format!("{{host: web, trafficPolicy: {{portLevelSettings: [{settings}]}}}}"))
    };
    expect(&rule("{port: {number: 80}, loadBalancer: {simple: RANDOM}}"), "ML0225", None);
    expect(&rule("{port: {number: 8080}, loadBalancer: {simple: RANDOM}}"), "ML0225", Some("80, 5432"));
    let hash = |port: u16, hash: &str| {
        rule(&format!("{{port: {{number: {port}}}, loadBalancer: {{consistentHash: {{{hash}}}}}}}"))
    };
    expect(&hash(80, "httpHeaderName: x"), "ML0226", None);
    expect(&hash(5432, "useSourceIp: true"), "ML0226", None);
    expect(&hash(5432, "httpHeaderName: x"), "ML0226", Some("useSourceIp"));
    let http = "{port: {number: 5432}, connectionPool: {http: {http2MaxRequests: 1}}}";
    expect(&rule(http), "ML0226", Some("connectionPool.tcp"));
}
