//! Certificates from files of the sidecar's container, by the names that Istio's agent has for them (reference mtls 6.5).
//!
//! The sidecar reads with its own eyes what a caller names, so that it must not lend them: certificates alone are given
//! to everybody of the Pod; private keys only to callers of its own user, as an Envoy beside it is; and what is the
//! proxy's own is given to nobody.

use std::io::{self, ErrorKind, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use maille_pki::{KeyPair, certificate_pem, certificates_from_pem};
use rustix::fs::{FileType, Mode, OFlags};
use tonic::Status;
use zeroize::Zeroizing;

use super::socket::Caller;
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
    let own = [Some(options.state_dir.as_path()), options.token_file.parent()];
    let own = own.into_iter().flatten().map(|own| own.canonicalize().unwrap_or_else(|_| own.to_owned()));
    let kernels = ["/proc", "/sys", "/dev"].map(PathBuf::from);
    let closed: Vec<PathBuf> = own.chain(kernels).collect();
    let asked = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read_outside(&asked, &closed)).await;
    let bytes = read.map_err(|e| Status::internal(e.to_string()))?;
    let bytes = bytes.map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            Status::permission_denied(format!("{} is not given to applications", path.display()))
        }
        _ => Status::not_found(format!("{}: {error}", path.display())),
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|_| unusable(path, "it is not PEM"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Reads a regular file that is in none of the `closed` directories. Who asks may be able to exchange what is on the way
/// there at any moment; so the file is taken hold of first, unopened, as a pipe would wait, and what is judged is what is
/// read.
fn read_outside(path: &Path, closed: &[PathBuf]) -> io::Result<Zeroizing<Vec<u8>>> {
    let held = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let itself = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let real = std::fs::read_link(&itself)?;
    if closed.iter().any(|closed| real.starts_with(closed)) {
        return Err(ErrorKind::PermissionDenied.into());
    }
    let found = rustix::fs::fstat(&held)?;
    if !FileType::from_raw_mode(found.st_mode).is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let size = u64::try_from(found.st_size).unwrap_or(u64::MAX);
    let too_large = || io::Error::other(format!("larger than {MAX_FILE} bytes"));
    if size > MAX_FILE {
        return Err(too_large());
    }
    // Sized at once: a growing buffer would leave copies of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1));
    std::fs::File::open(&itself)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE { Err(too_large()) } else { Ok(bytes) }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, RenameFlags, renameat_with};

    use super::*;

    #[test]
    fn what_is_closed_is_not_read_while_directories_are_exchanged_for_links() {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("closed", "secret"), ("given", "public")] {
            std::fs::create_dir(path(name)).expect("a directory");
            std::fs::write(path(name).join("file"), text).expect("written");
        }
        std::os::unix::fs::symlink(path("closed"), path("link")).expect("a link");
        let closed = [path("closed")];
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    renameat_with(CWD, path("given"), CWD, path("link"), RenameFlags::EXCHANGE)
                        .expect("exchanged");
                }
            });
            let (mut read, mut refused) = (0, 0);
            while (read < 2000 || refused < 2000) && read + refused < 1_000_000 {
                match read_outside(&path("given/file"), &closed) {
                    Ok(bytes) if bytes.as_slice() == b"public" => read += 1,
                    Ok(bytes) => panic!("{:?} was read", String::from_utf8_lossy(&bytes)),
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn pipes_and_directories_are_no_files() {
        let folder = tempfile::tempdir().expect("a directory");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
        for path in [pipe.as_path(), folder.path()] {
            assert!(read_outside(path, &[]).is_err_and(|error| error.to_string().contains("no file")));
        }
    }
}
