//! What a Pod's processes cannot do.

use anyhow::{Context, Result, ensure};

use crate::mesh::Mesh;

pub(crate) fn secrets_and_sidecar(mesh: &Mesh) -> Result<()> {
    let workload = "production/frontend";
    let shell = |script: &str| mesh.exec(workload, &["sh", "-c", script]);
    let who =
        shell("id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr -s '\\t ' ' '")?.stdout;
    ensure!(!who.starts_with("0\n") && !who.starts_with("1337\n"), "the application runs as {who}");
    ensure!(
        who.contains("CapEff: 0000000000000000") && who.contains("CapBnd: 0000000000000000"),
        "capabilities: {who}"
    );
    ensure!(who.contains("NoNewPrivs: 1"), "privileges can be gained: {who}");

    let data_dir = mesh.data_dir();
    let data_dir = data_dir.to_str().context("a path of UTF-8")?;
    let listing =
        shell(&format!("ls -A {data_dir} 2>&1; find / -xdev -name 'kubeconfig' -readable 2>/dev/null"))?;
    ensure!(!listing.stdout.contains("kubeconfig"), "the data folder is visible: {}", listing.stdout);

    // Only its own processes: neither the sidecar's nor another Pod's.
    let seen = shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?.stdout;
    let foreign = ["maille proxy", "--name=cart", "sandbox", "api-server"];
    ensure!(seen.contains("--name=frontend"), "it does not see itself: {seen}");
    ensure!(!foreign.iter().any(|name| seen.contains(name)), "it sees foreign processes: {seen}");
    ensure!(shell("ls /var/lib/maille/* 2>/dev/null")?.stdout.is_empty(), "it sees the sidecar's state");
    let tokens = shell("find / -xdev -name '*token*' -path '*secrets*' -readable 2>/dev/null")?.stdout;
    ensure!(!tokens.contains("istio-token"), "it sees the sidecar's token: {tokens}");

    // Admin ports: its own sidecar's on localhost, and its neighbours' by address.
    let cart = mesh.pod_ip("production/cart")?;
    for target in ["127.0.0.1:15000".to_owned(), "[::1]:15000".to_owned(), format!("{cart}:15000")] {
        let ran = mesh.exec(workload, &["curl", "-sSf", "--max-time", "3", &format!("http://{target}/")])?;
        ensure!(ran.code != 0, "{target} answers: {}", ran.stdout);
    }
    Ok(())
}

pub(crate) fn sidecar_user(mesh: &Mesh) -> Result<()> {
    let ran = mesh.exec("production/frontend", &["setpriv", "--reuid=1337", "--clear-groups", "id", "-u"])?;
    ensure!(ran.code != 0, "an application became user {}", ran.stdout);
    for (field, what) in [
        ("securityContext: {runAsUser: 1337}", "the Pod's user"),
        ("securityContext: {runAsGroup: 1337, runAsUser: 1000}", "the Pod's group"),
        ("securityContext: {supplementalGroups: [1337]}", "a supplemental group"),
    ] {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: e2e-thief, namespace: default}}\nspec:\n  {field}\n  \
             containers: [{{name: a, image: a, command: [sleep, '60']}}]\n"
        );
        let ran = mesh.kubectl_ran(&["apply", "-f", "-"], Some(&pod))?;
        ensure!(
            ran.code != 0 && ran.stderr.contains("1337"),
            "{what} may be 1337: {}{}",
            ran.stdout,
            ran.stderr
        );
    }
    Ok(())
}

pub(crate) fn api_rights(mesh: &Mesh) -> Result<()> {
    let script = "T=$(cat /var/run/secrets/kubernetes.io/serviceaccount/token); \
                  for path in api/v1/secrets api/v1/namespaces/istio-system/secrets/istio-ca-secret api/v1/pods; do \
                  curl -sS --max-time 5 --cacert /var/run/secrets/kubernetes.io/serviceaccount/ca.crt \
                  -H \"Authorization: Bearer $T\" -o /dev/null -w '%{http_code} ' https://kubernetes.default.svc/$path; done";
    let ran = mesh.exec("legacy/legacy-client", &["sh", "-c", script])?;
    ensure!(ran.stdout.trim() == "403 403 403", "the API answered {}{}", ran.stdout, ran.stderr);
    let script =
        "curl -sk --max-time 5 -o /dev/null -w '%{http_code}' https://kubernetes.default.svc/api/v1/secrets";
    let ran = mesh.exec("legacy/legacy-client", &["sh", "-c", script])?;
    ensure!(ran.stdout.trim() == "401", "without a token the API answered {}", ran.stdout);
    Ok(())
}
