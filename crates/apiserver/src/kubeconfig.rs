use std::io::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::options::ServeError;

/// Writes a kubeconfig for `server` (`https://host:port`) with a client certificate, readable by its owner only.
///
/// The file appears whole or not at all. It is JSON, which is YAML.
pub fn write_kubeconfig(
    path: &Path,
    server: &str,
    root_pem: &str,
    chain_pem: &str,
    key_pem: &str,
) -> Result<(), ServeError> {
    use std::os::unix::fs::OpenOptionsExt;
    let encode = |text: &str| STANDARD.encode(text);
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {},
        "clusters": [{ "name": "maille", "cluster": {
            "server": server, "certificate-authority-data": encode(root_pem),
        } }],
        "users": [{ "name": "maille-admin", "user": {
            "client-certificate-data": encode(chain_pem), "client-key-data": encode(key_pem),
        } }],
        "contexts": [{ "name": "maille", "context": { "cluster": "maille", "user": "maille-admin" } }],
        "current-context": "maille",
    });
    let text = serde_json::to_string_pretty(&config).map_err(|e| ServeError::Setup(e.to_string()))?;
    let new = path.with_extension("new");
    // One left by a crash may have any mode.
    let _ = std::fs::remove_file(&new);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(ServeError::io(format!("cannot write the kubeconfig {}", path.display())))
}
