//! What a folder holds at one look, and whether that is a CA.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use maille_control::authority::Entries;
use maille_pki::{Authority, KeyPair};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// The names of a CA's files, those that must be there first (reference mtls 5.5).
struct Form {
    needed: [&'static str; 3],
    optional: &'static [&'static str],
    key: &'static str,
}

/// As Istio's operators have them.
const PLAIN: Form = Form {
    needed: ["ca-cert.pem", "ca-key.pem", "root-cert.pem"],
    optional: &["cert-chain.pem", "ca-crl.pem"],
    key: "ca-key.pem",
};
/// As a Secret of type TLS has them. If there is a `tls.crt`, it is this form.
const TLS: Form =
    Form { needed: ["tls.crt", "tls.key", "ca.crt"], optional: &["ca-crl.pem"], key: "tls.key" };
const FORMS: &str = "a CA is ca-cert.pem, ca-key.pem and root-cert.pem, with or without cert-chain.pem and ca-crl.pem; or \
                     tls.crt, tls.key and ca.crt, with or without ca-crl.pem";

/// What a Secret may hold: all files together are no longer than this.
const LONGEST: u64 = 1 << 20;

/// What was there at one look. It holds a private key, so that it is never shown.
#[derive(PartialEq, Eq)]
pub(super) struct Look {
    entries: Entries,
    /// Files with private keys that others may read or write, and their modes.
    exposed: Vec<(&'static str, u32)>,
}

/// A CA that may be taken.
pub(super) struct Set {
    /// The entries of the Secret that it becomes.
    pub(super) entries: Entries,
    /// Tells what the files hold; says nothing of the private key.
    pub(super) mark: String,
    /// What signs.
    pub(super) signer: String,
    /// What is wrong with how its files are kept.
    pub(super) warning: Option<String>,
}

/// Reads all files of a CA that are there. No folder is an empty one.
pub(super) fn look(folder: &Path) -> Result<Look, String> {
    let mut look = Look { entries: Entries::new(), exposed: Vec::new() };
    let mut left = LONGEST;
    for form in [PLAIN, TLS] {
        for name in form.needed.into_iter().chain(form.optional.iter().copied()) {
            if look.entries.contains_key(name) {
                continue;
            }
            let path = folder.join(name);
            let read =
                read(&path, left).map_err(|reason| format!("cannot read {}: {reason}", path.display()))?;
            let Some((bytes, mode)) = read else { continue };
            left = left.saturating_sub(bytes.len() as u64);
            if name == form.key && mode & 0o006 != 0 {
                look.exposed.push((name, mode & 0o7777));
            }
            look.entries.insert(name.to_owned(), bytes);
        }
    }
    Ok(look)
}

/// What is in a file, and its mode.
type Content = (Zeroizing<Vec<u8>>, u32);

/// A file; `None` if there is none.
fn read(path: &Path, limit: u64) -> Result<Option<Content>, String> {
    // Who opens a pipe would else wait for somebody to write into it.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file: File = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        // A folder that is a file is told where the folder is looked at.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error.to_string()),
    };
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file".to_owned());
    }
    let too_long = || format!("the files of a CA may have {LONGEST} bytes together, as a Secret may");
    if metadata.len() > limit {
        return Err(too_long());
    }
    // With room to spare, so that it never moves and leaves a key behind.
    let room = usize::try_from(metadata.len()).map_err(|_| too_long())?.saturating_add(64);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(metadata.len()).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(Some((bytes, metadata.mode())))
}

impl Look {
    /// Whether this may be taken, and if not, why (CA-20); `None` if nothing is there.
    pub(super) fn judge(&self, folder: &Path) -> Result<Option<Set>, String> {
        if self.entries.is_empty() {
            return Ok(None);
        }
        let shown = folder.display();
        let has = |name: &str| self.entries.contains_key(name);
        let form = if has("tls.crt") || !has("ca-cert.pem") && (has("tls.key") || has("ca.crt")) {
            TLS
        } else {
            PLAIN
        };
        let missing: Vec<&str> = form.needed.into_iter().filter(|name| !has(name)).collect();
        if !missing.is_empty() {
            let found: Vec<&str> = self.entries.keys().map(String::as_str).collect();
            return Err(format!(
                "{shown} holds {} and lacks {}: {FORMS}",
                found.join(", "),
                missing.join(", ")
            ));
        }
        let mut entries = Entries::new();
        for name in form.needed.into_iter().chain(form.optional.iter().copied()) {
            if let Some(bytes) = self.entries.get(name) {
                entries.insert(name.to_owned(), bytes.clone());
            }
        }
        let unusable = |error: maille_pki::Error| format!("the CA in {shown} cannot be used: {error}");
        let entry = |name: &str| entries.get(name).map(|bytes| bytes.as_slice());
        let authority = Authority::from_secret(entry).map_err(unusable)?;
        let key =
            KeyPair::from_pem(&authority.key_pem()).and_then(|key| key.public_key()).map_err(unusable)?;
        let warning = self.exposed.iter().find(|(name, _)| *name == form.key).map(|(name, mode)| {
            format!(
                "{shown}/{name} has mode {mode:04o}, so that others may read or replace the key that signs for the whole mesh; \
                 `chmod o= {shown}/{name}` keeps it from them"
            )
        });
        let signer = authority.signer().to_owned();
        let mark = mark(&entries, form.key, key.spki());
        Ok(Some(Set { entries, mark, signer, warning }))
    }
}

/// A digest of what everybody may know: in place of the private key stands the public one.
fn mark(entries: &Entries, key: &str, public: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    for (name, bytes) in entries {
        let bytes = if name == key { public } else { bytes.as_slice() };
        for part in [name.as_bytes(), bytes] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
    }
    let hex: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
