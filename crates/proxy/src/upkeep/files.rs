//! Files that DestinationRules name: read when first needed, looked at every second, read again when they are other
//! files.
//!
//! A Kubernetes volume changes by swapping a symbolic link, other writers by renaming or in place; each shows in what
//! `stat` says of the path. A set that is not good does not replace one that was.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use maille_tls::{ClientCertificate, Origin, ServerRoots};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use tokio::sync::Notify;
use tracing::{error, info};
use zeroize::Zeroizing;

use super::credentials::Credentials;
use crate::snapshot::{Destination, Material, OrderFiles, Reading, RootsFrom};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is said that a set is not good.
const REMIND: Duration = Duration::from_secs(30);
/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// A set whose files change while they are read is read again, so many times in a row.
const READ_AGAIN: usize = 3;

/// Where operating systems keep their roots; the first that exists is read.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// See the module's text.
#[derive(Default)]
pub(super) struct Files {
    held: Mutex<HashMap<OrderFiles, Watched>>,
    /// Something new is to be read.
    news: Notify,
}

/// One set of files, for as long as somebody uses it.
#[derive(Clone, Default)]
struct Watched {
    material: Weak<Material>,
    seen: Option<Vec<Stamp>>,
    problem_since: Option<Instant>,
    has_expired: bool,
}

/// What tells one content of a path from another: device, inode, size, times of modification and of change.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

impl Files {
    /// Gives the orders of a destination what their files or credentials give; equal sets are read once.
    pub(super) fn adopt(&self, credentials: &Credentials, destination: &mut Destination) {
        let orders: Vec<_> = match destination {
            Destination::Workload(direct) => {
                direct.headless_ports.iter_mut().map(|port| &mut port.order).collect()
            }
            other => {
                let ports = other.service_mut().into_iter().flat_map(|service| &mut service.ports);
                ports.map(|port| &mut port.order).collect()
            }
        };
        for order in orders.into_iter().flatten().filter(|order| order.originates()) {
            let mut own = (**order).clone();
            own.material = match &own.files.credential {
                Some(credential) => credentials.material(credential, &own.files),
                None => self.material(&own.files),
            };
            *order = Arc::new(own);
        }
    }

    fn material(&self, files: &OrderFiles) -> Arc<Material> {
        let mut held = self.held.lock();
        let watched = held.entry(files.clone()).or_default();
        if let Some(material) = watched.material.upgrade() {
            return material;
        }
        let material = Arc::new(Material::default());
        *watched = Watched { material: Arc::downgrade(&material), ..Watched::default() };
        drop(held);
        self.news.notify_one();
        material
    }

    /// Looks at the files for ever.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let files = self.clone();
            // Reading blocks, and a file may be on a slow volume.
            if let Err(error) = tokio::task::spawn_blocking(move || files.look()).await {
                error!(%error, "files of DestinationRules could not be looked at");
            }
            if self.held.lock().is_empty() {
                self.news.notified().await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.news.notified() => {}
            }
        }
    }

    fn look(&self) {
        let all: Vec<_> = {
            let mut held = self.held.lock();
            held.retain(|_, watched| watched.material.strong_count() > 0);
            held.iter().map(|(files, watched)| (files.clone(), watched.clone())).collect()
        };
        for (files, mut watched) in all {
            let Some(material) = watched.material.upgrade() else { continue };
            watched.look(&files, &material, SystemTime::now());
            if let Some(entry) = self.held.lock().get_mut(&files)
                && Weak::ptr_eq(&entry.material, &watched.material)
            {
                *entry = watched;
            }
        }
    }
}

impl Watched {
    fn look(&mut self, files: &OrderFiles, material: &Material, now: SystemTime) {
        let mut seen = stamps(files);
        // What is not good is tried again: permissions of a directory do not show in what `stat` says of a file.
        if self.seen.as_ref() != Some(&seen) || self.problem_since.is_some() {
            let mut outcome = read(files);
            for _ in 0..READ_AGAIN {
                let after = stamps(files);
                if after == seen {
                    break;
                }
                seen = after;
                outcome = read(files);
            }
            self.take(files, material, outcome);
            self.seen = Some(seen);
        }
        self.note_expiry(files, material, now);
    }

    fn take(&mut self, files: &OrderFiles, material: &Material, outcome: Result<Origin, String>) {
        let held = material.current();
        match outcome {
            Ok(origin) => {
                let is_reload = held.origin.is_some() || held.problem.is_some();
                if is_reload {
                    info!(?files, "the files of a DestinationRule are read again and in force");
                }
                self.problem_since = None;
                self.has_expired = false;
                material.replace(Reading { origin: Some(Arc::new(origin)), problem: None }, is_reload);
            }
            Err(problem) => {
                if self.remind() || held.problem.as_deref() != Some(problem.as_str()) {
                    match &held.origin {
                        Some(_) => error!(
                            %problem,
                            "a file of a DestinationRule is not good; what was read before stays in force"
                        ),
                        None => {
                            error!(%problem, "a file of a DestinationRule is not good; its hosts are refused")
                        }
                    }
                }
                let reading = Reading { origin: held.origin.clone(), problem: Some(problem.into()) };
                material.replace(reading, false);
            }
        }
    }

    /// Whether it is time to say again what is wrong.
    fn remind(&mut self) -> bool {
        let is_due = self.problem_since.is_none_or(|since| since.elapsed() >= REMIND);
        if is_due {
            self.problem_since = Some(Instant::now());
        }
        is_due
    }

    /// Connections that were made with a certificate do not outlive it.
    fn note_expiry(&mut self, files: &OrderFiles, material: &Material, now: SystemTime) {
        let held = material.current();
        let (Some((path, _)), Some(certificate)) =
            (&files.own, held.origin.as_ref().and_then(|origin| origin.certificate()))
        else {
            return;
        };
        if let Err(why) = certificate.check(now)
            && !self.has_expired
        {
            self.has_expired = true;
            error!("clientCertificate {path} cannot be used: {why}");
            material.replace((*held).clone(), true);
        }
    }
}

fn stamps(files: &OrderFiles) -> Vec<Stamp> {
    let own = files.own.iter().flat_map(|(certificate, key)| [&**certificate, &**key]);
    let roots = match &files.roots {
        RootsFrom::Nowhere | RootsFrom::Credential => None,
        RootsFrom::System => system_roots(),
        RootsFrom::File(path) => Some(&**path),
    };
    own.chain(roots)
        .chain(files.crl.as_deref())
        .map(|path| {
            let found = std::fs::metadata(path).ok()?;
            let changed = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
            Some((found.dev(), found.ino(), found.size(), changed.0, changed.1, changed.2, changed.3))
        })
        .collect()
}

fn system_roots() -> Option<&'static str> {
    SYSTEM_ROOTS.into_iter().find(|path| Path::new(path).exists())
}

/// Reads a set; the error names the field, the file and what is wrong with it, and nothing of its content.
fn read(files: &OrderFiles) -> Result<Origin, String> {
    let certificate = match &files.own {
        None => None,
        Some((certificate, key)) => {
            let chain = text("clientCertificate", certificate)?;
            let own = text("privateKey", key)?;
            maille_pki::certificates_from_pem("it", &chain)
                .map_err(|e| format!("clientCertificate {certificate} cannot be used: {e}"))?;
            maille_pki::KeyPair::from_pem(&own)
                .map_err(|e| format!("privateKey {key} cannot be used: {e}"))?;
            let both = ClientCertificate::from_pem(&chain, &own).map_err(|e| {
                format!("clientCertificate {certificate} with privateKey {key} cannot be used: {e}")
            })?;
            Some(both)
        }
    };
    let roots = match &files.roots {
        RootsFrom::Nowhere | RootsFrom::Credential => None,
        RootsFrom::File(path) => {
            let pem = text("caCertificates", path)?;
            let source = format!("caCertificates {path}");
            let roots = ServerRoots::from_pem(&pem, source)
                .map_err(|e| format!("caCertificates {path} cannot be used: {e}"))?;
            Some(roots)
        }
        RootsFrom::System => {
            let path = system_roots().ok_or_else(|| {
                format!(
                    "the operating system's roots are not in the proxy's container (none of {}); name a file as \
                     caCertificates",
                    SYSTEM_ROOTS.join(", ")
                )
            })?;
            let pem = text("caCertificates", path)?;
            let roots = ServerRoots::of_system(&pem, format!("the operating system ({path})"))
                .map_err(|e| format!("the operating system's roots in {path} cannot be used: {e}"))?;
            Some(roots)
        }
    };
    let roots = match (roots, &files.crl) {
        (Some(roots), Some(path)) => {
            let pem = text("caCrl", path)?;
            let both = roots.with_revocation_lists(&pem);
            Some(both.map_err(|e| format!("caCrl {path} cannot be used: {e}"))?)
        }
        (roots, _) => roots,
    };
    Ok(Origin::new(certificate, roots))
}

/// A small file. Opened without waiting, since a pipe would block, and nothing but a regular file is read.
fn text(field: &str, path: &str) -> Result<Zeroizing<String>, String> {
    use std::io::Read as _;
    let fail = |why: &dyn std::fmt::Display| format!("{field} {path} cannot be read: {why}");
    if !Path::new(path).is_absolute() {
        return Err(format!("{field} '{path}' must be the absolute path of a file in the proxy's container"));
    }
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| {
        let hint = match e.kind() {
            std::io::ErrorKind::NotFound => {
                "; is it mounted into the sidecar (annotations sidecar.istio.io/userVolume and \
                 sidecar.istio.io/userVolumeMount)?"
            }
            std::io::ErrorKind::PermissionDenied => "; the proxy's user must be able to read it",
            _ => "",
        };
        fail(&format!("{e}{hint}"))
    })?;
    let size = match file.metadata() {
        Ok(found) if !found.is_file() => return Err(fail(&"it is no regular file")),
        Ok(found) if found.len() > MAX_FILE => {
            return Err(fail(&format!("it is larger than {MAX_FILE} bytes")));
        }
        Ok(found) => found.len(),
        Err(e) => return Err(fail(&e)),
    };
    // Sized for all of it: a growing String would leave copies of a private key.
    let capacity = usize::try_from(size).unwrap_or_default() + 1;
    let mut content = Zeroizing::new(String::with_capacity(capacity));
    file.take(MAX_FILE).read_to_string(&mut content).map_err(|e| fail(&e))?;
    Ok(content)
}

#[cfg(test)]
mod tests;
