//! Nobody gets another's identity.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::mesh::{Mesh, eventually};
use crate::protocols::{Lab, NAMESPACE};
use crate::wire::s_client;

/// A certificate chain and its key, as files.
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Signs whatever a test wants, with the mesh's own root or with another.
pub(crate) struct Forge {
    folder: TempDir,
}

impl Forge {
    /// With the root key of the mesh, which only the mesh's administrator can read.
    pub(crate) fn of_mesh(mesh: &Mesh) -> Result<Self> {
        let forge = Self { folder: TempDir::new()? };
        for key in ["ca-cert.pem", "ca-key.pem"] {
            let path = format!("-o=go-template={{{{index .data \"{key}\" | base64decode}}}}");
            let pem = mesh.kubectl(&["get", "secret", "istio-ca-secret", "-n", "istio-system", &path])?;
            std::fs::write(forge.folder.path().join(key), pem)?;
        }
        Ok(forge)
    }

    /// With a root of its own, of the same name.
    pub(crate) fn of_another_root() -> Result<Self> {
        let forge = Self { folder: TempDir::new()? };
        forge.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "10",
            "-subj",
            "/O=cluster.local",
            "-keyout",
            "ca-key.pem",
            "-out",
            "ca-cert.pem",
        ])?;
        Ok(forge)
    }

    /// The root certificate.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("ca-cert.pem")
    }

    /// A certificate that is valid now.
    pub(crate) fn svid(&self, namespace: &str, account: &str) -> Result<Pair> {
        self.sign(&format!("URI:spiffe://cluster.local/ns/{namespace}/sa/{account}"), &["-days", "1"])
    }

    /// A certificate whose time has passed.
    pub(crate) fn expired_svid(&self, namespace: &str, account: &str) -> Result<Pair> {
        self.sign(&format!("URI:spiffe://cluster.local/ns/{namespace}/sa/{account}"), &["-days", "-1"])
    }

    /// A certificate with these subject alternative names.
    pub(crate) fn sign(&self, names: &str, time: &[&str]) -> Result<Pair> {
        let extensions = format!(
            "subjectAltName=critical,{names}\nkeyUsage=critical,digitalSignature,keyEncipherment\n\
             extendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"
        );
        std::fs::write(self.folder.path().join("ext.cnf"), extensions)?;
        self.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"])?;
        self.openssl(&["req", "-new", "-key", "key.pem", "-subj", "/", "-out", "request.pem"])?;
        let mut arguments = vec![
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca-cert.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-extfile",
            "ext.cnf",
            "-out",
            "cert.pem",
        ];
        arguments.extend(time);
        self.openssl(&arguments)?;
        Ok(Pair { certificate: self.path("cert.pem"), key: self.path("key.pem") })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("openssl").current_dir(self.folder.path()).args(arguments).output()?;
        if !output.status.success() {
            bail!("openssl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

pub(crate) fn foreign_certificates_are_refused(mesh: &Mesh) -> Result<()> {
    let own = Forge::of_mesh(mesh)?;
    let other = Forge::of_another_root()?;
    let answered = |svid: Option<&Pair>| -> Result<bool> {
        let ran = s_client(mesh, "production/orders", svid, &["-tls1_3"])?;
        Ok(ran.stdout.contains("HTTP/1.1 "))
    };
    // The control: a right certificate is answered, so that a refusal means something.
    ensure!(
        answered(Some(&own.svid("production", "payment-service")?))?,
        "a right certificate is not answered"
    );
    ensure!(!answered(None)?, "no certificate at all is answered");
    ensure!(
        !answered(Some(&other.svid("production", "payment-service")?))?,
        "another root's certificate is answered"
    );
    ensure!(
        !answered(Some(&own.expired_svid("production", "payment-service")?))?,
        "an expired certificate is answered"
    );
    let two =
        "URI:spiffe://cluster.local/ns/production/sa/payment-service,URI:spiffe://cluster.local/ns/a/sa/b";
    ensure!(
        !answered(Some(&own.sign(two, &["-days", "1"])?))?,
        "a certificate of two identities is answered"
    );
    let evil = "URI:spiffe://evil.example/ns/production/sa/payment-service";
    ensure!(!answered(Some(&own.sign(evil, &["-days", "1"])?))?, "another trust domain is answered");
    ensure!(!answered(Some(&own.sign("DNS:payment-service", &["-days", "1"])?))?, "a DNS name is answered");
    Ok(())
}

/// CreateCertificate over curl: gRPC's status of the answer, and the answer's bytes.
fn create_certificate(mesh: &Mesh, workload: &str, token: &str) -> Result<(String, Vec<u8>)> {
    let folder = TempDir::new()?;
    let run =
        |arguments: &[&str]| Command::new("openssl").current_dir(folder.path()).args(arguments).output();
    run(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"])?;
    run(&["req", "-new", "-key", "key.pem", "-subj", "/O=x", "-out", "request.pem"])?;
    let csr = std::fs::read(folder.path().join("request.pem")).context("openssl made no request")?;
    // Two commands in the Pod: the message in base64, then the call.
    let message = grpc_message(&csr);
    let script = format!(
        "printf %s '{}' | base64 -d > /tmp/request && curl -sS --max-time 8 --http2 --cacert /tmp/root.pem \
         -H 'content-type: application/grpc' -H 'te: trailers' -H 'authorization: Bearer {token}' \
         --data-binary @/tmp/request -D /tmp/headers -o /tmp/answer \
         https://istiod.istio-system.svc:15012/istio.v1.auth.IstioCertificateService/CreateCertificate; \
         grep -i '^grpc-' /tmp/headers; echo; base64 -w0 /tmp/answer 2>/dev/null",
        base64(&message)
    );
    let root = std::fs::read_to_string(Forge::of_mesh(mesh)?.root())?;
    let script = format!("cat > /tmp/root.pem <<'PEM'\n{root}PEM\n{script}");
    let ran = mesh.exec(workload, &["sh", "-c", &script])?;
    let (headers, body) =
        ran.stdout.rsplit_once('\n').with_context(|| format!("curl said {}", ran.stderr))?;
    Ok((format!("{headers}{}", ran.stderr), body.as_bytes().to_vec()))
}

/// A gRPC frame with `IstioCertificateRequest{csr}`.
fn grpc_message(csr: &[u8]) -> Vec<u8> {
    let mut proto = vec![0x0a];
    let mut length = csr.len();
    while length >= 0x80 {
        proto.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    proto.push(length as u8);
    proto.extend_from_slice(csr);
    let mut frame = vec![0];
    frame.extend_from_slice(&(proto.len() as u32).to_be_bytes());
    frame.extend(proto);
    frame
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for sextet in 0..4 {
            let index = (word >> (18 - 6 * sextet)) & 0x3f;
            text.push(if sextet <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}

/// A token for this audience of the account, bound to the Pod that runs under it.
fn token_of(mesh: &Mesh, namespace: &str, account: &str, audience: &str) -> Result<String> {
    let pod = mesh.pod(&format!("{namespace}/{account}"))?;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", &name];
    let create = ["create", "token", account, "-n", namespace, "--audience", audience];
    let text = mesh.kubectl(&[&create[..], &bound].concat())?;
    Ok(text.trim().to_owned())
}

/// A client that somebody generated from the proto asks for an administrator's certificate, and gets its own.
pub(crate) fn generated_client(mesh: &Mesh) -> Result<()> {
    let lab = Lab::start(mesh)?;
    let token = token_of(mesh, NAMESPACE, "client", "istio-ca")?;
    let root = std::fs::read_to_string(Forge::of_mesh(mesh)?.root())?;
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/proto/proto/istio/v1/auth/ca.proto");
    let proto = std::fs::read_to_string(proto)?;
    let ask = |token: &str| {
        lab.run(&format!(
            "cd $(mktemp -d) && cat > ca.proto <<'END'\n{proto}END\ncat > root.pem <<'END'\n{root}END\n\
             printf %s '{token}' > token\n\
             openssl ecparam -name prime256v1 -genkey -noout -out key.pem\n\
             openssl req -new -key key.pem -subj '/O=admin/CN=admin' -out csr.pem \
             -addext 'subjectAltName=URI:spiffe://cluster.local/ns/istio-system/sa/admin,DNS:istiod.istio-system.svc'\n\
             python3 /programs/ca_client.py ca.proto root.pem token csr.pem > answer; head -1 answer\n\
             openssl x509 -in answer -noout -ext subjectAltName,extendedKeyUsage,basicConstraints 2>/dev/null || true"
        ))
    };
    let answer = ask(&token)?;
    ensure!(answer.starts_with("OK 2"), "{answer}");
    let names = answer.lines().find(|line| line.contains("URI:")).context("the certificate has no names")?;
    ensure!(names.trim() == "URI:spiffe://cluster.local/ns/protocols/sa/client", "its names are {names}");
    ensure!(answer.contains("CA:FALSE") && !answer.contains("admin"), "{answer}");
    let refused = ask(&format!("{token}x"))?;
    ensure!(refused.starts_with("UNAUTHENTICATED request authenticate failure"), "{refused}");
    Ok(())
}

/// The serial number of the certificate that a sidecar uses now.
fn serial(mesh: &Mesh, pod: &str) -> Result<String> {
    let ran = mesh.maille(&["proxy-config", "secret", pod])?;
    let line = ran.stdout.lines().find(|line| line.starts_with("default"));
    let line = line.with_context(|| format!("{}{}", ran.stdout, ran.stderr))?;
    Ok(line.split_whitespace().find(|word| word.len() >= 24).context("no serial number")?.to_owned())
}

/// Who loses its right is refused within seconds on connections that are open, too, and nobody else is; a revoked
/// certificate of somebody who keeps it is replaced.
pub(crate) fn revoked(mesh: &Mesh) -> Result<()> {
    let soon = std::time::Duration::from_secs(20);
    let identity = "spiffe://cluster.local/ns/production/sa/frontend";
    let call = || -> Result<u16> { Ok(mesh.curl("production/frontend", &["http://cart/"])?.0) };
    ensure!(call()? == 200, "frontend cannot reach cart to begin with");
    // One connection, a request every half second.
    let script = "exec 3<>/dev/tcp/cart/80; while printf 'GET / HTTP/1.1\\r\\nHost: cart\\r\\n\\r\\n' >&3 && \
                  read -t 5 -r line <&3; do case $line in *' 200 '*) ;; *' 403 '*|*' 503 '*) echo \"$line\"; exit 3;; esac; sleep 0.5; done; exit 4";
    let open = ["exec", "deploy/frontend", "-n", "production", "--", "timeout", "60", "bash", "-c", script];
    let mut open = mesh.maille_command(&open).stdout(std::process::Stdio::piped()).spawn()?;
    let ran = mesh.maille(&["ca", "revoke", identity, "--reason", "left the company"])?;
    let revoked = eventually(soon, || {
        let code = call()?;
        ensure!(
            code == 503 || code == 403,
            "a revoked identity is answered {code}: {}{}",
            ran.stdout,
            ran.stderr
        );
        ensure!(open.try_wait()?.is_some_and(|status| !status.success()), "its open connection goes on");
        let (code, _) = mesh.curl("production/cart", &["-X", "POST", "http://payment-service/"])?;
        ensure!(code == 200, "somebody else is answered {code}");
        Ok(())
    });
    let undone = mesh.maille(&["ca", "revoke", identity, "--undo"])?;
    let _ = open.kill();
    let _ = open.wait();
    revoked?;
    ensure!(undone.code == 0, "{}{}", undone.stdout, undone.stderr);
    eventually(soon, || {
        let code = call()?;
        ensure!(code == 200, "after the revocation was undone: {code}");
        Ok(())
    })?;
    let pod = mesh.pod("production/frontend")?;
    let pod = format!("{}.production", pod["metadata"]["name"].as_str().context("no name")?);
    let before = serial(mesh, &pod)?;
    let ran = mesh.maille(&["ca", "revoke", "--serial", &before, "--reason", "leaked"])?;
    ensure!(ran.code == 0, "{}{}", ran.stdout, ran.stderr);
    let healed = eventually(soon, || {
        let now = serial(mesh, &pod)?;
        ensure!(now != before, "the sidecar still uses the revoked certificate");
        let code = call()?;
        ensure!(code == 200, "with its new certificate it is answered {code}");
        Ok(())
    });
    mesh.maille(&["ca", "revoke", "--serial", &before, "--undo"])?;
    healed
}

pub(crate) fn foreign_token_gets_nothing(mesh: &Mesh) -> Result<()> {
    let token = |namespace: &str, account: &str, audience: &str| token_of(mesh, namespace, account, audience);
    // The control: its own token, from its own Pod.
    let own = token("production", "frontend", "istio-ca")?;
    let (status, _) = create_certificate(mesh, "production/frontend", &own)?;
    ensure!(status.contains("grpc-status: 0"), "a Pod's own token gets no certificate: {status}");
    // Another account's token, stolen by a Pod in the mesh and by one outside it.
    for thief in ["development/dev-service", "legacy/legacy-client"] {
        let (status, answer) = create_certificate(mesh, thief, &own)?;
        ensure!(!status.contains("grpc-status: 0"), "{thief} got a certificate with a stolen token");
        ensure!(status.contains("grpc-status: 16"), "the refusal is {status}, {} bytes", answer.len());
    }
    // A token for another audience, and none that is a token.
    for bad in [token("production", "frontend", "api")?, "nonsense".to_owned()] {
        let (status, _) = create_certificate(mesh, "production/frontend", &bad)?;
        ensure!(status.contains("grpc-status: 16"), "a wrong token is answered with {status}");
    }
    Ok(())
}

/// Where PyPI's client of the Workload API runs.
const APPLICATIONS: &str = "applications";

/// Two Pods with PyPI's client; gone again when dropped.
struct Applications<'a>(&'a Mesh);

impl<'a> Applications<'a> {
    /// With certificates of half a minute, so that renewals are seen.
    fn start(mesh: &'a Mesh) -> Result<Self> {
        let tools = std::env::var_os("MAILLE_PYTHON_LIBRARIES").map(PathBuf::from);
        let tools = tools.context("MAILLE_PYTHON_LIBRARIES names no folder; use `cargo xtask e2e`")?;
        let labels = json!({"istio-injection": "enabled"});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": APPLICATIONS, "labels": labels}});
        mesh.apply(&namespace.to_string())?;
        let applications = Self(mesh);
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures/workload_api.py");
        let file = format!("--from-file={}", program.display());
        mesh.kubectl(&["create", "configmap", "programs", "-n", APPLICATIONS, &file])?;
        for name in ["orders", "cart"] {
            let metadata = json!({"name": name, "namespace": APPLICATIONS});
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata});
            let container = json!({
                "name": "main", "image": "tests", "command": ["sleep", "infinity"],
                "env": [
                    {"name": "PYTHONPATH", "value": "/tools"},
                    {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
                ],
                "volumeMounts": [
                    {"name": "tools", "mountPath": "/tools", "readOnly": true},
                    {"name": "programs", "mountPath": "/programs", "readOnly": true},
                ],
            });
            let template = json!({
                "metadata": {
                    "labels": {"app": name},
                    "annotations": {"proxy.istio.io/config": "proxyMetadata:\n  SECRET_TTL: 30s\n"},
                },
                "spec": {
                    "serviceAccountName": name, "terminationGracePeriodSeconds": 1, "containers": [container],
                    "volumes": [
                        {"name": "tools", "hostPath": {"path": tools}},
                        {"name": "programs", "configMap": {"name": "programs"}},
                    ],
                },
            });
            let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
                "spec": {"selector": {"matchLabels": {"app": name}}, "template": template}});
            mesh.apply(&format!("{account}\n---\n{deployment}"))?;
        }
        for name in ["deployment/orders", "deployment/cart"] {
            mesh.kubectl(&["rollout", "status", name, "-n", APPLICATIONS, "--timeout=120s"])?;
        }
        Ok(applications)
    }

    fn command<'b>(name: &'b str, arguments: &[&'b str]) -> Vec<&'b str> {
        let target = ["exec", name, "-n", APPLICATIONS, "-c", "main", "--"];
        // Without the distribution's packages: an OpenSSL of another age among them is looked for and does not fit.
        [&target[..], &["timeout", "120", "python3", "-S", "/programs/workload_api.py"], arguments].concat()
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let ran = self.0.maille(&Self::command(name, arguments))?;
        ensure!(
            ran.code == 0,
            "{arguments:?} in {name} ended with {}: {}{}",
            ran.code,
            ran.stdout,
            ran.stderr
        );
        Ok(ran.stdout)
    }
}

impl Drop for Applications<'_> {
    fn drop(&mut self) {
        let _ = self.0.kubectl(&["delete", "namespace", APPLICATIONS, "--timeout=60s"]);
    }
}

/// PyPI's client, in real Pods, by nothing but the variable that injection sets: certificates, roots and tokens are fetched, work
/// and are those of the Pod; renewals and a new root of the mesh are seen as they come.
pub(crate) fn workload_api(mesh: &Mesh) -> Result<()> {
    let applications = Applications::start(mesh)?;
    let identity = |name: &str| format!("spiffe://cluster.local/ns/{APPLICATIONS}/sa/{name}");
    let (orders, cart) = (identity("orders"), identity("cart"));
    let fetched = applications.run("deploy/cart", &["fetch", "orders"])?;
    ensure!(fetched.contains(&format!("svid {cart} usable\n")), "{fetched}");
    ensure!(fetched.contains(&format!("checked {cart}\n")), "{fetched}");
    let token = fetched.lines().find_map(|line| line.strip_prefix(&format!("token {cart} orders ")));
    let token = token.with_context(|| fetched.clone())?;
    // The other one's sidecar validates it, for the right audience only, and not if it was changed.
    let validate =
        |token: &str, audience: &str| applications.run("deploy/orders", &["validate", token, audience]);
    ensure!(validate(token, "orders")? == format!("good {cart}\n"), "{}", validate(token, "orders")?);
    ensure!(validate(token, "payments")?.starts_with("refused"), "a token for another audience is good");
    let forged = token.replacen('.', "x.", 1);
    ensure!(validate(&forged, "orders")?.starts_with("refused"), "a changed token is good");

    let mut command = mesh.maille_command(&Applications::command("deploy/orders", &["watch"]));
    let mut watching = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(watching.stdout.take().context("no output")?).lines();
    // A rotation that begins before somebody watches would be half over.
    let mut seen: Vec<String> = lines.by_ref().take(2).collect::<std::io::Result<_>>()?;
    let rotated = mesh.maille(&["ca", "rotate", "--timeout", "120s"])?;
    for line in lines {
        seen.push(line?);
    }
    let (ended, seen) = (watching.wait()?, seen.join("\n"));
    ensure!(rotated.code == 0, "{}{}", rotated.stdout, rotated.stderr);
    ensure!(ended.success() && seen.ends_with(&format!("\nusable\ntoken {orders}")), "{ended}: {seen}");
    let roots: Vec<&str> = seen.lines().filter_map(|line| line.strip_prefix("roots ")).collect();
    let status: Value = serde_json::from_str(&mesh.maille(&["ca", "status", "-o", "json"])?.stdout)?;
    let last = status["authority"]["roots"][0]["serial"].as_str().context("no root")?.trim_start_matches('0');
    ensure!(
        matches!(roots[..], [_, both, new] if both.contains(' ') && new == last),
        "the roots were {roots:?}, and the mesh's is {last}"
    );
    Ok(())
}
