//! Where the dashboard of a mesh is: its key and address, in the data folder.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use maille_dashboard::AccessKey;
use serde::{Deserialize, Serialize};

/// Where it is looked for first.
pub(crate) const DEFAULT_PORT: u16 = 8480;

const FILE: &str = "dashboard.json";

/// What is remembered from one run to the next, so that a bookmark goes on working. Only the owner of the data folder can
/// read it: the key opens the page.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Place {
    key: String,
    /// Where the dashboard of `maille up` is, or was in the run before.
    address: Option<SocketAddr>,
}

impl Place {
    fn read(data_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(data_dir.join(FILE)).ok()?).ok()
    }

    fn write(&self, data_dir: &Path) -> Result<()> {
        let path = data_dir.join(FILE);
        let new = path.with_extension("new");
        // One left by a crash may have any mode.
        let _ = std::fs::remove_file(&new);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            serde_json::to_writer(&mut file, self)?;
            file.flush()?;
            std::fs::rename(&new, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The address with the key, as people open it.
    pub(crate) fn url(data_dir: &Path) -> Option<String> {
        let place = Self::read(data_dir)?;
        Some(AccessKey::parse(&place.key)?.url(place.address?))
    }

    /// The key of this data folder; a new one, remembered if the folder is there and ours, if it has none.
    pub(crate) fn key(data_dir: &Path) -> String {
        let mut place = Self::read(data_dir).unwrap_or_default();
        if AccessKey::parse(&place.key).is_some() {
            return place.key;
        }
        place.key = new_key();
        if data_dir.is_dir()
            && let Err(error) = place.write(data_dir)
        {
            tracing::debug!(%error, "the dashboard's key is for this run alone");
        }
        place.key
    }

    /// Listens on the port of the run before; else the usual one, for a mesh in the usual folder; else any. Remembers
    /// which.
    pub(crate) fn listen(data_dir: &Path) -> Result<(TcpListener, String)> {
        let key = Self::key(data_dir);
        let mut place = Self::read(data_dir).context("the dashboard's key was not kept")?;
        let usual = (data_dir == Path::new(crate::DEFAULT_DATA_DIR)).then_some(DEFAULT_PORT);
        let wanted = place.address.map(|address| address.port()).into_iter().chain(usual).chain([0]);
        for port in wanted {
            match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                Ok(listener) => {
                    place.address = Some(listener.local_addr()?);
                    place.write(data_dir)?;
                    return Ok((listener, key));
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("cannot listen on 127.0.0.1 for the dashboard"),
            }
        }
        anyhow::bail!("no port of 127.0.0.1 is free for the dashboard")
    }
}

fn new_key() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_restart_finds_the_same_key_and_port() {
        let dir = tempfile::tempdir().expect("a folder");
        let (first, _) = Place::listen(dir.path()).expect("a listener");
        let url = Place::url(dir.path()).expect("a url");
        let address = first.local_addr().expect("an address");
        assert!(url.starts_with(&format!("http://{address}/?key=")), "{url}");
        let mode = std::fs::metadata(dir.path().join(FILE)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(first);
        let (_again, _) = Place::listen(dir.path()).expect("a listener");
        assert_eq!(Place::url(dir.path()), Some(url.clone()));
        // Taken by another: a new port, and the same key.
        let (_other, _) = Place::listen(dir.path()).expect("a listener");
        let moved = Place::url(dir.path()).expect("a url");
        assert_ne!(moved, url);
        assert_eq!(moved.split_once("key=").map(|p| p.1), url.split_once("key=").map(|p| p.1));
    }
}
