//! The guide: its document command by command, an API outside the mesh, and a namespace on its way into the mesh.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::document::{self, Shell};
use crate::mesh::{self, Mesh, eventually, run_with_input};

const PATIENCE: Duration = Duration::from_secs(30);

/// The repository, where the document's commands are run.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_path_buf()
}

/// A file under `examples/`.
pub(crate) fn example(path: &str) -> String {
    repository().join("examples").join(path).display().to_string()
}

/// The whole of docs/guide.md, in order, on a fresh mesh.
pub(crate) fn the_document_is_true() -> Result<()> {
    document::comparison_is_strict()?;
    document_is_true("docs/guide.md")
}

/// Runs a document's commands, which bring up a mesh of their own and take it down.
pub(crate) fn document_is_true(document: &str) -> Result<()> {
    let text = std::fs::read_to_string(repository().join(document))?;
    let steps = document::steps(&text)?;
    let folder = tempfile::Builder::new().prefix("maille-guide-").tempdir()?;
    let links = folder.path().join("bin");
    std::fs::create_dir(&links)?;
    std::os::unix::fs::symlink(mesh::binary(), links.join("maille"))?;
    std::os::unix::fs::symlink(mesh::kubectl(), links.join("kubectl"))?;
    let data_dir = folder.path().join("data");
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary)?;
    let prepare = |command: &mut Command| {
        let path = std::env::var("PATH").unwrap_or_default();
        command.current_dir(repository()).env("PATH", format!("{}:{path}:/usr/sbin:/sbin", links.display()));
        command.env("MAILLE_DATA_DIR", &data_dir).env("HOME", folder.path());
        command.env("TMPDIR", &temporary).env_remove("KUBECONFIG").env("LC_ALL", "C.UTF-8");
    };
    let outcome = Shell::start(prepare).and_then(|mut shell| document::run(document, &steps, &mut shell));
    // The document ends with `maille down`; this is for the case that it did not get there.
    if outcome.is_err() && std::env::var_os("MAILLE_KEEP").is_none() {
        let _ = Command::new(mesh::binary()).arg("down").arg("--data-dir").arg(&data_dir).output();
    }
    outcome
}

/// The shop without policies, as the guide finds it.
fn bare_shop() -> Result<Mesh> {
    let files = ["00-namespaces", "10-production", "20-development", "30-legacy"];
    let files: Vec<String> = files.iter().map(|name| example(&format!("shop/{name}.yaml"))).collect();
    let arguments: Vec<&str> = files.iter().flat_map(|file| ["-f", file.as_str()]).collect();
    Mesh::start(&arguments)
}

/// Every manifest of the guide, unchanged, through kubectl and through `maille apply`.
pub(crate) fn manifests_apply_both_ways() -> Result<()> {
    let mesh = bare_shop()?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(repository().join("examples/guide"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('0')))
        .collect();
    files.sort();
    ensure!(files.len() >= 7, "the guide's manifests are missing: {files:?}");
    for file in &files {
        let text = std::fs::read_to_string(file)?;
        mesh.apply(&text).with_context(|| file.display().to_string())?;
        let mut applied = mesh.maille(&["apply", "-f", &file.display().to_string()])?;
        if applied.stdout.contains("configured") {
            // kubectl's note of what it applied is gone now; but for that the object is the same.
            applied = mesh.maille(&["apply", "-f", &file.display().to_string()])?;
        }
        ensure!(applied.code == 0, "maille apply {}: {}{}", file.display(), applied.stdout, applied.stderr);
        ensure!(applied.stdout.contains("unchanged"), "the same object again: {}", applied.stdout);
        mesh.kubectl(&["delete", "-f", &file.display().to_string()])?;
        let anew = mesh.maille(&["apply", "-f", &file.display().to_string()])?;
        ensure!(anew.code == 0 && anew.stdout.contains("created"), "{}{}", anew.stdout, anew.stderr);
    }
    Ok(())
}

/// Certificates of an authority made with openssl.
struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    fn make(folder: PathBuf) -> Result<Self> {
        let mut script = Command::new(example("guide/external-host/make-certificates.sh"));
        let made = run_with_input(
            {
                script.arg(&folder);
                script
            },
            None,
        )?;
        ensure!(made.code == 0, "{}{}", made.stdout, made.stderr);
        Ok(Self { folder })
    }

    fn file(&self, path: &str) -> Result<String> {
        std::fs::read_to_string(self.folder.join(path)).with_context(|| path.to_owned())
    }

    /// A certificate for the client's key that ended yesterday.
    fn expired_client(&self) -> Result<String> {
        let openssl = |arguments: &[&str]| -> Result<String> {
            let mut command = Command::new("openssl");
            command.args(arguments).current_dir(&self.folder);
            let ran = run_with_input(command, None)?;
            ensure!(ran.code == 0, "openssl {arguments:?}: {}", ran.stderr);
            Ok(ran.stdout)
        };
        openssl(&["req", "-new", "-key", "client/key.pem", "-subj", "/CN=late", "-out", "late.csr"])?;
        openssl(&[
            "x509",
            "-req",
            "-in",
            "late.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-days",
            "-1",
        ])
    }
}

/// What a Secret holds, by name.
type Entries = Vec<(&'static str, String)>;

/// Replaces a Secret of strings.
fn put_secret(mesh: &Mesh, namespace: &str, name: &str, entries: &[(&str, &str)]) -> Result<()> {
    let data: serde_json::Map<String, serde_json::Value> =
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": data,
    });
    // Applying would merge: an entry that is gone must go.
    mesh.kubectl_ran(&["delete", "secret", name, "-n", namespace, "--ignore-not-found"], None)?;
    mesh.apply(&secret.to_string())
}

const PAYMENT: &str = "production/payment-service";
const API: &str = "http://api.external-service.com:443/v1/charges";

/// Waits until the API answers the payment service with `code` and a body that contains all of `parts`.
fn answers(mesh: &Mesh, url: &str, code: u16, parts: &[&str]) -> Result<()> {
    eventually(PATIENCE, || {
        let (seen, body) = mesh.curl(PAYMENT, &[url])?;
        ensure!(seen == code, "{url}: {seen}, not {code}: {body}");
        let missing: Vec<_> = parts.iter().filter(|part| !body.contains(**part)).collect();
        ensure!(missing.is_empty(), "{url}: '{body}' does not contain {missing:?}");
        Ok(())
    })
}

/// A stock nginx outside the mesh, and every way its mutual TLS can go wrong.
pub(crate) fn external_api() -> Result<()> {
    let mesh = bare_shop()?;
    let certificates = Certificates::make(mesh.folder().join("certificates"))?;
    let others = Certificates::make(mesh.folder().join("others"))?;
    mesh.kubectl(&["create", "namespace", "external"])?;
    let pem = |of: &Certificates, side: &str| -> Result<Entries> {
        let names = ["cert.pem", "key.pem", "ca.pem"];
        names.into_iter().map(|name| Ok((name, of.file(&format!("{side}/{name}"))?))).collect()
    };
    let put = |namespace: &str, name: &str, entries: &[(&'static str, String)]| {
        let entries: Vec<(&str, &str)> = entries.iter().map(|(k, v)| (*k, v.as_str())).collect();
        put_secret(&mesh, namespace, name, &entries)
    };
    put("external", "api-server-tls", &pem(&certificates, "server")?)?;
    let good = pem(&certificates, "client")?;
    put("production", "external-api-certs", &good)?;
    mesh.apply(&std::fs::read_to_string(example("guide/external-host/nginx.yaml"))?)?;
    mesh.kubectl(&[
        "rollout",
        "status",
        "deployment/api-external-service",
        "-n",
        "external",
        "--timeout=60s",
    ])?;

    // Before there is a rule, nothing encrypts: nginx says so.
    answers(&mesh, API, 400, &["plain HTTP request was sent to HTTPS port"])?;
    mesh.apply(&std::fs::read_to_string(example("guide/07-external-api.yaml"))?)?;
    answers(&mesh, API, 200, &["hello CN=payment-service,O=Shop, you asked for api.external-service.com"])?;

    // A workload whose sidecar has no such files: refused by its own proxy, with rule and file.
    eventually(PATIENCE, || {
        let (code, body) = mesh.curl("production/orders", &[API])?;
        let named = ["production/external-api-mtls", "/etc/certs/"];
        ensure!(code == 503 && named.iter().all(|part| body.contains(part)), "{code}: {body}");
        Ok(())
    })?;

    let with = |name: &str, content: Option<String>| -> Entries {
        let kept = good.iter().filter(|(key, _)| *key != name).cloned();
        let changed = content.and_then(|text| good.iter().find(|(k, _)| *k == name).map(|(k, _)| (*k, text)));
        kept.chain(changed).collect()
    };
    let rule = "production/external-api-mtls";

    // Another authority takes effect at once, and back.
    put("production", "external-api-certs", &with("ca.pem", Some(others.file("client/ca.pem")?)))?;
    answers(&mesh, API, 503, &[rule, "/etc/certs/ca.pem"])?;
    put("production", "external-api-certs", &good)?;
    answers(&mesh, API, 200, &["hello CN=payment-service"])?;

    // What cannot be used is not taken in place of what can; a proxy that has nothing else refuses, until it has.
    let broken = [
        ("expired", with("cert.pem", Some(certificates.expired_client()?)), "/etc/certs/cert.pem"),
        ("no key", with("key.pem", None), "/etc/certs/key.pem"),
        ("another key", with("key.pem", Some(others.file("client/key.pem")?)), "/etc/certs/key.pem"),
    ];
    for (what, entries, file) in &broken {
        put("production", "external-api-certs", entries).context(*what)?;
        mesh.kubectl(&["rollout", "restart", "deployment/payment-service", "-n", "production"])?;
        mesh.kubectl(&[
            "rollout",
            "status",
            "deployment/payment-service",
            "-n",
            "production",
            "--timeout=60s",
        ])?;
        answers(&mesh, API, 503, &[rule, file]).context(*what)?;
        put("production", "external-api-certs", &good)?;
        answers(&mesh, API, 200, &["hello CN=payment-service"]).context(*what)?;
    }

    // An application that speaks TLS itself would be encrypted twice.
    let (code, _) = mesh.curl(PAYMENT, &["-k", "https://api.external-service.com/"])?;
    ensure!(code == 0, "TLS within TLS was answered with {code}");
    eventually(PATIENCE, || {
        let log =
            mesh.maille(&["logs", "deploy/payment-service", "-n", "production", "-c", "istio-proxy"])?.stdout;
        let line = log.lines().find(|l| l.contains("http://") && l.contains(rule) && l.contains("twice"));
        line.context("the proxy's log does not say that it would be encrypted twice")?;
        Ok(())
    })?;

    // The second example: port 80 leads to 443.
    mesh.kubectl(&["delete", "-f", &example("guide/07-external-api.yaml")])?;
    let files = std::fs::read_dir(example("external"))?.filter_map(|entry| entry.ok().map(|e| e.path()));
    for file in files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")) {
        mesh.apply(&std::fs::read_to_string(&file)?).with_context(|| file.display().to_string())?;
    }
    answers(&mesh, "http://api.external-service.com/", 200, &["hello CN=payment-service"])
}

/// Phase by phase, with a caller that never stops: nothing fails while `legacy` becomes STRICT.
pub(crate) fn migration() -> Result<()> {
    let mesh = bare_shop()?;
    mesh.apply(&std::fs::read_to_string(example("guide/01-mesh-strict.yaml"))?)?;
    mesh.apply(&std::fs::read_to_string(example("guide/02-namespaces.yaml"))?)?;
    let plaintext = |is_wanted: bool| {
        eventually(PATIENCE, || {
            let flows =
                mesh.maille(&["flows", "--plaintext", "--from", "legacy/legacy-client", "-o", "json"])?;
            ensure!(flows.stdout.contains("inventory") == is_wanted, "{}{}", flows.stdout, flows.stderr);
            Ok(())
        })
    };
    plaintext(true).context("phase 2: the plaintext caller is found")?;

    mesh.kubectl(&["label", "namespace", "legacy", "istio-injection=enabled"])?;
    mesh.kubectl(&["rollout", "restart", "deployment/legacy-client", "-n", "legacy"])?;
    mesh.kubectl(&["rollout", "status", "deployment/legacy-client", "-n", "legacy", "--timeout=120s"])?;
    let containers = mesh.pod("legacy/legacy-client")?["spec"]["containers"].to_string();
    ensure!(containers.contains("istio-proxy"), "phase 3: no sidecar: {containers}");
    let (code, body) = mesh.curl("legacy/legacy-client", &["http://inventory/"])?;
    ensure!(code == 200, "phase 3: {code} {body}");

    // What the client itself counted so far: it calls by itself, several times a second.
    let strict = r#"{"spec":{"mtls":{"mode":"STRICT"}}}"#;
    mesh.kubectl(&["patch", "peerauthentication", "default", "-n", "legacy", "--type=merge", "-p", strict])?;
    for _ in 0..50 {
        let (code, body) = mesh.curl("legacy/legacy-client", &["http://inventory/"])?;
        ensure!(code == 200, "phase 4: {code} {body}");
    }
    mesh.apply(&std::fs::read_to_string(example("guide/late-client.yaml"))?)?;
    mesh.kubectl(&["rollout", "status", "deployment/late-client", "-n", "legacy", "--timeout=60s"])?;
    eventually(PATIENCE, || {
        let (code, _) = mesh.curl("legacy/late-client", &["http://inventory/"])?;
        ensure!(code == 0, "phase 5: a plaintext client is answered with {code}");
        Ok(())
    })?;
    eventually(PATIENCE, || {
        let log = mesh.kubectl(&["logs", "-n", "istio-system", "-l", "app=istiod", "--tail=100"])?;
        let found = log.lines().find(|line| line.contains("TLS") && line.contains("late-client"));
        found
            .with_context(|| format!("phase 5: the control plane's log does not name the client:\n{log}"))?;
        let metrics = inventory_metrics(&mesh)?;
        let refused = metrics.lines().find(|line| {
            line.starts_with("istio_tcp_connections_opened_total{")
                && line.contains(r#"source_workload="late-client""#)
                && line.contains(r#"connection_security_policy="none""#)
        });
        refused.context("phase 5: the metrics do not name the client")?;
        Ok(())
    })
}

fn inventory_metrics(mesh: &Mesh) -> Result<String> {
    let address = mesh.pod_ip("legacy/inventory")?;
    let mut curl = mesh.on_node("curl")?;
    curl.args(["-s", "--max-time", "5", &format!("http://{address}:15020/stats/prometheus")]);
    let ran = run_with_input(curl, None)?;
    if ran.code != 0 {
        bail!("no metrics at {address}: {}", ran.stderr);
    }
    Ok(ran.stdout)
}
