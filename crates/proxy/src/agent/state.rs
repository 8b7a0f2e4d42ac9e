//! What outlives a restart of the proxy, in memory-backed storage of its own Pod.
//!
//! The volume is an `emptyDir` with `medium: Memory`; it goes when the Pod goes. Private keys never reach a disk:
//! anything but tmpfs or ramfs is refused. Files are 0600 in a directory of mode 0700, both owned by the proxy's
//! user, and replaced by renaming, so that a reader finds the old content or the new.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use maille_core::Identity;
use maille_pki::{CertificateDer, KeyPair, Svid, certificate_pem, certificates_from_pem};
use maille_proto::discovery::{DeltaDiscoveryResponse, Resource};
use prost::Message as _;
use prost_types::Any;
use rustix::fs::{FlockOperation, OFlags, statfs};
use zeroize::Zeroizing;

use super::identity::is_same_account;

/// Where the volume is mounted (contract with injection).
pub(crate) const DEFAULT_STATE_DIR: &str = "/var/lib/maille";

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` (linux/magic.h).
const MEMORY_FILESYSTEMS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Most that is read back, and so most that is worth writing: the volume counts as the Pod's memory.
const MAX_FILE: u64 = 16 << 20;

const CREDENTIAL: &str = "svid.pem";
const ROOTS: &str = "roots.pem";
const FACTS: &str = "facts.pb";

/// Why nothing is stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error(
        "{path} is not memory-backed (file system type {kind:#x}); keys are not written to a disk, so a restart \
             needs the control plane: mount an emptyDir with medium Memory there"
    )]
    OnDisk { path: PathBuf, kind: i64 },
    #[error("{path}: {reason}")]
    Unsafe { path: PathBuf, reason: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    Content { path: PathBuf, reason: String },
}

/// A certificate with its key, and the roots that came with it.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) svid: Svid,
    /// When its life began for us: authorities date certificates back, and half of a short life would be over
    /// already (reference mtls 5.7 measures from here).
    pub(crate) obtained: SystemTime,
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

/// One resource as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredResource {
    pub(crate) type_url: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) body: Vec<u8>,
}

/// The directory, checked.
#[derive(Debug)]
pub(crate) struct StateStore {
    dir: PathBuf,
    /// Another process of this Pod keeps the state now.
    is_released: AtomicBool,
}

impl StateStore {
    /// Opens `<volume>/proxy`, making it if need be; refuses a volume that is not memory-backed.
    pub(crate) fn open(volume: &Path) -> Result<Self, StateError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { path, source }
        };
        let stat = statfs(volume).map_err(|e| io(volume)(e.into()))?;
        #[allow(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
        let kind = stat.f_type as i64 & 0xffff_ffff;
        if !MEMORY_FILESYSTEMS.contains(&kind) {
            return Err(StateError::OnDisk { path: volume.to_owned(), kind });
        }
        let dir = volume.join("proxy");
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(io(&dir)(e)),
            _ => {}
        }
        // The volume itself may be writable for all (Kubernetes makes it so): what was there before is
        // only used if it is ours alone.
        let meta = std::fs::symlink_metadata(&dir).map_err(io(&dir))?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            let reason = "it is not a directory of the proxy's user alone (mode 0700)".to_owned();
            return Err(StateError::Unsafe { path: dir, reason });
        }
        Ok(Self { dir, is_released: AtomicBool::new(false) })
    }

    /// A file of this directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Leaves the state to another process of this Pod: from here on nothing is written.
    pub(crate) fn release(&self) {
        self.is_released.store(true, Ordering::Release);
    }

    /// Keeps a credential for the next start.
    pub(crate) fn save_credential(&self, credential: &Credential) -> Result<(), StateError> {
        let roots: String = credential.roots.iter().map(certificate_pem).collect();
        self.replace(ROOTS, roots.as_bytes())?;
        let mut pem = credential.svid.key().to_pem();
        for certificate in credential.svid.chain_pem() {
            pem.push_str(&certificate);
        }
        self.replace(CREDENTIAL, pem.as_bytes())
    }

    /// The credential of the life before, if it is still valid at `now` and is `own`'s; `None` if there is none.
    pub(crate) fn load_credential(
        &self,
        own: &Identity,
        now: SystemTime,
    ) -> Result<Option<Credential>, StateError> {
        let path = self.dir.join(CREDENTIAL);
        let content = |reason: String| StateError::Content { path: path.clone(), reason };
        let Some(bytes) = self.read(CREDENTIAL)? else { return Ok(None) };
        let Some(root_bytes) = self.read(ROOTS)? else { return Ok(None) };
        let pem = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
        let key = KeyPair::from_pem(&pem).map_err(|e| content(e.to_string()))?;
        let chain: Vec<_> = certificates_from_pem("stored certificate chain", &pem)
            .map_err(|e| content(e.to_string()))?
            .iter()
            .map(certificate_pem)
            .collect();
        let svid = Svid::from_pem(&chain, key).map_err(|e| content(e.to_string()))?;
        if !is_same_account(svid.identity(), own) {
            return Err(content(format!("it is the certificate of {}, not of {own}", svid.identity())));
        }
        if svid.is_expired(now) {
            return Err(content("the certificate has expired".to_owned()));
        }
        if now < svid.not_before() {
            return Err(content("the certificate is not valid yet; is the clock right?".to_owned()));
        }
        let roots = certificates_from_pem("stored roots", &String::from_utf8_lossy(&root_bytes))
            .map_err(|e| content(e.to_string()))?;
        Ok(Some(Credential { obtained: svid.not_before(), svid, roots }))
    }

    /// Keeps the facts in force for the next start; facts beyond the bound are left out, the last first.
    pub(crate) fn save_facts(&self, own: &str, facts: &[StoredResource]) -> Result<(), StateError> {
        let mut message = DeltaDiscoveryResponse { nonce: own.to_owned(), ..Default::default() };
        let mut size = 0;
        for fact in facts {
            size += fact.body.len() + fact.name.len() + fact.type_url.len() + 64;
            if size as u64 > MAX_FILE {
                break;
            }
            message.resources.push(Resource {
                version: fact.version.clone(),
                name: fact.name.clone(),
                resource: Some(Any { type_url: fact.type_url.clone(), value: fact.body.clone() }),
                aliases: Vec::new(),
            });
        }
        self.replace(FACTS, &message.encode_to_vec())
    }

    /// The facts of the life before; none if they are of another Pod than `own`.
    pub(crate) fn load_facts(&self, own: &str) -> Result<Vec<StoredResource>, StateError> {
        let path = self.dir.join(FACTS);
        let content = |reason: String| StateError::Content { path: path.clone(), reason };
        let Some(bytes) = self.read(FACTS)? else { return Ok(Vec::new()) };
        let message = DeltaDiscoveryResponse::decode(bytes.as_slice()).map_err(|e| content(e.to_string()))?;
        if message.nonce != own {
            return Err(content(format!("facts of {}, not of {own}", message.nonce)));
        }
        let stored = message.resources.into_iter().filter_map(|resource| {
            let body = resource.resource?;
            Some(StoredResource {
                type_url: body.type_url,
                name: resource.name,
                version: resource.version,
                body: body.value,
            })
        });
        Ok(stored.collect())
    }

    /// Replaces a file whole. No flush to a disk: there is none.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        if self.is_released.load(Ordering::Acquire) {
            return Ok(());
        }
        let path = self.dir.join(name);
        let temporary = self.dir.join(format!(".{name}.new"));
        let write = || {
            // A process that is about to take over may write at the same time.
            let lock = std::fs::File::open(&self.dir)?;
            rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
            match std::fs::remove_file(&temporary) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            options.custom_flags(OFlags::NOFOLLOW.bits() as i32);
            options.open(&temporary)?.write_all(bytes)?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|source| StateError::Io { path: path.clone(), source })
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        let path = self.dir.join(name);
        let io = |source| StateError::Io { path: path.clone(), source };
        let mut options = std::fs::OpenOptions::new();
        options.read(true).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        let file = match options.open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io)?,
        };
        let meta = file.metadata().map_err(io)?;
        let own = meta.uid() == rustix::process::geteuid().as_raw();
        if !meta.is_file() || !own || meta.permissions().mode() & 0o077 != 0 {
            let reason = "it is not a file of the proxy's user alone (mode 0600)".to_owned();
            return Err(StateError::Unsafe { path, reason });
        }
        // Sized at once: a growing buffer would leave copies of a key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(meta.len().min(MAX_FILE) as usize + 1));
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(io)?;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests;
