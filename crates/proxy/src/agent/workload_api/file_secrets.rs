//! Certificates from files of the sidecar's container, by the names that Istio's agent has for them (reference mtls 6.5).
//!
//! The sidecar reads with its own eyes what a caller names, so that it must not lend them: certificates alone are given
//! to everybody of the Pod; private keys only to callers of its own user, as an Envoy beside it is; and what is the
//! proxy's own is given to nobody.

use std::path::{Path, PathBuf};

use maille_pki::{KeyPair, certificate_pem, certificates_from_pem};
use tonic::Status;
use zeroize::Zeroizing;

use super::socket::Caller;
use crate::agent::channel::read_bounded;
use crate::agent::options::ProxyOptions;

/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Where operating systems keep their roots.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileSecret {
    /// `file-cert:<certificates>~<key>`.
    Pair { chain: PathBuf, key: PathBuf },
    /// `file-root:<certificates>`.
    Roots(PathBuf),
    /// `file-root:system`.
    SystemRoots,
}

/// What was read, PEM.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum FromFiles {
    Pair { chain: String, key: Zeroizing<String> },
    Roots(String),
}

impl FileSecret {
    /// `None`: the name is none of a file.
    pub(super) fn parse(name: &str) -> Option<Result<Self, Status>> {
        let wrong = |expected: &str| Status::invalid_argument(format!("'{name}' is not {expected}"));
        if let Some(path) = name.strip_prefix("file-root:") {
            return Some(match path {
                "system" => Ok(Self::SystemRoots),
                path if path.starts_with('/') => Ok(Self::Roots(path.into())),
                _ => Err(wrong("file-root:/absolute/path or file-root:system")),
            });
        }
        let pair = name.strip_prefix("file-cert:")?;
        Some(match pair.split_once('~') {
            Some((chain, key)) if chain.starts_with('/') && key.starts_with('/') => {
                Ok(Self::Pair { chain: chain.into(), key: key.into() })
            }
            _ => Err(wrong("file-cert:/path/of/certificates~/path/of/key")),
        })
    }

    /// Reads it now.
    pub(super) async fn read(&self, options: &ProxyOptions, caller: Caller) -> Result<FromFiles, Status> {
        match self {
            Self::Roots(path) => Ok(FromFiles::Roots(roots(&open(path, options).await?, path)?)),
            Self::SystemRoots => {
                let found = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.is_file());
                let path =
                    found.ok_or_else(|| Status::not_found("the proxy's image has no roots of a system"))?;
                Ok(FromFiles::Roots(roots(&open(path, options).await?, path)?))
            }
            Self::Pair { chain, key } => {
                if caller.user != rustix::process::geteuid().as_raw() {
                    return Err(Status::permission_denied(
                        "keys from files are for callers of the proxy's own user; mount the file into the application",
                    ));
                }
                let chain = (open(chain, options).await?, chain);
                let key = (open(key, options).await?, key);
                pair(chain, key)
            }
        }
    }
}

/// A regular file that is not the proxy's own, wherever links lead.
async fn open(path: &Path, options: &ProxyOptions) -> Result<Zeroizing<String>, Status> {
    let missing = |error: std::io::Error| Status::not_found(format!("{}: {error}", path.display()));
    let real = tokio::fs::canonicalize(path).await.map_err(missing)?;
    let own = [Some(options.state_dir.as_path()), options.token_file.parent()];
    let own = own.into_iter().flatten().map(|own| own.canonicalize().unwrap_or_else(|_| own.to_owned()));
    let kernels = ["/proc", "/sys", "/dev"].map(PathBuf::from);
    if own.chain(kernels).any(|closed| real.starts_with(closed)) {
        return Err(Status::permission_denied(format!("{} is not given to applications", path.display())));
    }
    if !tokio::fs::metadata(&real).await.map_err(missing)?.is_file() {
        return Err(Status::not_found(format!("{} is no file", path.display())));
    }
    let bytes = Zeroizing::new(read_bounded(&real, MAX_FILE).await.map_err(missing)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| unusable(path, "it is not PEM"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Nothing but the certificates of a file leaves it.
fn roots(text: &str, path: &Path) -> Result<String, Status> {
    let certificates =
        certificates_from_pem("file of roots", text).map_err(|e| unusable(path, &e.to_string()))?;
    Ok(certificates.iter().map(certificate_pem).collect())
}

fn pair(
    chain: (Zeroizing<String>, &PathBuf),
    key: (Zeroizing<String>, &PathBuf),
) -> Result<FromFiles, Status> {
    let certificates = certificates_from_pem("file of certificates", &chain.0)
        .map_err(|e| unusable(chain.1, &e.to_string()))?;
    let parsed = KeyPair::from_pem(&key.0).map_err(|e| unusable(key.1, &e.to_string()))?;
    // Envoy would refuse the pair later, and say less.
    let text = certificates.iter().map(certificate_pem).collect::<String>();
    maille_tls::control::Credential::from_pem(&text, &key.0).map_err(|e| unusable(key.1, &e.to_string()))?;
    Ok(FromFiles::Pair { chain: certificates.iter().map(certificate_pem).collect(), key: parsed.to_pem() })
}

fn unusable(path: &Path, reason: &str) -> Status {
    Status::failed_precondition(format!("{} cannot be used: {reason}", path.display()))
}
